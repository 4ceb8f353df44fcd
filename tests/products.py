"""Matrix products: those of a training step counted, and timed alone, for `tests.benchmark`."""

import math
import timeit
from collections import Counter
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.steps import CapturedStep

SQUARE = 4096
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # computes a @ b.T


class _ProductCounter(TorchDispatchMode):
    """Counts matrix products a @ b by what `_layout` says of a and b."""

    def __init__(self):
        super().__init__()
        self.products = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products[_layout(args[-2]), _layout(args[-1])] += 1
        elif ONEDNN is not None and function is ONEDNN.default:
            self.products[_layout(args[0]), _layout(args[1].t())] += 1
        return function(*args, **kwargs or {})


def _layout(matrix):
    """(shape, stride) of a matrix, or of a dense copy if its elements share memory."""
    return tuple(matrix.shape), torch.empty_like(matrix, device="meta").stride()


def products_of(function):
    """The matrix products a @ b that `function` calls: {(shape, stride of a, of b): how many}."""
    with _ProductCounter() as counter:
        function()
    return counter.products


def gflop(products):
    """Floating-point operations of products as `products_of` returns them, in 10^9."""
    return sum(2e-9 * math.prod(a) * b[1] * n for ((a, _), (b, _)), n in products.items())


def ways_to_multiply(device):
    """By name, functions that compute a @ b on the device."""
    ways = {"PyTorch": torch.mm}
    if device.type == "cpu" and ONEDNN is not None and torch.backends.mkldnn.is_available():
        ways["oneDNN"] = lambda a, b: ONEDNN(a, b.t(), None, "none", [], "")
    return ways


def faster_way(device, a, b):
    """The function that takes less time for a @ b."""
    ways = ways_to_multiply(device).values()
    return min(ways, key=lambda way: min(timeit.repeat(partial(way, a, b), number=10)))


def bare_products(device, products):
    """Matrix products alone: a square one by each way; all given ones, each by its faster way."""
    work = []
    for layouts, count in products.items():
        pairs = [
            [torch.empty_strided(*layout, device=device).normal_() for layout in layouts]
            for _ in range(count)  # each product reads matrices of its own, as in a step
        ]
        way = faster_way(device, *pairs[0])
        work += [partial(way, *pair) for pair in pairs]

    def multiply_all(_):
        for multiply in work:
            result = multiply()  # which frees the one before
        return result[:1, :1]

    # On CUDA a graph, as the step itself.
    all_products = multiply_all
    if device.type == "cuda":
        unchanged = torch.nn.Linear(1, 1, device=device)  # a captured step has a module
        all_products = CapturedStep(multiply_all, [unchanged])
    square = torch.randn(2, SQUARE, SQUARE, device=device)
    functions = {name: partial(way, *square) for name, way in ways_to_multiply(device).items()}
    functions["all"] = partial(all_products, torch.zeros(1, device=device))

    def repeat(function, n):
        for _ in range(n):
            result = function()
        result[0, 0].item()  # waits for the device

    return {name: partial(repeat, function) for name, function in functions.items()}
