"""What is measured of a VAE (Kingma & Welling, "Auto-Encoding Variational Bayes", 2014)."""

import contextlib
import math

import numpy as np
import torch

from gencheck.layers import layers_outcome
from gencheck.modules import changed_weights, perturb, place_of, replaced
from gencheck.outcomes import (
    NOTE,
    PASS,
    WEAK,
    WRONG,
    CannotJudge,
    Outcome,
    load_checks,
    seed_everything,
)
from gencheck.vae_calls import latents_of, outputs_of
from gencheck.vae_heads import kl_divergence, kl_of_draw
from gencheck.vae_kl import OF_ONE_DRAW, choose_loss, kl, kl_of_draws
from gencheck.vae_nll import Likelihood
from gencheck.vae_subject import NotCentred


def _shapes(vae):
    mean, head = vae.encoded[:2]
    output = vae.decode(vae.prior_draws(len(vae.batch)))
    parts = outputs_of(output)
    expected = f"two of [{len(vae.batch)}, z_dim]; {vae.dim} means in [0, 1], or logits, per image"
    shapes = f"encoder {list(mean.shape)}, {list(head.shape)}; decoder {list(parts[0].shape)}"
    if not vae.likelihood.is_bernoulli:
        expected = f"two of [{len(vae.batch)}, z_dim]"
    right = (
        mean.shape == head.shape
        and mean.dim() == 2
        and len(mean) == len(vae.batch)
        and (not vae.likelihood.is_bernoulli or parts[0].numel() == vae.dim * len(vae.batch))
    )
    return Outcome(
        PASS if right else WRONG, shapes, expected if vae.likelihood.is_bernoulli else ""
    )


def _loss(vae):
    x = vae.batch
    choose_loss(vae)
    c, c_twice, residual = vae.slopes()
    if residual > 4 * vae.tolerance * abs(c):
        raise CannotJudge(
            f"the loss is no multiple of recon plus KL: {residual:.3g} nats remain"
            f"{_other_likelihood(vae)}"
        )
    if vae.likelihood.has_free_scale():
        summed = abs(vae.factor(c)) == len(x)
        words = f"{'sum over' if summed else 'average over'} the batch's images, variance "
        words += f"{abs(vae.factor(c) / c):.3g}"
        return Outcome(WEAK if summed else PASS, words, "the average over images")
    if c < 0:
        c, c_twice = -c, -c_twice
        if abs(c - 1) < 1e-3:
            return Outcome(NOTE, "the loss is the ELBO itself, to be maximised", "its negative")
    n, dim = len(x), vae.dim
    factors = {1: "", n: "the sum over", 1 / dim: "the average over pixels and"}
    words = next((w for f, w in factors.items() if abs(c / f - 1) < 1e-3), f"{c:.4g} times that of")
    if abs(c - 1) < 1e-3 and abs(c_twice - 1) < 1e-3:
        read = f" ({vae.reading} of what is returned)" if vae.reading else ""
        return Outcome(PASS, f"{c:.4f} times the average reconstruction of a batch{read}", "1")
    return Outcome(WEAK, f"the loss is {words} the batch's images", "the average over images")


def _other_likelihood(vae) -> str:
    """A likelihood of another name that the loss follows, in words."""
    if not vae.likelihood.is_bernoulli:
        return ""
    stated = vae.likelihood
    vae.likelihood = vae.__dict__["_likelihood"] = Likelihood("gaussian")
    try:
        c, _, residual = vae.recon_and_kl(vae.batch, n=6, seed=vae.seed)
        fits = abs(c) > 1e-9 and residual < 4 * vae.tolerance * abs(c)
    except CannotJudge:
        fits = False
    finally:
        vae.likelihood = vae.__dict__["_likelihood"] = stated
    return "; it follows the squared error: if that is meant, pass nll='gaussian'" if fits else ""


