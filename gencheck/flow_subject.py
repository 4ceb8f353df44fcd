"""A flow as a black box: its maps with their log-determinants, at perturbed weights."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn

from gencheck.outcomes import CannotJudge, changed_weights, perturb, restored_modes

STD = 0.03  # noise added to all weights: log-scales of about 0.5, where new couplings have 0


class Bijection(NamedTuple):
    """A map with its log-determinant, both ways.

    Args:
        forward: (z [batch, dim], ldj [batch]) -> (z, ldj + log |det|).
        inverse: the same, backwards.
    """

    forward: Callable
    inverse: Callable


class FlowSubject:
    """A flow under measurement; parts that are None can't be judged.

    Args:
        flow: the whole flow on the real line.
        couplings: its layers, in the order of `flow.forward`.
        module: the flow's module, to perturb its weights; None if there is none.
        dim: number of dimensions.
        model, log_prior, x: the course's model with `dequantize`, `logit_normalize`, `forward` and
            `sample`, its prior, and grey images [batch, 784].
    """

    def __init__(
        self,
        flow: Bijection,
        couplings: list[Bijection] | None,
        module: nn.Module | None,
        dim: int,
        model=None,
        log_prior=None,
        x=None,
    ):
        self.flow, self.couplings, self.module, self.dim = flow, couplings, module, dim
        self.parameters = [] if module is None else list(module.parameters())
        self.model, self.log_prior, self.x = model, log_prior, x
        self.seed = 0
        self.dtype = torch.float32

    @contextlib.contextmanager
    def perturbed(self, precise: bool = True, std: float = STD):
        """Perturbed weights, in float64 where the code allows it, inside the block.

        The flow is in evaluation mode, where batch norm is a map of each row by itself.
        """
        parts = [] if self.module is None else list(nn.Module.modules(self.module))
        with changed_weights(self.parameters), restored_modes(parts):
            perturb(self.parameters, std, self.seed)
            try:
                if self.module is not None:
                    self.module.eval()
                    if precise:
                        self._to_float64()
                yield
            finally:
                self._to_float32()

    def _to_float64(self):
        self.module.double()
        self.dtype = torch.float64
        try:
            self.flow.forward(*self.inputs(2))
        except RuntimeError:
            self._to_float32()

    def _to_float32(self):
        if self.module is not None:
            self.module.float()
        self.dtype = torch.float32

    def inputs(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """n points and log-determinants to start from, which are not 0."""
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(n, self.dim, generator=generator).to(self.dtype)
        return z, torch.linspace(-3, 5, n).to(self.dtype)

    def tolerance(self, size: float = 1.0) -> float:
        """Allowed error of a log-determinant or a point: rounding over all dimensions."""
        unit = 2.0**-53 if self.dtype == torch.float64 else 2.0**-24
        return 100 * self.dim * unit * max(1.0, size)

    def layers(self) -> list[Bijection]:
        """The couplings.

        Raises:
            CannotJudge: none were found.
        """
        if not self.couplings:
            raise CannotJudge("no coupling layers were found")
        return self.couplings


def pair(returned) -> tuple[torch.Tensor, torch.Tensor]:
    """The (z, ldj) that a map returned; CannotJudge for anything else."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise CannotJudge("no pair (z, ldj) is returned")
    return returned


def jacobian(function: Callable, z: torch.Tensor) -> torch.Tensor:
    """The Jacobian of z [dim] -> [dim], by one backward pass over dim copies of z."""
    copies = z.repeat(len(z), 1).requires_grad_()
    output = function(copies)
    return torch.autograd.grad(output, copies, torch.eye(len(z), dtype=z.dtype))[0]
