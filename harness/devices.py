"""Choosing a device, and its random numbers."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.nn as nn

from harness.errors import UserError


def select_device(name: str) -> torch.device:
    """The device for 'auto' (CUDA, else MPS, else CPU), 'cuda', 'mps' or 'cpu'.

    Flushes CPU denormals to zero in this thread and in workers started later: in all of a script,
    but not in those of a notebook that has computed before.

    Raises:
        UserError: the device is not available.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    best = next(device for device, available in present.items() if available)
    if name == "auto":
        name = best
    if not present[name]:
        raise UserError(
            f"--device {name}: PyTorch {torch.__version__} finds no such device here; "
            f"use --device {best}"
        )
    # Units without a gradient fill Adam's averages with denormals, some ten epochs into a training.
    # These double the time of a step on Intel's cores, for the same weights.
    torch.set_flush_denormal(True)
    return torch.device(name)


def n_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters."""
    return next(module.parameters()).device


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """CUDA's matrix products in TF32 inside the block: for training, not for graded numbers.

    TF32 rounds the factors to 11 significant bits. A CUDA graph keeps the precision that it was
    captured with.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are in float32 inside the block, whatever a notebook has set before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def to_host(values: torch.Tensor) -> torch.Tensor:
    """The values in float64 on the CPU, where sums and statistics are computed.

    MPS has no float64, so the copy comes before the conversion.
    """
    return values.cpu().double()


class RandomState:
    """The state of every random generator that a run on `device` draws from.

    It has `state_dict` and `load_state_dict`, and so is a part of a checkpoint.
    """

    def __init__(self, device: torch.device):
        self.generators = {"cpu": torch}
        if device.type != "cpu":
            self.generators[device.type] = getattr(torch, device.type)

    def state_dict(self) -> dict:
        """A state per kind of device."""
        return {name: generator.get_rng_state() for name, generator in self.generators.items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore the state of each kind of device that `state` holds."""
        for name, generator in self.generators.items():
            if name in state or name == "cpu":  # a checkpoint of another device lacks the others
                generator.set_rng_state(state[name])


@contextlib.contextmanager
def separate_random_numbers(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed` inside the block, then continue the stream from before.

    Pictures and evaluations therefore never change the training, and repeat exactly.
    """
    devices = _devices_in_use()
    states = [RandomState(device) for device in devices]
    before = [state.state_dict() for state in states]
    # Not torch.manual_seed: it would seed a CUDA that starts after the block, too.
    torch.default_generator.manual_seed(seed)
    for device in devices[1:]:
        getattr(torch, device.type).manual_seed(seed)
    try:
        yield
    finally:
        for state, saved in zip(states, before):
            state.load_state_dict(saved)


def _devices_in_use() -> list[torch.device]:
    devices = [torch.device("cpu")]
    if torch.cuda.is_initialized():
        devices.append(torch.device("cuda"))
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices
