"""What a check says: a status, what was measured, what was expected; and how checks are run."""

import contextlib
import functools
import random
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

# From the worst to the best. Only the first two accuse.
WRONG, WEAK, OLD, UNJUDGED, NOTE, PASS = "wrong", "weak", "old", "unjudged", "note", "pass"
STATUSES = (WRONG, WEAK, OLD, UNJUDGED, NOTE, PASS)
ACCUSING = (WRONG, WEAK)
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
DROPOUTS += ("alpha_dropout", "feature_alpha_dropout")  # functions that their modules call, too


class CannotJudge(Exception):
    """A check's preconditions don't hold; the message says why."""


class TooLong(BaseException):
    """A statement or call took longer than its limit."""


@dataclass(frozen=True)
class Outcome:
    """The result of one measurement.

    Args:
        status: one of STATUSES.
        measured: in one line, with its unit.
        expected: in one line, with its unit.
        proof: an exact counterexample; a second measurement could only repeat it.
    """

    status: str
    measured: str
    expected: str = ""
    proof: bool = False


@dataclass(frozen=True)
class Check:
    """One thing that is checked.

    Args:
        name: short, unique within a model.
        measure: a function of the subject that returns an `Outcome`; it may raise `CannotJudge`.
        why: why it matters, in one sentence.
        hint: what to look at, without the answer.
        reference: equation and paper.
        central: whether a submission counts as judged only with this check.
        crash: an exception of the submission's own code is WRONG, as it is called as documented.
    """

    name: str
    measure: Callable[[Any], Outcome]
    why: str
    hint: str
    reference: str = ""
    central: bool = False
    crash: bool = False


@dataclass(frozen=True)
class Finding:
    """A check's outcome with all that a report says about it."""

    model: str
    check: str
    status: str
    measured: str
    expected: str
    why: str
    reference: str
    hint: str
    central: bool

    def line(self) -> str:
        """The finding in one line."""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.status}: {self.check}: {self.measured}{expected}"


CHECKS_FILE = Path(__file__).parent / "checks.toml"


def load_checks(
    section: str, measures: dict[str, Callable[[Any], Outcome]], table: dict | None = None
) -> tuple[Check, ...]:
    """The checks of these measures, by name, with what a section of the table says about them.

    Raises:
        KeyError: the table, by default `checks.toml`, says nothing about one.
    """
    texts = (read_checks() if table is None else table)[section]
    return tuple(Check(name, measure, **texts[name]) for name, measure in measures.items())


@functools.cache
def read_checks(file: Path = CHECKS_FILE) -> dict[str, dict]:
    """A file like `checks.toml`: by section and name, what a report says about a check."""
    return tomllib.loads(file.read_text())


def seed_everything(seed: int) -> None:
    """Seed PyTorch, NumPy and Python: submissions draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def kept_random_numbers() -> Iterator[None]:
    """Restore the state of all generators that `seed_everything` seeds after the block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def run_checks(
    model: str,
    subject: Any,
    checks: Iterable[Check],
    adapt: Callable[[Exception], bool] = lambda error: False,
    theirs: Callable[[Exception], bool] = lambda error: True,
    seed: int = 0,
    errors: dict[str, BaseException] | None = None,
) -> Iterator[Finding]:
    """Findings of all checks on a subject. Accusations are measured twice, with other draws.

    If the second measurement disagrees with the first, the check is unjudged. Proofs are measured
    once.

    Args:
        model: "vae", "flow" or "gan".
        subject: what is measured; its attribute `seed` is what measurements start from.
        checks: in order.
        adapt: called with an exception; True means that the measurement may now succeed.
        theirs: whether an exception was raised by the code under measurement.
        seed: 0 to 999, another one for other random numbers.
        errors: is given the exceptions that left checks unjudged, by check.
    """
    errors = {} if errors is None else errors
    for check in checks:
        outcome = _measure(check, subject, 1000 + seed, adapt, theirs, errors)
        if outcome.status in ACCUSING and not outcome.proof:
            second = _measure(check, subject, 2000 + seed, adapt, theirs, errors)
            if second.status not in ACCUSING:
                outcome = Outcome(
                    UNJUDGED,
                    f"two measurements disagree: {outcome.measured}; {second.measured}",
                    outcome.expected,
                )
        yield finding(model, check, outcome)


def finding(model: str, check: Check, outcome: Outcome) -> Finding:
    """The finding of a check with this outcome."""
    return Finding(
        model,
        check.name,
        outcome.status,
        outcome.measured,
        outcome.expected,
        why=check.why,
        reference=check.reference,
        hint=check.hint,
        central=check.central,
    )


CRASHES = (RuntimeError, TypeError, AttributeError, ValueError, IndexError, UnboundLocalError)