def _likelihood(vae):
    """The loss follows the likelihood when the decoder's outputs change."""
    c, _, residual = vae.slopes()
    tolerance = 4 * vae.tolerance * abs(c)
    times = "" if abs(c - 1) < 1e-3 else f"{c:.3g} times "
    measured = (
        f"beside {times}-log p(x|z) the loss has a part that changes by {residual:.2g} nats with "
        "the decoder's weights"
    )
    expected = f"below {tolerance:.2g} nats: the KL does not depend on the decoder"
    if residual < tolerance:
        return Outcome(PASS, measured, expected)
    return Outcome(WRONG, measured + _other_likelihood(vae), expected)


def _kl(vae):
    """The KL, measured once for each batch."""
    if vae.seed not in vae.kl_outcomes:
        vae.kl_outcomes[vae.seed] = kl(vae)
    return vae.kl_outcomes[vae.seed]


def _gradient(vae):
    kl_outcome = _kl(vae)
    if kl_outcome.status != PASS:
        raise CannotJudge("the KL is wrong, or not judged, so its gradient is not judged either")
    x, (encoder, decoder) = vae.batch, vae.parameters
    with vae.encoder_setting(1):
        c, _, _ = vae.recon_and_kl(x, seed=vae.seed)
        factor = vae.factor(c) * vae.beta
        draw = vae.draw(x)
        gradient = _flat(torch.autograd.grad(draw.loss, encoder + decoder, allow_unused=True))
        mean, std = vae.posterior.of(vae.outputs(x))
        eps = ((draw.z.reshape(mean.shape) - mean) / std).detach()
        z = mean + std * eps
        nll = vae.nll(vae.decode(z.reshape(draw.z.shape)), x)
        of_one_draw = kl_outcome.measured == OF_ONE_DRAW
        divergence = kl_of_draw(z, eps, std) if of_one_draw else kl_divergence(mean, std)
        reference = (c * nll + factor * divergence).mean()
        exact = _flat(torch.autograd.grad(reference, encoder + decoder, allow_unused=True))
        nll = vae.nll(vae.decode(draw.z.detach()), x)
        cut = (c * nll + factor * kl_divergence(*vae.posterior.of(vae.outputs(x)))).mean()
        cut = _flat(torch.autograd.grad(cut, encoder + decoder, allow_unused=True))
    if not exact.isfinite().all():
        raise CannotJudge("the true gradient is not finite: the standard deviation is 0")
    error = ((gradient - exact).norm() / exact.norm()).item()
    if error < 1e-3:
        return Outcome(PASS, f"it is the true one, to {error:.1g} of its size")
    if of_one_draw:
        raise CannotJudge("a KL of one draw has unbiased gradients of several forms")
    detached = (gradient - cut).norm() < 1e-3 * cut.norm()
    words = ": the reconstruction has no gradient with respect to the encoder" if detached else ""
    measured = f"it differs from the true gradient by {error:.2g} times its size{words}"
    return Outcome(WRONG, measured, "below 0.001 times")


def _flat(gradients):
    return torch.cat([g.flatten().double() for g in gradients if g is not None])


def _std_positive(vae):
    with torch.no_grad():
        _, std = vae.posterior.of(vae.outputs(vae.x))
    zero = (std == 0).double().mean().item()
    if zero == 0:
        return Outcome(PASS, f"the standard deviation is at least {std.min():.2g}", "above 0")
    return Outcome(
        WRONG,
        f"the standard deviation is exactly 0 in {zero:.0%} of the latent dimensions (the encoder "
        f"returns {vae.posterior.meaning}): the KL is infinite there",
        "above 0, as from exp or softplus",
    )


def _noise_per_image(vae):
    _, shared = vae.latents_of_batch()
    if not shared:
        return Outcome(PASS, "the noise differs between equal images of a batch")
    z = [vae.draw(vae.batch).z for _ in range(2)]
    if (z[0] == z[1]).all():
        raise CannotJudge("z is the same on every call, so no noise is seen")
    return Outcome(
        WEAK,
        "one noise vector for all images of a batch: each image's ELBO stays unbiased, "
        "the batch's varies more",
        "noise of its own for every image",
    )


