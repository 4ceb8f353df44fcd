"""The state of a training on disk, and the weights of a trained model.

`checkpoint.pt` is the newest checkpoint, `checkpoint_previous.pt` the one before it, in case the
newest is damaged. A checkpoint holds the `state_dict` of every part of the training and the metrics
so far. `model.safetensors` has the weights of a finished run without the rest; any program with the
safetensors library reads it, and its metadata holds the run's `config.json`.
"""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn as nn

from harness import records
from harness.errors import UserError
from harness.files import write_whole

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
    """
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            records.count_of(checkpoint["metrics"])
            for name, part in parts.items():
                _load_part(part, checkpoint[name])
        except Exception as error:  # foreign bytes can make an unpickler raise anything
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


def _load_part(part, state: dict) -> None:
    """Load the whole state of a part; an optimiser keeps the options that suit its device."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(state)
        return
    options = [
        {name: group[name] for name in OF_DEVICE if name in group} for group in part.param_groups
    ]
    part.load_state_dict(state)
    for group, of_device in zip(part.param_groups, options):
        group.update(of_device)
        rate = float(group["lr"])
        # A captured step reads the learning rate from a tensor on its device.
        on_device = group.get("capturable", False)
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if on_device else rate


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of a run's model, floats in float32."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        tensors[name] = value.float() if value.is_floating_point() else value
    config = (folder / "config.json").read_text()
    content = safetensors.torch.save(tensors, {"config": config})
    write_whole(folder / WEIGHTS, lambda file: file.write(content))


def load_weights(folder: Path | str, model: nn.Module) -> nn.Module:
    """Load a finished run's weights into a model of its size; returns it in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, or does not fit the model.
    """
    path = Path(folder) / WEIGHTS
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the end of a run writes it; --resume {folder} if the run is "
            f"unfinished, --evaluate {folder} if it is finished"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        tensors = safetensors.torch.load(content)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
        model.load_state_dict(tensors)
    except Exception as error:  # a damaged header can make the parser raise anything
        raise UserError(
            f"{path} is damaged, or of other settings than config.json has ({type(error).__name__})"
        ) from error
    return model.eval()
