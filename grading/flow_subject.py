"""A submission's flow: the course's conventions, its couplings and its model of images."""

import contextlib
from collections.abc import Callable

import torch
import torch.nn as nn

from gencheck.flow_maps import Bijection
from gencheck.flow_subject import STD, log_abs_det, points_of
from gencheck.flow_subject import FlowSubject as AnyShape
from gencheck.modules import perturb, restored_modes
from gencheck.outcomes import CannotJudge


class FlowSubject(AnyShape):
    """A flow under measurement; parts that are None can't be judged.

    Args:
        flow: the whole flow on the real line.
        couplings: its layers, in the order of `flow.forward`.
        module: the flow's module, to perturb its weights.
        dim: number of dimensions.
        model, log_prior, x: the course's model with `dequantize`, `logit_normalize`, `forward` and
            `sample`, its prior, and grey images [batch, 784].
    """

    def __init__(
        self,
        flow: Bijection,
        couplings: list[Bijection] | None,
        module: nn.Module,
        dim: int,
        model=None,
        log_prior=None,
        x=None,
    ):
        super().__init__(dim)
        self.flow, self.couplings, self.module = flow, couplings, module
        self.parameters = list(module.parameters())
        self.model, self.log_prior, self.x = model, log_prior, x
        self.wrong_logdet = False  # whether the checks of log-determinants found one wrong
        self._setting = None  # seed, precision and standard deviation of the noise
        self._newest = None  # seed and standard deviation of what is kept
        self._kept, self._results = {}, {}  # perturbed weights by setting, results of maps

    n_rows = 3  # Jacobians of 784 dimensions take most of the time

    @contextlib.contextmanager
    def perturbed(self, precise: bool = True, std: float = STD):
        """Perturbed weights, in float64 where the code allows it, inside the block.

        The flow is in evaluation mode, where batch norm is a map of each row by itself. Checks of
        one setting share its weights, and what `there` and `back` measure.
        """
        tensors = [*self.module.parameters(), *self.module.buffers()]
        originals = [tensor.data for tensor in tensors]
        with restored_modes(list(nn.Module.modules(self.module))):
            self.module.eval()
            try:
                self._enter((self.seed, precise, std), tensors)
                yield
            finally:
                for tensor, data in zip(tensors, originals):
                    tensor.data = data
                self._setting, self.dtype = None, torch.float32

    def _enter(self, setting, tensors):
        """Put the perturbed weights of a setting in the place of the flow's own."""
        if (setting[0], setting[2]) != self._newest:  # two settings at most take memory
            self._newest = setting[0], setting[2]
            self._kept, self._results = {}, {}
        self._setting = setting
        if setting in self._kept:
            kept, self.dtype = self._kept[setting]
            for tensor, data in zip(tensors, kept):
                tensor.data = data
            return
        for tensor in tensors:
            tensor.data = tensor.data.clone()
        perturb(self.parameters, setting[2], self.seed)
        if setting[1]:
            self._to_float64(tensors)
        self._kept[setting] = [tensor.data for tensor in tensors], self.dtype

    def _to_float64(self, tensors):
        single = [tensor.data for tensor in tensors]
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        self.dtype = torch.float64
        try:
            self.flow.forward(*self.inputs(2))
        except RuntimeError:
            self.dtype = torch.float32
            for tensor, data in zip(tensors, single):
                tensor.data = data

    def _remembered(self, name, bijection, measure):
        if self._setting is None:
            return measure()
        key = self._setting, name, id(bijection)
        if key not in self._results:
            self._results[key] = measure()
        return self._results[key]

    def layers(self) -> list[Bijection]:
        """The couplings.

        Raises:
            CannotJudge: none were found.
        """
        if not self.couplings:
            raise CannotJudge("no coupling layers were found")
        return self.couplings

    def log_abs_det(self, bijection: Bijection, z: torch.Tensor) -> torch.Tensor:
        """log |det| of a layer or of the flow at the first rows of z [n, dim], by autodiff.

        Affine couplings are quick, and all rows are done. Of other layers beyond the second one
        the first row only: each row of a whole Jacobian takes 0.2 s.
        """
        function = points_of(bijection)
        exact = affine_log_abs_det(function, z)
        if exact is not None:
            return exact
        return log_abs_det(function, z[:1] if bijection in (self.couplings or [])[2:] else z)

    def chained_log_abs_det(self, z: torch.Tensor) -> torch.Tensor | None:
        """log |det| of the whole flow at each row of z [n, dim], [n], by autodiff of its couplings.

        None where the flow is more than its couplings one after the other, or these aren't affine.
        """
        total, point = z.new_zeros(len(z)).double(), z
        for layer in self.couplings or []:
            function = points_of(layer)
            exact = affine_log_abs_det(function, point)
            if exact is None:
                return None
            total = total + exact
            with torch.no_grad():
                point = function(point.clone())
        with torch.no_grad():
            whole = points_of(self.flow)(z.clone())
        return total if are_same(point, whole) else None


def are_same(point: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether results of the couplings one after the other are those of the whole flow."""
    return not (point - whole).abs().max() > 1e-3 * (1 + whole.abs().max())


@torch.enable_grad()
def affine_log_abs_det(function: Callable, z: torch.Tensor) -> torch.Tensor | None:
    """log |det| of a map's Jacobian J at each row of z [n, dim], [n], if it is an affine coupling.

    Such a map keeps some numbers and multiplies each other one by a factor that depends on the kept
    ones: with the kept ones first, J = [[1, 0], [A, D]], D diagonal. Products of J with random
    vectors, by autodiff, show whether it has this form: a wrong entry would need a random number to
    be 0. Rows must not depend on each other. None for any other map.
    """
    z = z.detach().clone().requires_grad_()
    output = function(z.clone())  # it may change its input
    if output.shape != z.shape or not output.requires_grad:
        return None
    kept = (output == z).all(dim=0)
    changed = ~kept

    def product(vector):
        return torch.autograd.grad((output * vector).sum(), z, retain_graph=True)[0]

    random = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    factors = product(changed.to(z.dtype))[:, changed]
    scaled, expected = product(random * changed)[:, changed], random[:, changed] * factors
    is_diagonal = torch.allclose(scaled, expected, rtol=100 * torch.finfo(z.dtype).eps, atol=0.0)
    if not is_diagonal or not torch.equal(product(random * kept), random * kept):
        return None
    return factors.double().abs().log().sum(dim=1)
