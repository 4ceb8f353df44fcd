"""Checks of a normalising flow's mathematics: inverse, log-determinants, independent rows."""

import itertools
import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from gencheck.flow_subject import STRONG, AnyFlow, FlowSubject, estimated, pair
from gencheck.outcomes import NOTE, PASS, WRONG, CannotJudge, Outcome, load_checks, one_line
from gencheck.result import NotJudged, Result, judge

SATURATED = 5.0  # nats of a log-determinant for each dimension
FAR = 1e5  # maps that enlarge values or small changes this much do so with rounding errors
REDUCTIONS = (1, 4, 16, 64)  # of weak noise, until the map is well conditioned
NOTHING = 1e-6  # a point that moves less has not moved
ALONE = (1, 2, 0)  # examples of a batch that are also mapped alone, divided among settings
SMALL = 1e-3  # part of a flow's movement that an iterative inverse may be off by, unstated


def over_settings(
    flow: FlowSubject, measure: Callable, precise: bool = True, stds: tuple[float, ...] = ()
) -> Outcome:
    """The worst outcome of `measure` over several settings of the weights.

    Settings are the subject's, and noise of these standard deviations. Noise can make a deep flow
    ill-conditioned, so that its rounding errors would be taken for wrong: then weak noise is
    reduced. A setting that stays ill-conditioned is left out.
    """
    outcomes = []
    for std in (*flow.stds, *stds):
        for reduction in REDUCTIONS if 0 < abs(std) < STRONG else (1,):
            with flow.perturbed(precise=precise, std=std / reduction):
                if _well_conditioned(flow, std):
                    outcomes.append(measure())
                    break
    if not outcomes:
        raise CannotJudge(
            f"the output is not finite, or over {FAR:,.0f} times as large as the input: pass "
            "domain=(low, high), where the flow is defined"
        )
    worst = min(outcomes, key=lambda outcome: (WRONG, NOTE, PASS).index(outcome.status))
    return outcomes[-1] if worst.status == PASS else worst  # the weights as they are come first


def _well_conditioned(flow, std) -> bool:
    """Whether values, and where there is noise small differences too, stay in range."""
    z, _, z1, _ = flow.there(flow.flow)
    size = z1.abs().max() / (1 + z.abs().max())  # nan and inf are below no number
    if not std:
        return bool(size < math.inf)
    nearby, nearby1 = flow.nearby(flow.flow)
    change = (nearby1 - z1).abs().max() / (nearby - z).abs().max()
    return bool(size < FAR and change < FAR)


def inverse_outcome(flow: FlowSubject, bijections: Callable) -> Outcome:
    """Forward and back, twice, for each of `bijections()`, which is asked at each setting."""
    idle = []

    def measure():
        errors, moves, tolerance = [], [], _point_tolerance(flow)
        for bijection in bijections():
            z, ldj, z1, ldj1 = flow.there(bijection)
            z2, _ = flow.back(bijection)
            z3 = z2
            if not idle:  # once is enough
                with torch.no_grad():
                    again = pair(bijection.forward(z.clone(), ldj.clone()))[0]
                    if (again - z1).abs().max() > tolerance:
                        raise CannotJudge("the forward map is random: two calls of it differ")
                    try:
                        z3, _ = pair(bijection.inverse(z1.clone(), ldj1.clone()))
                    except Exception as error:
                        words = f"the inverse crashes when it is called again: {one_line(error)}"
                        return Outcome(WRONG, words, "the same result on every call", flow.proves)
            if z2.shape != z.shape:
                words = f"shape {list(z.shape)} comes back as {list(z2.shape)}"
                return Outcome(WRONG, words, "its own shape", flow.proves)
            moves.append(_movement(z, z1))
            errors.append(max((back - z).abs().max().item() for back in (z2, z3)))
            _refuse_small(flow, errors[-1], tolerance, moves[-1])
        idle.append(min(moves) < NOTHING)
        measured = (
            f"forward and back moves numbers by up to {max(errors):.2g}, with noise on the weights"
        )
        right = max(errors) < tolerance
        expected = f"below {tolerance:.2g}"
        return Outcome(PASS if right else WRONG, measured, expected, _is_proof(flow))

    outcome = over_settings(flow, measure)
    if all(idle) and outcome.status == PASS:
        raise CannotJudge(
            "the flow does nothing, even with perturbed weights"
            if not flow.proves or flow.has_weights
            else "the flow does nothing, and no weights of it are found: pass the module"
        )
    return outcome


def _movement(z, z1) -> float:
    """How far points move, at most; infinite where shapes can't be compared."""
    return (z1 - z).abs().max().item() if z1.shape == z.shape else math.inf


def _point_tolerance(flow) -> float:
    """Allowed error of a point; `atol` is relative for points beyond 1, as a solver's is."""
    size = 1 + flow.there(flow.flow)[0].abs().max().item()
    return max(1e-2 if flow.dtype == torch.float32 else 1e-6, size * (flow.atol or 0.0))


def _is_proof(flow) -> bool:
    return flow.proves and flow.dtype == torch.float64


def _refuse_small(flow, error, tolerance, moved):
    """An unstated tolerance can't tell a small error from an iterative inverse."""
    if flow.proves and flow.atol is None and tolerance < error < SMALL * moved:
        power = math.floor(math.log10(2 * error)) + 1
        raise CannotJudge(
            f"the error is {error:.2g}, little beside the {moved:.2g} that points move: if the "
            f"flow is iterative, pass its tolerance, such as atol=1e{power}"
        )


def logdet_outcome(flow: FlowSubject, bijections: Callable, precise: bool = True) -> Outcome:
    """The log-determinant of every example against autodiff's, for each of `bijections()`."""

    def measure():
        found, maps = [], list(bijections())
        for place, bijection in enumerate(maps, start=1):
            z, ldj, _, coded = flow.there(bijection)
            if coded is None or coded.shape != ldj.shape:
                shape = None if coded is None else list(coded.shape)
                return Outcome(WRONG, f"log-determinants {shape}", "[batch]", flow.proves)
            exact = flow.log_abs_det(bijection, z)
            added, noise = (values[: len(exact)] for values in flow.added(bijection))
            exact = exact.to(added.dtype)
            floor = 1e-6 if flow.dtype == torch.float64 else 1e-2
            allowed = max(floor, flow.tolerance(exact.abs().max().item())) + 5 * noise
            sizes = (added - exact).abs() / allowed
            if flow.is_strong:  # where saturated functions leave digits
                sizes[~added.isfinite() | ~(exact.abs() < SATURATED * flow.dim)] = 0.0
            i = sizes.argmax()
            size = sizes[i].nan_to_num(math.inf).item()  # nothing is larger than nan
            row = [t[i].item() for t in (added, exact)] + [bool(noise.any())]
            found.append((size, place, *row))
        size, place, added, exact, random = max(found)
        if size <= 1:
            words = ", averaged over draws" if random else ""
            return Outcome(PASS, f"autodiff's, to {abs(added - exact):.1g} nats{words}")
        n_wrong = sum(size > 1 for size, *_ in found)
        where = f"layer {place} of {len(maps)}: " if len(maps) > 1 else ""
        where = f"{n_wrong} layers, such as {where}" if n_wrong > 1 else where
        proof = _is_proof(flow) and not random
        measured = f"{where}log |det| = {added:.6g} nats{_ratio_in_words(added, exact)}"
        return Outcome(WRONG, measured, f"{exact:.6g}, autodiff's", proof)

    return over_settings(flow, measure, precise, flow.strong_stds)


def _ratio_in_words(coded, exact) -> str:
    ratio = coded / exact if abs(exact) > 1e-3 else math.nan
    words = {-1: "the sign is wrong", 2: "it is doubled", 0: "it is left out", 0.5: "it is halved"}
    known = [f": {text}" for factor, text in words.items() if abs(ratio - factor) < 0.01]
    return known[0] if known else ""


def reverse_outcome(flow: FlowSubject, bijections: Callable) -> Outcome:
    """Forward and reverse together must leave the log-determinant that they start with."""
    expected = "reverse subtracts what forward added"

    def measure():
        words = set()
        tolerance = 1e-2 if flow.dtype == torch.float32 else max(1e-6, flow.tolerance(100))
        for bijection in bijections():
            z, ldj, z1, ldj1 = flow.there(bijection)
            ldj2 = flow.back(bijection)[1]
            if ldj2 is None:
                return Outcome(NOTE, "the inverse returns no log-determinant", expected)
            with torch.no_grad():
                added, noise = flow.added(bijection)
                if noise.any():
                    back, more = estimated(bijection.inverse, z1, ldj1, ldj2 - ldj1)
                    ldj1, ldj2 = ldj + added, ldj + added + back
                    tolerance = tolerance + 5 * (noise + more).max().item()
            if ldj2.shape == ldj.shape and (ldj2 - ldj).abs().max() < tolerance:
                continue
            if ldj2.numel() == len(ldj) and (ldj2 == 0).all():
                words.add("reverse returns zero for the log-determinant, whatever was added before")
            elif ldj2.shape == ldj.shape and (ldj2 - ldj1).abs().max() < tolerance:
                words.add("reverse leaves the log-determinant as it is")
            elif ldj2.shape == ldj.shape and (ldj2 - ldj1 - added).abs().max() < tolerance:
                words.add("reverse adds the log-determinant again")
            else:
                error = (ldj2 - ldj).abs().max().item()
                words.add(f"off by {error:.3g} nats after forward and reverse")
        proof = _is_proof(flow) and not noise.any()
        status = WRONG if words else PASS
        return Outcome(status, "; ".join(sorted(words)) or expected, expected, proof)

    return over_settings(flow, measure)


