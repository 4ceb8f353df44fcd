"""A submission's flow: the course's conventions, its couplings and its model of images."""

import contextlib

import torch
import torch.nn as nn

from gencheck.flow_maps import Bijection
from gencheck.flow_subject import STD
from gencheck.flow_subject import FlowSubject as AnyShape
from gencheck.modules import changed_weights, perturb, restored_modes
from gencheck.outcomes import CannotJudge


class FlowSubject(AnyShape):
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
        super().__init__(dim)
        self.flow, self.couplings, self.module = flow, couplings, module
        self.parameters = [] if module is None else list(module.parameters())
        self.model, self.log_prior, self.x = model, log_prior, x

    n_rows = 3  # Jacobians of 784 dimensions take most of the time

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

    def layers(self) -> list[Bijection]:
        """The couplings.

        Raises:
            CannotJudge: none were found.
        """
        if not self.couplings:
            raise CannotJudge("no coupling layers were found")
        return self.couplings
