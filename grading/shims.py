"""What older versions of PyTorch, torchvision and NumPy allowed, put back where today's refuse it.

Each shim is applied only after an error that it is made for. A submission that needs one is "old":
its mathematics is judged, and the report says what today's versions refuse.
"""

import functools
import re

import numpy as np
import torch
import torch.nn.functional as F


def _wrap(owner, name, make):
    original = getattr(owner, name)
    wrapped = functools.wraps(original)(make(original))
    setattr(owner, name, wrapped)


def _steps_keep_versions():
    """Before PyTorch 1.5, optimisers changed weights unseen by autograd."""

    def make(step):
        def call(self, *args, **options):
            tensors = tuple(p for group in self.param_groups for p in group["params"])
            with torch.autograd._unsafe_preserve_version_counter(tensors):
                return step(self, *args, **options)

        return call

    for kind in (torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW):
        _wrap(kind, "step", make)


def _loose_cross_entropy():
    """Before 1.5, targets of another shape, type or above 1 were accepted."""

    def make(_):
        def call(input, target, weight=None, size_average=None, reduce=None, reduction="mean"):
            target = target.to(input.dtype).reshape(input.shape)
            log_0, log_1 = (t.log().clamp(min=-100) for t in (1 - input, input))
            losses = -(target * log_1 + (1 - target) * log_0)
            losses = losses if weight is None else losses * weight
            reduction = "sum" if size_average is False else reduction
            return {"mean": losses.mean, "sum": losses.sum}.get(reduction, lambda: losses)()

        return call

    _wrap(F, "binary_cross_entropy", make)


def _float_full():
    """Before 1.7, torch.full of a whole number made float32."""

    def make(full):
        def call(size, fill_value, **options):
            if not isinstance(fill_value, torch.Tensor):
                fill_value = float(fill_value)
            return full(size, fill_value, **options)

        return call

    _wrap(torch, "full", make)


def _numpy_names():
    """NumPy 1.24 removed its names for Python's types."""
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in vars(np):
            setattr(np, name, kind)


def _clip_grad_norm():
    """torch.nn.utils.clip_grad_norm is clip_grad_norm_ since 0.4."""
    torch.nn.utils.clip_grad_norm = torch.nn.utils.clip_grad_norm_


def _bool_arithmetic():
    """Before 1.2, comparisons made bytes, which can be subtracted."""

    def make(subtract):
        def call(self, other, *args):
            parts = [
                t.float() if getattr(t, "dtype", 0) == torch.bool else t for t in (self, other)
            ]
            return subtract(*parts, *args)

        return call

    for name in ("__sub__", "__rsub__"):
        _wrap(torch.Tensor, name, make)


def _zero_dim_index():
    """Before 0.4, losses were tensors of one element."""

    def make(get):
        return lambda self, index: self if self.dim() == 0 and index == 0 else get(self, index)

    _wrap(torch.Tensor, "__getitem__", make)


SHIMS = (
    ("a backward pass goes through weights that an optimiser's step has changed in place: compute "
     "the loss again after the step, or call backward before it (PyTorch 1.5)",
     r"modified by an inplace operation", _steps_keep_versions),
    ("binary_cross_entropy takes targets of the input's shape, as floats from 0 to 1: use "
     "target.float().view_as(input) (PyTorch 1.5)",
     r"target size|Found dtype Long|all elements of target should|can't be cast.*Long",
     _loose_cross_entropy),
    ("torch.full of a whole number makes integers: write torch.full(size, 1.0) (PyTorch 1.7)",
     r"Found dtype Long|can't be cast|expected.*(Float|Long)", _float_full),
    ("np.float, np.int, np.bool are gone: write float, int, bool (NumPy 1.24)",
     r"numpy.* has no attribute '(float|int|bool|object)'", _numpy_names),
    ("torch.nn.utils.clip_grad_norm is called clip_grad_norm_ (PyTorch 0.4)", r"clip_grad_norm'",
     _clip_grad_norm),
    ("booleans can't be subtracted: write (a > b).float() (PyTorch 1.2)",
     r"bool tensor is not supported", _bool_arithmetic),
    ("a loss has no element [0]: write loss.item() (PyTorch 0.4)", r"0-dim tensor",
     _zero_dim_index),
)  # fmt: skip


class Adaptation:
    """The shims in use in this process."""

    def __init__(self):
        self.used: list[str] = []

    def adapt(self, error: BaseException) -> bool:
        """Apply a shim made for this error; returns whether there was one, not yet in use."""
        for words, pattern, apply in SHIMS:
            if words not in self.used and re.search(pattern, str(error)):
                self.used.append(words)
                apply()
                return True
        return False

    def attempt(self, function, *args, **options):
        """function(*args, **options), again with shims while its errors have any."""
        while True:
            try:
                return function(*args, **options)
            except Exception as error:
                if not self.adapt(error):
                    raise