def rows_outcome(flow: FlowSubject) -> Outcome:
    """Examples alone, against the same examples in a batch; other ones at each setting."""
    settings = itertools.count()

    def measure():
        z, ldj, whole, _ = flow.there(flow.flow)
        rows = ALONE[next(settings) % len(ALONE) :: len(flow.stds)]
        with torch.no_grad():
            alone = [
                pair(flow.flow.forward(z[i : i + 1].clone(), ldj[i : i + 1].clone()))[0]
                for i in rows
            ]
        error = (torch.cat(alone) - whole[list(rows)]).abs().max().item()
        tolerance = 10 * _point_tolerance(flow)  # a solver's steps may suit the whole batch
        _refuse_small(flow, error, tolerance, _movement(z, whole))
        measured = f"an example changes by {error:.2g} with the others of its batch"
        expected = f"below {tolerance:.2g}, in evaluation mode"
        return Outcome(PASS if error < tolerance else WRONG, measured, expected, _is_proof(flow))

    return over_settings(flow, measure)


def _whole(flow):
    return lambda: [flow.flow]


MEASURES = {
    "flow_inverse": lambda flow: inverse_outcome(flow, _whole(flow)),
    "flow_logdet": lambda flow: logdet_outcome(flow, _whole(flow)),
    "flow_reverse_logdet": lambda flow: reverse_outcome(flow, _whole(flow)),
    "flow_rows": rows_outcome,
}
CHECKS = load_checks("flow", MEASURES)


def check_flow(
    forward,
    inverse: Callable | None = None,
    dim: int | None = None,
    *,
    shape: int | tuple[int, ...] | None = None,
    context: torch.Tensor | None = None,
    domain: tuple[float, float] | None = None,
    atol: float | None = None,
    inverse_logdet: bool = True,
    weak_too: bool = False,
    allow_unjudged: Collection[str] = (),
    seed: int = 0,
) -> Result:
    """Check a bijection and its log-determinants, as it is and with perturbed weights.

    Nothing is changed: measurements work on deep copies, in evaluation mode, in float64 where the
    code allows it. Weights without a gradient, such as masks, are left alone.

    Args:
        forward: a flow. A map z [batch, *shape] -> (z, log |det dz_out / dz|) or
            (z, ldj [batch]) -> (z, ldj + log |det|); a module with such a `forward`; a transform
            or a transformed distribution of `torch.distributions`; a flow or a transform of zuko,
            nflows, normflows or flowtorch. One log-determinant for each example, summed or not.
        inverse: the map backwards. Default: the flow's own `inverse`, `backward` or `reverse=True`.
        dim: short for `shape=(dim,)`.
        shape: of one example.
        context: of a conditional flow, [n, ...]: each measurement takes one row.
        domain: where the flow is defined, such as (0, 1); infinite bounds are allowed.
        atol: allowed error of the inverse, where it is iterative. Default: it must be exact.
        inverse_logdet: False where the inverse returns no log-determinant, or no right one.
        weak_too: weak findings are failures, too.
        allow_unjudged: checks that may stay without a verdict, such as ("reverse_logdet",).
        seed: of the measurements, 0 to 999.

    Returns:
        All findings.

    Raises:
        CheckFailure: an AssertionError that lists what is wrong.
        NotJudged: something could not be measured; the message says what to pass.

    Example:
        >>> check_flow(zuko.flows.NSF(features=3), shape=3)
        >>> check_flow(flow, inverse=partial(flow, reverse=True), dim=784)

    References:
        Papamakarios et al., "Normalizing flows for probabilistic modeling and inference", 2021,
        Section 2.1.
    """
    if not torch.is_grad_enabled():
        raise NotJudged("check_flow is called under torch.no_grad(): it needs gradients")
    if (dim is None) == (shape is None):
        raise NotJudged("pass the shape of one example: shape=(3, 32, 32), or dim=784")
    subject = AnyFlow(
        forward, inverse, context, inverse_logdet, dim if shape is None else shape, domain, atol
    )
    checks = [replace(check, central=True) for check in CHECKS]
    if not inverse_logdet:
        checks = [check for check in checks if check.name != "flow_reverse_logdet"]
    return judge("flow", subject, checks, weak_too, allow_unjudged, seed)
