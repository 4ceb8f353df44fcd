"""Devices that are not at hand, acted on the CPU."""

import re
from functools import cache
from pathlib import Path

import torch
import torchgen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NATIVE_FUNCTIONS = "packaged/ATen/native/native_functions.yaml"


def is_on_host(tensor):
    """Whether the tensor comes from `.cpu()`. float64 can be nowhere else."""
    return getattr(tensor, "on_host", False) or tensor.dtype == torch.float64


class ActsAsMps(TorchFunctionMode):
    """Inside the block the CPU is a device without float64, as MPS is.

    A tensor counts as on the device until `.cpu()` copies it to the host. The mode refuses float64
    off the host, and an operation on a tensor of each. `operators` collects what the device runs.
    """

    def __init__(self):
        super().__init__()
        self.operators = set()
        self.runs_on_host = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        copies = function is torch.Tensor.cpu
        on_host = copies or (bool(tensors) and all(map(is_on_host, tensors)))
        before, self.runs_on_host = self.runs_on_host, on_host
        with Collect(self):
            result = function(*args, **(kwargs or {}))
        self.runs_on_host = before
        if copies:
            result = result.clone()
        for output in tree_leaves(result):
            if isinstance(output, torch.Tensor):
                if not on_host and output.dtype == torch.float64:
                    raise RuntimeError(f"{function}: float64 is not on this device")
                if on_host:
                    output.on_host = True
        return result


class Collect(TorchDispatchMode):
    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        # oneDNN has operators that only a CPU chooses.
        of_a_device = operator.namespace == "aten" and "mkldnn" not in str(operator)
        if of_a_device and not self.owner.runs_on_host:
            self.owner.operators.add(str(operator).removeprefix("aten.").removesuffix(".default"))
        return operator(*args, **(kwargs or {}))


@cache
def declarations():
    """{operator: its declaration} of PyTorch's own list, `native_functions.yaml`."""
    text = (Path(torchgen.__path__[0]) / NATIVE_FUNCTIONS).read_text()
    pieces = re.split(r"\n- func: ", text)[1:]
    return {piece[: piece.index("(")]: piece for piece in pieces}


def mps_has(operator):
    """Whether PyTorch declares an MPS kernel of the operator, or one that serves every device."""
    declaration = declarations()[operator]
    if delegate := re.search(r"structured_delegate: (\S+)", declaration):
        return mps_has(delegate[1])
    if "dispatch:" not in declaration:
        return True  # composed of other operators
    return re.search(r"^\s+[\w, ]*(\bMPS\b|Composite)[\w, ]*:", declaration, re.M) is not None