def _measure(check, subject, seed, adapt, theirs, errors) -> Outcome:
    subject.seed = seed
    while True:
        seed_everything(subject.seed)
        try:
            with without_dropout():
                return check.measure(subject)
        except CannotJudge as reason:
            if reason.__cause__ is not None:
                errors[check.name] = reason.__cause__
            return Outcome(UNJUDGED, str(reason))
        except NotImplementedError:
            return Outcome(UNJUDGED, "not implemented")
        except TooLong as error:
            return Outcome(UNJUDGED, f"it took {error}")
        except SystemExit:
            return Outcome(UNJUDGED, "it calls sys.exit")
        except Exception as error:  # whatever other people's code raises
            if theirs(error) and adapt(error):
                continue
            if check.crash and isinstance(error, CRASHES) and theirs(error):
                return Outcome(WRONG, f"it crashes: {one_line(error)}", "no exception")
            errors[check.name] = error
            return Outcome(UNJUDGED, one_line(error))


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, at most 160 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160].rstrip(": ")


def printable(text: str) -> str:
    """The text with escapes for control characters and for bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes (object, name, value) inside the block, and restore what was there."""
    missing = object()
    before = [(thing, name, vars(thing).get(name, missing)) for thing, name, _ in replacements]
    for thing, name, value in replacements:
        object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        for thing, name, value in before:
            if value is missing:
                object.__delattr__(thing, name)
            else:
                object.__setattr__(thing, name, value)


def without_dropout() -> contextlib.AbstractContextManager[None]:
    """Make dropout the identity inside the block: its noise would hide what is measured."""
    return replaced(*((F, name, lambda input, *args, **options: input) for name in DROPOUTS))


@contextlib.contextmanager
def changed_weights(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Restore these tensors after the block, whatever happens to them in it."""
    parameters = list(parameters)
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, saved):
            parameter.data.copy_(value)


def modules_of(*things: Any) -> list[nn.Module]:
    """The modules in these callables: themselves, whose methods they are, or what they refer to.

    Looks into partial functions, into what functions enclose and name, and into attributes of
    objects, a few levels deep.
    """
    found, seen = {}, set()

    def visit(thing, depth):
        if depth == 0 or id(thing) in seen or isinstance(thing, type):
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif isinstance(thing, functools.partial):
            parts = [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, types.MethodType):
            parts = [thing.__self__]
        elif isinstance(thing, types.FunctionType):
            named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
            parts = [n for n in named if isinstance(n, nn.Module | types.FunctionType)]
            with contextlib.suppress(ValueError):  # an enclosed name that has no value yet
                parts += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, list | tuple):
            parts = thing
        else:
            parts = list(getattr(thing, "__dict__", {}).values())
        if not isinstance(thing, nn.Module):
            for part in parts:
                visit(part, depth - 1)

    for thing in things:
        visit(thing, 6)
    return list(found.values())


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The leaves of the graph that these tensors come from."""
    found, seen = {}, set()
    nodes = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        nodes += [following for following, _ in node.next_functions if following is not None]
    return list(found.values())


@contextlib.contextmanager
def restored_modes(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Restore after the block which of these modules are in training mode."""
    modes = [(part, part.training) for part in parts]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore modules after the block: weights, buffers, precision, mode, plain attributes."""
    parts = [part for module in modules for part in nn.Module.modules(module)]
    tensors = {id(t): t for part in parts for t in part.parameters(recurse=False)}
    tensors |= {id(t.grad): t.grad for t in list(tensors.values()) if t.grad is not None}
    saved = [(tensor, tensor.data, tensor.data.clone()) for tensor in tensors.values()]
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in parts
        for name, buffer in part.named_buffers(recurse=False)
    ]
    flags = [
        (part, name, value)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | types.NoneType)
    ]
    try:
        with restored_modes(parts):
            yield
    finally:
        for tensor, data, value in saved:
            tensor.data = data.copy_(value)
        for part, name, buffer, value in buffers:
            setattr(part, name, buffer.copy_(value))
        for part, name, value in flags:
            vars(part)[name] = value


def perturb(parameters: Iterable[torch.Tensor], std: float, seed: int) -> None:
    """Add normal noise to tensors, from a generator of its own; it repeats after 65,537 numbers."""
    noise = std * torch.randn(65_537, generator=torch.Generator().manual_seed(seed))
    for parameter in parameters:
        n = parameter.numel()
        repeated = noise.repeat(-(-n // len(noise)))[:n].view(parameter.shape)
        parameter.data.add_(repeated.to(parameter.dtype))
        noise = noise.roll(n)


def float32_sum_error(value: float, n_terms: int = 784) -> float:
    """Bound on the rounding error of a float32 sum of n terms: n times 2^-24 times its size."""
    return n_terms * 2.0**-24 * max(1.0, abs(value))
