"""Checkpoints: the whole state of a training, written so that a killed run loses little.

`checkpoint.pt` is the newest, `checkpoint_previous.pt` the one before it, in case the newest is
damaged. A checkpoint holds the `state_dict` of every part of the training and the metrics so far.
"""

import sys
from pathlib import Path

import torch

from harness.errors import UserError
from harness.files import write_whole
from harness.records import count_of

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint_previous.pt"


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


def load(folder: Path, parts: dict, names: tuple[str, ...] = (NEWEST, PREVIOUS)) -> list[dict]:
    """Load the first whole checkpoint among `names` into `parts`; returns its metrics.

    Raises:
        UserError: there is no checkpoint, or none that fits the parts.
    """
    present = [folder / name for name in names if (folder / name).exists()]
    for path in present:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            count_of(checkpoint["metrics"])
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
    if isinstance(part, torch.optim.Optimizer):
        # The moments are the checkpoint's; the options (capturable, say) are this device's.
        state = state | {"param_groups": part.state_dict()["param_groups"]}
    part.load_state_dict(state)