def _noise_per_dimension(vae):
    z, _ = vae.latents_of_batch()
    eps = (z - z.mean(dim=0)) / (z.std(dim=0) + 1e-12)
    eps = eps.flatten(0, 1)[:, z.std(dim=0).min(dim=0).values > 1e-6]
    if eps.shape[1] < 2:
        raise CannotJudge("fewer than two latent dimensions vary")
    correlation = torch.corrcoef(eps.T).fill_diagonal_(0).abs().max().item()
    measured = f"correlation of the noise of two dimensions at most {correlation:.2f}"
    # The largest of some 200 correlations of 256 independent draws or more is below 0.4.
    return Outcome(PASS if correlation < 0.4 else WRONG, measured, "below 0.4")


def _noise_per_call(vae):
    first, second = (vae.draw(vae.batch).z for _ in range(2))
    change = (first - second).abs().max().item()
    measured = f"z changes by {change:.2g} between two calls on the same images"
    return Outcome(PASS if change > 1e-6 else WRONG, measured, "new noise on every call")


def _noise_in_evaluation(vae):
    for module in vae.modules:
        module.eval()
    try:
        first, second = (vae.draw(vae.batch).z for _ in range(2))
    finally:
        for module in vae.modules:
            module.train()
    if (first - second).abs().max() > 1e-6:
        return Outcome(PASS, "z is drawn in evaluation mode too")
    return Outcome(
        WRONG,
        "z has no noise in evaluation mode, so validation reports no bound on log p(x)",
        "a draw from q(z|x)",
    )


def _moments(vae):
    try:
        return Outcome(
            PASS, f"z = mu + sigma eps; the encoder's other output is {vae.posterior.meaning}"
        )
    except NotCentred as reason:
        kl_of_draws(vae)  # CannotJudge if it fits: the mean is then a function of an output
        return Outcome(WRONG, str(reason), "z = mu + sigma eps, eps ~ N(0, 1)")


def _stable(vae):
    decoder = vae.parameters[1]
    with vae.finite(), changed_weights(decoder):
        if not vae.draw(vae.batch).loss.isfinite():
            raise CannotJudge("the loss is infinite before any mean saturates")
        for parameter in decoder:
            parameter.data.mul_(8)
        perturb(decoder, 2.0, seed=vae.seed)
        loss = vae.draw(vae.batch).loss
        gradient = _flat(torch.autograd.grad(loss, decoder, allow_unused=True))
    if loss.isfinite() and gradient.isfinite().all():
        return Outcome(PASS, "loss and gradient are finite where the means saturate")
    what = "its gradient" if loss.isfinite() else "the loss"
    measured = f"where the decoder's means round to 0 or 1, {what} is infinite or no number"
    expected = "finite: the binary cross-entropy of logits, or logarithms that are clamped"
    return Outcome(WEAK, measured, expected)


def _decoder_blind(vae):
    """With a constant q(z|x), the loss must change with x as -x . logit does."""
    x, other = vae.batch, vae.other_batch
    place = place_of(vae.encode)
    with vae.finite():
        c, _, _ = vae.recon_and_kl(x, seed=vae.seed)
        with torch.no_grad():
            constant = vae.encode(vae.to_encoder(x))
    calls = []

    def encode(*args, **options):
        calls.append(args)
        return constant

    with replaced((*place, encode)), torch.no_grad():
        draws = [vae.draw(images, seed=vae.seed) for images in (x, other)]
    if len(calls) < len(draws):
        raise CannotJudge("the loss doesn't call the encoder as a whole")
    change = (draws[1].loss - draws[0].loss).item()
    expected = c * (draws[1].nll.mean() - draws[0].nll.mean()).item()
    same_z = (draws[0].z - draws[1].z).abs().max() < 1e-6
    right = same_z and abs(change - expected) < 4 * vae.tolerance * abs(c)
    measured = f"the loss changes by {change:.3f} nats between images at the same q(z|x)"
    return Outcome(PASS if right else WRONG, measured, f"{expected:.3f}, as -log p(x|z) does")


