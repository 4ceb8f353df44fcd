"""`check_gan`: anyone's GAN, with stated losses or labels read off."""

import itertools
from collections.abc import Callable, Collection, Iterable

import torch
import torch.nn as nn

from gencheck.gan_checks import CHECKS, GanSubject
from gencheck.gan_losses import check_names
from gencheck.gan_observer import Observer
from gencheck.outcomes import CannotJudge
from gencheck.result import NotJudged, Result, judge

N_BATCHES = 10


def check_gan(
    step: Callable,
    generator: nn.Module,
    discriminator: nn.Module,
    batches: Iterable,
    *,
    d_loss: str | Callable | None = None,
    g_loss: str | Callable | None = None,
    image_range: tuple[float, float] | None = (-1.0, 1.0),
    weak_too: bool = False,
    allow_unjudged: Collection[str] = (),
    seed: int = 0,
) -> Result:
    """Check a GAN's training step by the gradients that its optimisers follow.

    The networks are trained in doing so, and the discriminator's last layer is rescaled once, so
    that its outputs differ between images. Dropout is off.

    Args:
        step: takes a batch and makes the steps of `torch.optim` optimisers.
        generator, discriminator: modules. They may take more arguments, such as labels: z and
            images are the first of floating point. D returns one number for each image, or the
            scores of two classes: logits, log-probabilities or probabilities.
        batches: what `step` takes, at least 10 with 16 images or more: real images, or a tuple
            with them in it.
        d_loss: of the discriminator: "bce", "lsgan", "hinge", "wgan", or a function (D(x),
            D(G(z))) -> loss. Gradient penalties beside it are recognised. Default: the labels of
            a cross-entropy are read off.
        g_loss: of the generator: "nonsaturating" or "bce", "saturating", "lsgan", "hinge", "wgan",
            or a function of D(G(z)), or of (D(x), D(G(z))). Default: as for `d_loss`.
        image_range: of the real images, which the generator's output should have; None leaves it.
        weak_too: weak findings are failures, too.
        allow_unjudged: checks that may stay without a verdict, such as ("stray_gradient",).
        seed: of the measurements, 0 to 999.

    Returns:
        All findings.

    Raises:
        CheckFailure: an AssertionError that lists what is wrong.
        NotJudged: something could not be measured; the message says what to pass.
        ValueError: there is no loss of that name.

    Example:
        >>> check_gan(train_step, generator, discriminator, batches)
        >>> check_gan(train_step, generator, critic, batches, d_loss="wgan", g_loss="wgan")

    References:
        Goodfellow et al., "Generative adversarial nets", 2014, Algorithm 1; Mao et al. 2017
        (least squares); Lim and Ye 2017 (hinge); Arjovsky et al. 2017 (Wasserstein).
    """
    check_names(d_loss, g_loss)
    if not torch.is_grad_enabled():
        raise NotJudged("check_gan is called under torch.no_grad(): it needs gradients")
    for name, module in (("generator", generator), ("discriminator", discriminator)):
        if not any(p.requires_grad for p in module.parameters()):
            raise NotJudged(f"the {name} has no weight with a gradient: pass it unfrozen")
    new, used = iter(batches), []

    def watch(seed):
        seen = 0
        with Observer(generator, discriminator, d_loss=d_loss, g_loss=g_loss) as observer:
            for batch in itertools.chain(new, used.copy()):  # a second training may use them again
                used.append(batch)
                seen += 1
                observer.saw_batch(batch)
                step(batch)
        if not observer.total:
            raise CannotJudge(
                f"no optimiser of torch.optim made a step in {seen} batches: pass the function "
                "that trains"
            )
        if seen < N_BATCHES and not observer.has_enough:
            raise CannotJudge(f"{seen} batches are too few: pass at least {N_BATCHES}")
        return observer

    left_out = {"smoothing", "discriminator_range"} if d_loss is not None else set()
    left_out |= {"generator_range", "image_scale"} if image_range is None else set()
    checks = [c for c in CHECKS if c.name not in left_out]
    subject = GanSubject(watch, image_range=image_range)
    return judge("gan", subject, checks, weak_too, allow_unjudged, seed)
