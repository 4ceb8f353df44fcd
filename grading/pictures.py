"""Samples of a submission, and the check of how it draws its own."""

import functools

import torch

from gencheck.outcomes import NOTE, PASS, Outcome
from grading.checks import load_checks

N_SIDE = 4  # images along a side of the grid that a page shows


class Pictures(list):
    """Of each picture that is saved, whether the generator was in training mode as it last drew."""

    def __init__(self):
        super().__init__()
        self._drawn_in_training = None

    def watch(self, kind: type | None) -> None:
        """Watch all instances of a class of generators, whichever way their `forward` is called."""
        if kind is None:
            return
        forward = kind.forward

        @functools.wraps(forward)
        def watched(module, *args, **options):
            self._drawn_in_training = module.training
            return forward(module, *args, **options)

        kind.forward = watched

    def on_picture(self) -> None:
        """Note the mode; none before the generator has drawn."""
        if self._drawn_in_training is not None:
            self.append(self._drawn_in_training)


def _pictures(gan):
    _ = gan.seen
    if not gan.pictures:
        return Outcome(PASS, "no picture saved in the steps that were watched")
    if any(gan.pictures):
        return Outcome(NOTE, "pictures are drawn in training mode", "evaluation mode")
    return Outcome(PASS, "pictures are drawn in evaluation mode")


CHECKS = load_checks("gan", {"pictures": _pictures})


def samples(model: str, subject) -> torch.Tensor:
    """Generated images [16, 784] with values in [0, 1].

    Args:
        model: "vae", "nf" or "gan".
        subject: what was measured.
    """
    n = N_SIDE * N_SIDE
    with torch.no_grad():
        if model == "gan":
            z = subject.seen.latents[-1][:n]
            images = (subject.seen.g.module.eval()(z) + 1) / 2
        elif model == "vae":
            images = subject.sample(n)
        else:
            images = subject.model.sample(n)
    images = images[0] if isinstance(images, tuple | list) else images
    images = images.float().reshape(n, 784)
    return (images / 255 if images.max() > 1.5 else images).clamp(0, 1)
