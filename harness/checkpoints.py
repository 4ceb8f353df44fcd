"""The state of a training on disk, and the weights of a trained model.

`checkpoint.pt` is the newest checkpoint, `checkpoint_previous.pt` the one before it, in case the
newest is damaged. A checkpoint holds the `state_dict` of every part of the training and the metrics
so far. `model.safetensors` has the weights of a finished run without the rest; any program with the
safetensors library reads it, and its metadata holds the run's `config.json`.
"""

import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn as nn

from harness import records
from harness.devices import float32_by_default, separate_random_numbers
from harness.errors import UserError, is_out_of_memory
from harness.files import read_regular, write_whole

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint_previous.pt"
WEIGHTS = "model.safetensors"
# Options of an optimiser's groups that belong to the device, not to the training.
OF_DEVICE = ("capturable", "fused", "foreach")


def save(folder: Path, parts: dict, history: list[dict]) -> None:
    """Write the newest checkpoint, and keep the one before it.

    Args:
        folder: the run folder.
        parts: objects with a `state_dict`, by name.
        history: the lines of `metrics.jsonl`.
    """
    checkpoint = {name: part.state_dict() for name, part in parts.items()} | {"metrics": history}
    write_whole(
        folder / NEWEST, lambda file: torch.save(checkpoint, file), previous=folder / PREVIOUS
    )


def load(folder: Path, parts: dict, names: Sequence[str] = (NEWEST, PREVIOUS)) -> list[dict]:
    """Load the first whole checkpoint among `names` into `parts`; returns its metrics.

    Raises:
        UserError: there is no checkpoint, or none that fits the parts.
        OSError: one cannot be read: an older one in its place would lose epochs.
    """
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        content = read_regular(path)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load checks no checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            records.check_history(checkpoint["metrics"])
            for name, part in parts.items():
                _load_part(part, checkpoint[name], checkpoint["metrics"])
        except Exception as error:  # foreign bytes can make an unpickler raise anything
            if is_out_of_memory(error):
                raise
            print(
                f"{path} is truncated, foreign or of other settings than config.json has "
                f"({type(error).__name__}), not used",
                file=sys.stderr,
            )
        else:
            return checkpoint["metrics"]
    if present:
        raise UserError(f"{folder} holds no usable checkpoint")
    raise UserError(f"{folder} holds no checkpoint: start the run again")


def _load_part(part, state: dict, history: list[dict]) -> None:
    """Load the whole state of a part; an optimiser keeps the options that suit its device.

    Raises:
        Exception: the state does not fit the part, or is not what training leaves.
    """
    if not isinstance(part, torch.optim.Optimizer):
        _check_like(state, part.state_dict())
        part.load_state_dict(state)
        return
    groups = [dict(group) for group in part.param_groups]
    part.load_state_dict(state)
    if history and isinstance(part, torch.optim.Adam) and not part.state:
        raise ValueError("Adam has no moments after a step")
    for parameter, of_parameter in part.state.items():
        _check_moments(part, parameter, of_parameter)
    for group, before in zip(part.param_groups, groups):
        own = {"params", "lr", *OF_DEVICE}
        options = {name: value for name, value in before.items() if name not in own}
        _check_like({name: group[name] for name in options}, options)
        group.update({name: before[name] for name in OF_DEVICE if name in before})
        if not records.is_number(float(group["lr"])):
            raise ValueError("the learning rate is not finite")
        rate = float(group["lr"])
        # A captured step reads the learning rate from a tensor on its device.
        on_device = group.get("capturable", False)
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if on_device else rate


def _check_moments(optimizer, parameter: torch.Tensor, state: dict) -> None:
    """Raise ValueError or TypeError unless this can be an optimiser's state of a parameter."""
    if isinstance(optimizer, torch.optim.Adam):
        step = state["step"]
        if step.numel() != 1 or step < 0 or step != step.round():
            raise ValueError("Adam's step is no count")
        if any(state[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
            raise ValueError("Adam's moments have another shape than their parameter")
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            if value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(f"{name} has another shape than its parameter")
            if not value.isfinite().all():
                raise ValueError(f"{name} is not finite")


def _check_like(found: Any, new: Any) -> None:
    """Raise ValueError or TypeError if a state cannot follow from that of a new part.

    Numbers and tensors stay what they are, and finite where they have been. (A model may have an
    infinite buffer.)
    """
    if isinstance(new, dict):
        for name in new:
            if name in found:
                _check_like(found[name], new[name])
    elif isinstance(new, list | tuple):
        if isinstance(new, tuple) and (type(found) is not tuple or len(found) != len(new)):
            raise TypeError("a tuple has changed its length or kind")
        if len(found) == len(new):
            for one, other in zip(found, new):
                _check_like(one, other)
    elif isinstance(new, torch.Tensor):
        if found.is_floating_point() != new.is_floating_point():
            raise TypeError("floats and integers are exchanged")
        finite = found.isfinite()
        if found.shape == new.shape:
            finite = finite | ~new.isfinite().to(finite.device)
        if not finite.all():
            raise ValueError("a value is not finite")
    elif (
        isinstance(new, int | float) and not isinstance(new, bool) and not records.is_number(found)
    ):
        raise ValueError("a value is not a finite number")


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of a run's model, floats in float32."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        tensors[name] = value.float() if value.is_floating_point() else value
    config = (folder / "config.json").read_text()
    content = safetensors.torch.save(tensors, {"config": config})
    write_whole(folder / WEIGHTS, lambda file: file.write(content))


def load_weights(folder: Path | str, make: Callable[[], nn.Module]) -> nn.Module:
    """The model that make() returns, in evaluation mode, with a finished run's weights.

    It is made in float32 and from separate random numbers: neither the default dtype nor the random
    state of a notebook plays a part, or changes.

    Args:
        folder: the run folder.
        make: returns a model of the run's size.

    Raises:
        UserError: the file is missing, damaged, or does not fit the model.
    """
    path = Path(folder) / WEIGHTS
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the end of a run writes it; --resume {folder} if the run is "
            f"unfinished, --evaluate {folder} if it is finished"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with float32_by_default(), separate_random_numbers(0):
        model = make()
    try:
        tensors = safetensors.torch.load(content)
        _check_like(tensors, model.state_dict())
        model.load_state_dict(tensors)
    except Exception as error:  # a damaged header can make the parser raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} is damaged, or of other settings than config.json has ({type(error).__name__})"
        ) from error
    return model.eval()