def _layers(vae):
    def run():
        # The check of `sample` says what is wrong with it.
        with contextlib.suppress(Exception, SystemExit):
            if vae.sample is not None:
                with vae.single_precision():
                    vae.sample(4)
        decoded = outputs_of(vae.decode(vae.prior_draws(len(vae.batch))))
        loss = [vae.draw(vae.batch).loss]
        return {"encoder": vae.encoded, "decoder": decoded, "": loss}

    return layers_outcome(vae.networks, run)


def _sample(vae):
    expected = "z ~ N(0, I), binary draws and their means"
    if vae.sample is None:
        words = "there is no `sample` that draws images from the model"
        return Outcome(WRONG, words, f"sample(n): {expected}")
    n = 200
    seed_everything(vae.seed)
    with vae.single_precision(), vae.spied() as calls, torch.no_grad():
        returned = vae.sample(n)
    returned = returned if isinstance(returned, tuple | list) else [returned]
    returned = [torch.as_tensor(r) if isinstance(r, np.ndarray) else r for r in returned]
    images = [r.detach().double() for r in returned if isinstance(r, torch.Tensor)]
    if not images:
        raise CannotJudge(f"sample returns no tensor, but {type(returned[0]).__name__}")
    images = [r.reshape(n, -1) for r in images if r.numel() == vae.dim * n]
    binary = [r for r in images if ((r == 0) | (r == 1)).all()]
    means = [r for r in images if not ((r == 0) | (r == 1)).all()]
    problems = []
    if any(calls.values()):
        z = latents_of(calls)[0].detach().double().flatten(0, -2)
        if abs(z.mean()) > 6 / math.sqrt(z.numel()) or abs(z.var() - 1) > 9 / math.sqrt(z.numel()):
            problems.append(f"z has mean {z.mean():.2f}, variance {z.var():.2f}")
        elif len(z) > 1 and (z.std(dim=0) < 1e-6).any():
            problems.append("all latents are the same")
    if not binary:
        problems.append("no binary images are returned")
    if not means:
        problems.append("no means of all images are returned")
    if binary and means:
        # Draws differ from their means by sum m (1 - m) on average.
        spread = (means[0] * (1 - means[0])).sum()
        z_score = min(
            ((draws - means[0]).square().sum() - spread).abs() / (spread.sqrt() + 1e-9)
            for draws in binary
        )
        if means[0].min() < 0 or means[0].max() > 1:
            problems.append("means outside [0, 1]")
        elif z_score > 8:
            problems.append("the binary images are no draws from the means")
    return Outcome(WRONG if problems else PASS, "; ".join(problems) or expected, expected)


def _seeded(vae):
    losses = [vae.draw(vae.batch, seed=vae.seed).loss.item() for _ in range(2)]
    same = losses[0] == losses[1]
    measured = f"two calls with the same seed return {losses[0]:.4f} and {losses[1]:.4f}"
    return Outcome(PASS if same else NOTE, measured, "equal losses")


CHECKS = load_checks(
    "vae",
    {
        "shapes": _shapes,
        "loss": _loss,
        "likelihood": _likelihood,
        "kl": _kl,
        "gradient": _gradient,
        "std_positive": _std_positive,
        "moments": _moments,
        "noise_per_image": _noise_per_image,
        "noise_per_dimension": _noise_per_dimension,
        "noise_per_call": _noise_per_call,
        "noise_in_evaluation": _noise_in_evaluation,
        "stable": _stable,
        "decoder_blind": _decoder_blind,
        "layers": _layers,
        "sample": _sample,
        "seeded": _seeded,
    },
)
