"""The weights of a trained model in a file of their own, without the rest of a checkpoint.

`model.safetensors` is written at the end of a run. Any program with the safetensors library reads
it; its metadata holds the run's `config.json`. https://github.com/huggingface/safetensors
"""

from pathlib import Path

import safetensors.torch
import torch.nn as nn

from harness.errors import UserError
from harness.files import write_whole

FILE = "model.safetensors"


def save(folder: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of a run's model, floats in float32."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        tensors[name] = value.float() if value.is_floating_point() else value
    config = (folder / "config.json").read_text()
    content = safetensors.torch.save(tensors, {"config": config})
    write_whole(folder / FILE, lambda file: file.write(content))


def load(folder: Path | str, model: nn.Module) -> nn.Module:
    """Load a finished run's weights into a model of its size; returns it in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, or does not fit the model.
    """
    path = Path(folder) / FILE
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
        model.load_state_dict(safetensors.torch.load(content))
    except Exception as error:  # a damaged header can make the parser raise anything
        raise UserError(
            f"{path} is damaged, or of other settings than config.json has ({type(error).__name__})"
        ) from error
    return model.eval()
