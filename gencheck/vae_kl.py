"""The KL of a VAE as it is coded, against the closed form for the q(z|x) that z really follows."""

import contextlib
import math

import torch

from gencheck.outcomes import PASS, WRONG, CannotJudge, Outcome
from gencheck.vae_heads import MEANINGS, UNKNOWN_HEAD, kl_divergence, kl_of_draw
from gencheck.vae_loss import readings
from gencheck.vae_subject import LARGE, drawn_kl_of

KL_SETTINGS = 14  # of the encoder, with other means and deviations
LARGEST = 8  # coefficient that a formula in a program has
DRAWS = 3  # of z, with which an estimate from the draw itself must agree
OF_ONE_DRAW = "log q(z|x) - log p(z) of the draw, an unbiased estimate"


def kl(vae):
    """The KL for the likeliest reading of the encoder's outputs that it agrees with."""
    outcomes = []
    for posterior in list(vae.posteriors):
        outcome = _kl_of(vae, posterior)
        if outcome is None:
            vae.posteriors.remove(posterior)
        elif outcome.status == PASS:
            vae.prefer(posterior)
            return outcome
        else:
            outcomes.append(outcome)
    return outcomes[0] if outcomes else kl_of_draws(vae)


def choose_loss(vae) -> None:
    """Read what the loss returns as a negative ELBO if one of its `readings` is one.

    Multiples of it come last. Where none is one, the likeliest reading is judged.
    """
    names, factors = list(readings(vae.loss(vae.batch.clone()))), {}
    if len(names) == 1:
        return
    for name in names:
        vae.read_as(name)
        factors[name] = _elbo_factor(vae)
        if abs(abs(factors[name]) - 1) < 1e-3:
            return
    vae.read_as(next((name for name, c in factors.items() if c != 0), ""))


def _elbo_factor(vae) -> float:
    """c where the loss is c times the negative ELBO, 0 where it is no multiple of it."""
    try:
        with vae.finite():
            c, _, residual = vae.recon_and_kl(vae.batch, seed=vae.seed)
        fits = abs(c) > 1e-5 and residual < 4 * vae.tolerance * abs(c)
        return c if fits and kl(vae).status == PASS else 0.0
    except CannotJudge:
        return 0.0


