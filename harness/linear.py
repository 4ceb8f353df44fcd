"""Linear layers that use the full vector width of AMD's Zen 5."""

import re
from pathlib import Path

import torch
import torch.nn as nn


def fast_on_cpu(model: nn.Module) -> nn.Module:
    """Let a model's linear layers multiply through oneDNN where that is faster; returns the model.

    PyTorch multiplies float32 matrices with MKL, which uses vectors of 256 bits on AMD's
    processors. Zen 5 (family 26) and later ones have units twice as wide, and oneDNN uses them; on
    Zen 4 and on Intel's processors it gains nothing. The choice depends on the machine alone, never
    on a measurement, so that a machine repeats its digits. Weights and names stay as they are.
    """
    if PREFERS_ONEDNN:
        for module in model.modules():
            if type(module) is nn.Linear and module.bias is not None:
                module.__class__ = OneDnnLinear
    return model


def _prefers_onednn() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text() if cpuinfo.exists() else ""
    family = re.search(r"^cpu family\s*: (\d+)$", processor, re.MULTILINE)
    return (
        "AuthenticAMD" in processor
        and "avx512f" in processor
        and family is not None
        and int(family[1]) >= 26
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


PREFERS_ONEDNN = _prefers_onednn()


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` with bias whose products go through oneDNN.

    That is in float32 on a CPU, with rows of inputs. Everywhere else, and inside the
    transforms of `torch.func`, it is `nn.Linear` unchanged.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input @ weight.T + bias, for input [..., in_features]."""
        if _is_plain(input):
            return _OneDnnProduct.apply(input, self.weight, self.bias)
        return super().forward(input)


def _is_plain(input: torch.Tensor) -> bool:
    return (
        input.dtype == torch.float32
        and input.device.type == "cpu"
        and input.dim() >= 2
        and not torch._C._are_functorch_transforms_active()
    )


def _product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b.T + bias."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _OneDnnProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        input, weight = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad
        rows, inputs = gradient.flatten(0, -2), input.flatten(0, -2)
        if not to_input:
            input_gradient = None
        elif torch.is_grad_enabled():  # oneDNN's product has no gradient of its own
            input_gradient = gradient @ weight
        else:
            input_gradient = _product(gradient, weight.T)
        return (
            input_gradient,
            # Here MKL is as fast: the sum is over the few rows of a batch.
            rows.T @ inputs if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )
