"""-log p(x|z) of a decoder's output, for the likelihoods that VAEs use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.distributions import Distribution

from gencheck.outcomes import CannotJudge
from gencheck.vae_heads import MEANINGS

NAMES = ("bernoulli", "gaussian", "categorical")


class Likelihood:
    """p(x|z) as a VAE states it.

    Args:
        kind: one of `NAMES`, or a function (decoder's output, x) -> -log p(x|z) [batch].

    Attributes:
        logits: of a Bernoulli likelihood: whether the decoder returns logits instead of means.
        meaning: of a Gaussian one with a learned deviation: what the second output means.
    """

    def __init__(self, kind: str | Callable = "bernoulli"):
        if kind not in NAMES and not callable(kind):
            raise ValueError(f"nll={kind!r}: pass one of {', '.join(NAMES)}, or a function")
        self.kind = kind
        self.logits = False
        self.meaning = "the log variance"
        self.is_pair = False

    @property
    def is_bernoulli(self) -> bool:
        """Whether it is stated as one."""
        return self.kind == "bernoulli"

    def has_free_scale(self) -> bool:
        """Whether a fixed variance, which nobody states, multiplies the squared error."""
        return self.kind == "gaussian" and not self.is_pair

    def of(self, output, x: torch.Tensor) -> torch.Tensor:
        """-log p(x|z) in nats, [batch]; of a fixed variance: half the squared error."""
        if callable(self.kind):
            value = torch.as_tensor(self.kind(output, x))
            if value.shape[:1] != (len(x),):
                raise CannotJudge(f"nll returns {list(value.shape)}: it must return one per image")
            return value.reshape(len(x), -1).double().sum(dim=1)
        if isinstance(output, Distribution):
            self.is_pair = True
            value = output.log_prob(x.reshape(output.batch_shape + output.event_shape))
            return -value.reshape(len(x), -1).double().sum(dim=1)
        if self.kind == "categorical":
            return _categorical(tensors(output)[0], x)
        parts = tensors(output)
        if self.kind == "gaussian" and all(t.numel() == 2 * x.numel() for t in parts):
            parts = [half for t in parts for half in t.chunk(2, dim=1)]  # mean and log variance
        parts = [t.reshape(len(x), -1).double() for t in parts]
        x = x.reshape(len(x), -1).double()
        fitting = [part for part in parts if part.shape == x.shape]
        if not fitting:
            raise CannotJudge(
                f"the decoder returns {parts[0].shape[1]} values for {x.shape[1]} in an example: "
                "pass nll=, a function of the decoder's output and x"
            )
        if self.kind == "gaussian":
            self.is_pair = len(fitting) > 1
            return self._gaussian(fitting, x)
        if self.logits:
            losses = F.binary_cross_entropy_with_logits(fitting[0], x, reduction="none")
            return losses.sum(dim=1)
        log_0, log_1 = (part.log().clamp(min=-100) for part in (1 - fitting[0], fitting[0]))
        return -(x * log_1 + (1 - x) * log_0).sum(dim=1)

    def _gaussian(self, parts, x):
        if not self.is_pair:
            return 0.5 * (parts[0] - x).square().sum(dim=1)
        std = MEANINGS[self.meaning](parts[1])
        return -torch.distributions.Normal(parts[0], std, False).log_prob(x).sum(dim=1)


def tensors(output) -> list[torch.Tensor]:
    """The tensors of floating point in what a network returns, nested or not, in order."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in tensors(part)]
    return []


def _categorical(output, x):
    """Logits, or probabilities, of classes in the second dimension or in the last one."""
    if output.shape[2:] != x.shape[1:]:
        output = output.movedim(-1, 1)
    if output.shape[2:] != x.shape[1:]:
        raise CannotJudge(f"the decoder's classes {list(output.shape)} don't fit {list(x.shape)}")
    output = output.double()
    sums = output.sum(dim=1)
    if output.min() >= 0 and (sums - 1).abs().max() < 1e-4:
        output = output.log().clamp(min=-100)
    return F.cross_entropy(output, x.long(), reduction="none").reshape(len(x), -1).sum(dim=1)