def _kl_of(vae, posterior):
    """The KL against the closed form; None where draws of z show another deviation."""
    rows, coded, settings, c = [], [], [], 1.0
    others = {name: [] for name in MEANINGS if name != posterior.meaning}
    like = None
    with contextlib.suppress(CannotJudge):
        like = vae.slopes()[0]
    for i in range(KL_SETTINGS if vae.dim <= LARGE else KL_SETTINGS // 2):
        for setting in ((i, scale) for scale in vae.noise_scales):
            with vae.encoder_setting(*setting), torch.no_grad():
                outputs = [part.double() for part in vae.outputs(vae.batch)]
                mean, std = posterior.of(outputs)
                if not (std.min() >= 1e-2 and std.max() <= 8):
                    continue
                value = _coded(vae, like)
            if value is not None:
                coded.append(value[0])
                c = value[1]
                settings.append(setting)
                terms = (std.square(), std, mean.square(), std.log(), torch.ones_like(std))
                rows.append([term.sum(dim=1).mean().item() for term in terms])
                for name, values in others.items():
                    values.append(kl_divergence(*vae.as_meaning(name).of(outputs)).mean().item())
            break
    if len(coded) < 4:
        return _kl_of_one_draw(vae)
    rows, coded = torch.tensor(rows).double(), torch.tensor(coded).double()
    exact = vae.beta * rows @ torch.tensor([0.5, 0, 0.5, -1, -0.5]).double()
    tolerance = 5e-4 * exact.abs() + 2 * vae.tolerance * abs(c / vae.factor(c))
    for words, constant in _constants(vae, c).items():
        error = (coded - constant - exact).abs()
        if (error < tolerance).all():
            if not _is_drawn(vae, settings, exact, others):
                return None
            measured = f"the closed form{words}, to {error.max():.1g} nats"
            return Outcome(PASS, f"{measured}; the encoder's other output is {posterior.meaning}")
    worst = (coded - exact).abs().argmax()
    with vae.encoder_setting(*settings[worst]):
        drawn, error = drawn_kl(vae, vae.batch)
    if abs(coded[worst] - drawn) < error or abs(exact[worst] - drawn) > error:
        return None
    expected = "1/2 sum(sigma^2 + mu^2 - log sigma^2 - 1)"
    taken = [name for name, values in others.items() if _is_beta_times(vae, values, coded, c)]
    words = f"{_kl_in_words(vae, rows, coded, exact)} (draws of z show that the encoder's other "
    words += f"output is {posterior.meaning})"
    if taken:
        words = f"your KL takes the encoder's other output as {taken[0]}, your sampling takes it "
        words += f"as {posterior.meaning}"
    return Outcome(
        WRONG,
        f"{coded[worst]:.2f} nats: {words}",
        f"{exact[worst]:.2f} nats: {'' if vae.beta == 1 else f'{vae.beta:g} times '}{expected}",
    )


def _is_drawn(vae, settings, exact, others) -> bool:
    """Whether draws of z agree where other likely readings of the head differ most from this one.

    At a new encoder's weights many readings give nearly the same deviations.
    """
    likely = [others[p.meaning] for p in vae.posteriors if p.meaning in others]
    if not likely:
        return True
    differences = (vae.beta * torch.tensor(likely).double() - exact).abs().nan_to_num()
    i = differences.amax(dim=0).argmax()
    with vae.encoder_setting(*settings[i]):
        drawn, error = drawn_kl(vae, vae.batch)
    return bool(abs(exact[i] - drawn) <= error)


def _is_beta_times(vae, values, coded, c) -> bool:
    """Whether the coded KL is that of another reading of the head, at every setting."""
    values = vae.beta * torch.tensor(values).double()
    tolerance = 5e-4 * values.abs() + 2 * vae.tolerance * abs(c / vae.factor(c))
    return bool(((coded - values).abs() < tolerance).all())


def _constants(vae, c) -> dict[str, float]:
    """What a Gaussian's normalisation may add to the KL, in nats, by words."""
    if not vae.likelihood.has_free_scale():
        return {"": 0.0}
    log_variance = math.log(abs(vae.factor(c) / c))
    half = vae.dim / 2
    return {
        "": 0.0,
        " beside D/2 log sigma^2": half * log_variance,
        " beside D/2 log(2 pi)": half * math.log(2 * math.pi),
        " beside D/2 log(2 pi sigma^2)": half * (math.log(2 * math.pi) + log_variance),
    }


def _coded(vae, like=None) -> tuple[float, float] | None:
    """The KL as it is coded, and c of the reconstruction; None where they are no finite sum."""
    try:
        c, k, residual = vae.recon_and_kl(vae.batch, like=like)
    except CannotJudge:
        return None
    return None if residual > 4 * vae.tolerance * abs(c) else (k / (vae.factor(c) or 1.0), c)


def kl_of_draws(vae):
    """The KL of a mean and deviation that only draws show: it is wrong where it clearly differs.

    Raises:
        CannotJudge: it does not.
    """
    for i in (1, 4, 5):
        with vae.encoder_setting(i), torch.no_grad():
            value, (drawn, error) = _coded(vae), drawn_kl(vae, vae.batch)
        if value is None or not math.isfinite(drawn):
            continue
        if all(abs(value[0] - k - drawn) > error for k in _constants(vae, value[1]).values()):
            return Outcome(
                WRONG,
                f"{value[0]:.2f} nats for the distribution that z is drawn from",
                f"about {drawn:.2f} nats: 1/2 sum(sigma^2 + mu^2 - log sigma^2 - 1)",
            )
    raise CannotJudge(UNKNOWN_HEAD)


def _kl_of_one_draw(vae):
    """The KL estimated from the drawn z itself, log q(z|x) - log p(z), is unbiased.

    Another sum may agree with one draw by chance, so several must.
    """
    if all(_fits_one_draw(vae, i) for i in range(DRAWS)):
        return Outcome(PASS, OF_ONE_DRAW)
    raise CannotJudge(
        "the standard deviation is 0, the loss is not finite, or it is not reconstruction plus KL"
    )


def _fits_one_draw(vae, i: int) -> bool:
    """Whether the loss is the reconstruction and the estimate of a draw, at setting i."""
    seed = vae.seed + 1000 * i  # seeds of checks are below 1000
    with torch.no_grad(), vae.encoder_setting(i):
        mean, std = (part.double() for part in vae.posterior.of(vae.outputs(vae.batch)))
        c, k, residual = vae.recon_and_kl(vae.batch, seed=seed)
        z = vae.draw(vae.batch, seed).z.reshape(mean.shape)
        estimate = vae.beta * kl_of_draw(z, (z - mean) / std, std).mean().item()
    tolerance, factor = 4 * vae.tolerance * abs(c), vae.factor(c)
    constants = _constants(vae, c).values() if c else [0.0]
    fits = any(abs(k - factor * (estimate + constant)) < tolerance for constant in constants)
    return residual < tolerance and fits


def drawn_kl(vae, x) -> tuple[float, float]:
    """beta times the KL in nats of what draws of z show, averaged over images; its error."""
    return tuple(abs(vae.beta) * value for value in drawn_kl_of(vae, x))


def _kl_in_words(vae, rows, coded, exact) -> str:
    """Which formula was coded, by least squares."""
    ratio = ((coded @ exact) / exact.square().sum()).item()
    if (coded - ratio * exact).abs().max() < 1e-2 * exact.abs().max() * abs(ratio) + 1e-2:
        known = [
            words
            for words, factor in _factors(vae).items()
            if abs(ratio - factor) < 0.02 * abs(factor) + 1e-3
        ]
        words = " or ".join(known) or f"a factor is wrong, or pass beta={ratio * vae.beta:.3g}"
        return f"{words}, {ratio:.3g} times the KL"
    coefficients = torch.linalg.lstsq(rows, coded[:, None]).solution[:, 0]
    quarters = (4 * coefficients[:4]).round() / 4  # a formula in a program has such factors
    error = (rows[:, :4] @ (coefficients[:4] - quarters)).abs()
    if (error > 2e-2 * (1 + coded.abs())).any() or quarters.abs().max() > LARGEST:
        return "no combination of sigma^2, sigma, mu^2, log sigma"
    names = (" sigma^2", " sigma", " mu^2", " log sigma", "")
    terms = [f"{c:+.2f}{name}" for c, name in zip(coefficients.tolist(), names) if abs(c) > 0.004]
    missing_square = abs(coefficients[0]) < 0.02 < abs(coefficients[1])
    words = "the standard deviation stands where the variance belongs: " if missing_square else ""
    return f"{words}sum({' '.join(terms)})"


def _factors(vae) -> dict[str, float]:
    """By words, the factors on the KL that slips with sums and averages leave."""
    n, z_dim, dim = len(vae.batch), vae.z_dim, vae.dim
    factors = {
        "the sign is wrong": -1.0,
        "without the factor one half": 2.0,
        "there is none": 0.0,
        "averaged over the latent dimensions": 1 / z_dim,
        "summed over the batch, beside an averaged reconstruction": float(n),
        "averaged over the batch twice": 1 / n,
        "averaged over the latent dimensions, summed over the batch": n / z_dim,
        "averaged over batch and latent dimensions": 1 / (n * z_dim),
    }
    if vae.likelihood.has_free_scale():
        return factors
    return factors | {
        f"{dim}: the reconstruction is averaged over pixels, the KL is a sum": float(dim),
        f"{dim}/{z_dim}: averaged over pixels and latents": dim / z_dim,
        f"{dim}*{n}: the reconstruction is averaged over pixels and batch": float(dim * n),
        f"{dim}/{n}: the reconstruction is averaged over pixels, the KL over the batch twice":
            dim / n,
        f"{dim}/({z_dim}*{n}): averaged over pixels and latents, the KL over the batch twice":
            dim / (z_dim * n),
    }  # fmt: skip
