"""The KL of a VAE as it is coded, against the closed form for the q(z|x) that z really follows."""

import math

import torch

from gencheck.outcomes import PASS, WRONG, CannotJudge, Outcome, float32_sum_error
from gencheck.vae_heads import UNKNOWN_HEAD, kl_divergence, kl_of_draw
from gencheck.vae_loss import readings
from gencheck.vae_subject import N_IMAGES

KL_SETTINGS = 14  # of the encoder, with other means and deviations
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
        fits = abs(c) > 1e-5 and residual < 4 * float32_sum_error(600 * abs(c))
        return c if fits and kl(vae).status == PASS else 0.0
    except CannotJudge:
        return 0.0


def _kl_of(vae, posterior):
    """The KL against the closed form; None where draws of z show another deviation."""
    rows, coded, settings = [], [], []
    for i in range(KL_SETTINGS):
        with vae.encoder_setting(i), torch.no_grad():
            mean, std = (part.double() for part in posterior.of(vae.outputs(vae.batch)))
            if std.min() < 1e-2 or std.max() > 8:
                continue
            value = _coded(vae)
            if value is None:
                continue
            coded.append(value)
            settings.append(i)
            terms = (std.square(), std, mean.square(), std.log(), torch.ones_like(std))
            rows.append([term.sum(dim=1).mean().item() for term in terms])
    if len(coded) < 4:
        return _kl_of_one_draw(vae)
    rows, coded = torch.tensor(rows).double(), torch.tensor(coded).double()
    exact = rows @ torch.tensor([0.5, 0, 0.5, -1, -0.5]).double()
    error = (coded - exact).abs()
    tolerance = 5e-4 * exact.abs() + 2 * float32_sum_error(600)
    if (error < tolerance).all():
        return Outcome(
            PASS, f"the closed form, to {error.max():.1g} nats; the head is {posterior.meaning}"
        )
    worst = error.argmax()
    with vae.encoder_setting(settings[worst]):
        drawn, error = drawn_kl(vae, vae.batch)
    if abs(coded[worst] - drawn) < error or abs(exact[worst] - drawn) > error:
        return None
    return Outcome(
        WRONG,
        f"{coded[worst]:.2f} nats: {_kl_in_words(rows, coded, exact)} "
        f"(z shows that the head is {posterior.meaning})",
        f"{exact[worst]:.2f}: 1/2 sum(sigma^2 + mu^2 - log sigma^2 - 1)",
    )


def _coded(vae) -> float | None:
    """The KL as it is coded; None where the loss is no finite sum of reconstruction and KL."""
    try:
        c, k, residual = vae.recon_and_kl(vae.batch)
    except CannotJudge:
        return None
    return None if residual > 4 * float32_sum_error(600 * abs(c)) else k / (c or 1.0)


def kl_of_draws(vae):
    """The KL of a mean and deviation that only draws show: it is wrong where it clearly differs.

    Raises:
        CannotJudge: it does not.
    """
    for i in (1, 4, 5):
        with vae.encoder_setting(i), torch.no_grad():
            coded, (drawn, error) = _coded(vae), drawn_kl(vae, vae.batch)
        if coded is not None and math.isfinite(drawn) and abs(coded - drawn) > error:
            return Outcome(
                WRONG,
                f"{coded:.2f} nats for the distribution that z is drawn from",
                f"about {drawn:.2f}: 1/2 sum(sigma^2 + mu^2 - log sigma^2 - 1)",
            )
    raise CannotJudge(UNKNOWN_HEAD)


def _kl_of_one_draw(vae):
    """The KL estimated from the drawn z itself, log q(z|x) - log p(z), is unbiased."""
    with torch.no_grad(), vae.encoder_setting(0):
        mean, std = (part.double() for part in vae.posterior.of(vae.outputs(vae.batch)))
        c, k, residual = vae.recon_and_kl(vae.batch, seed=vae.seed)
        z = vae.draw(vae.batch, vae.seed).z
        estimate = kl_of_draw(z, (z - mean) / std, std).mean().item()
    tolerance = 4 * float32_sum_error(600 * abs(c))
    if residual < tolerance and abs(k - c * estimate) < tolerance:
        return Outcome(PASS, OF_ONE_DRAW)
    raise CannotJudge(
        "the standard deviation is 0, the loss is not finite, or it is not reconstruction plus KL"
    )


@torch.no_grad()
def drawn_kl(vae, x) -> tuple[float, float]:
    """The KL in nats of what draws of z show, averaged over images; its error.

    The error is five standard errors (with n draws the mean has the variance std^2 / n, log std
    1 / (2 n)) and twice the bias of log std.
    """
    z, shared = vae.latents(x)
    n, mean, std = len(z), z.mean(dim=0), z.std(dim=0)
    kl = kl_divergence(mean, std) - std.square().sum(dim=1) / (2 * n)  # the mean's own noise
    variances = (std.square() - 1).square() / (2 * n) + (mean * std).square() / n
    of_image = variances.sum(dim=1).sqrt()
    error = of_image.mean() if shared else of_image.norm() / len(x)
    return kl.mean().item(), 5 * error.item() + std.shape[1] / n


def _kl_in_words(rows, coded, exact) -> str:
    """Which formula was coded, by least squares."""
    batch, z_dim = N_IMAGES, rows[0, 4].item()
    ratio = ((coded @ exact) / exact.square().sum()).item()
    if (coded - ratio * exact).abs().max() < 1e-2 * exact.abs().max() * abs(ratio) + 1e-2:
        words = {
            -1: "the sign is wrong",
            2: "without the factor one half",
            1 / z_dim: "averaged over the latent dimensions",
            batch: "summed over the batch, beside an averaged reconstruction",
            1 / batch: "averaged over the batch twice",
            batch / z_dim: "averaged over the latent dimensions, summed over the batch",
            1 / (batch * z_dim): "averaged over batch and latent dimensions",
            0: "there is none",
        }
        known = [
            w for factor, w in words.items() if abs(ratio - factor) < 0.02 * abs(factor) + 1e-3
        ]
        return f"{' or '.join(known) or 'a factor is wrong'}, {ratio:.3g} times the KL"
    coefficients = torch.linalg.lstsq(rows, coded[:, None]).solution[:, 0]
    quarters = (4 * coefficients[:4]).round() / 4  # a formula in a program has such factors
    error = (rows[:, :4] @ (coefficients[:4] - quarters)).abs()
    if (error > 2e-2 * (1 + coded.abs())).any():
        return "no combination of sigma^2, sigma, mu^2, log sigma"
    names = ("sigma^2", "sigma", "mu^2", "log sigma", "1")
    terms = [f"{c:+.2f} {name}" for c, name in zip(coefficients.tolist(), names) if abs(c) > 0.004]
    missing_square = abs(coefficients[0]) < 0.02 < abs(coefficients[1])
    words = "the standard deviation stands where the variance belongs: " if missing_square else ""
    return f"{words}sum({' '.join(terms)})"
