"""TensorBoard event files in the run folder, for `--tensorboard`.

Every value of `metrics.jsonl` becomes a scalar of the same name, every sample grid an image, every
number of the evaluation a scalar such as `test/bpd`. The step is the epoch or the batch. The
settings are hyperparameters, so that TensorBoard's HPARAMS tab compares the runs of a sweep.

Weights & Biases reads what is written here. As the first lines of `main(config)` in a copy:

    import wandb
    wandb.init(project="digits", config=config.flat(), sync_tensorboard=True)

Train with `--tensorboard`. A resumed run is a new run there, with all lines from the start: delete
the earlier one.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from harness import records
from harness.errors import UserError
from harness.plots import read_picture


def check_installed() -> None:
    """Raise UserError if the package `tensorboard` cannot be imported."""
    try:
        import torch.utils.tensorboard  # noqa: F401 (slow, so only if it is asked for)
    except Exception as error:  # a broken installation can raise anything
        raise UserError(
            f"--tensorboard needs the package tensorboard ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): pip install tensorboard, or go without "
            "(--no_tensorboard)"
        ) from error


class EventFile:
    """The event file of one process that trains a run.

    It starts with all earlier lines and grids, and TensorBoard drops what earlier files of the
    folder hold. So no step is there twice, and none is missing after a kill.

    Args:
        folder: the run folder.
        settings: of the run.
        history: the lines of metrics so far.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], history: list[dict]):
        from torch.utils.tensorboard import SummaryWriter, summary  # slow to import

        self._folder = folder
        self._shown = set()
        self._writer = SummaryWriter(folder, purge_step=0, flush_secs=5)
        known = {name: value for name, value in settings.items() if value is not None}
        # Without the summary of the experiment, the first, every scalar is a metric to compare.
        for hyperparameters in summary.hparams(known, {})[1:]:
            self._writer.file_writer.add_summary(hyperparameters)
        for line in history:
            self.add_line(line)
        self.add_grids(records.count_of(history))

    def add_line(self, line: dict[str, float]) -> None:
        """Add a line of metrics: a scalar per key, at the epoch or batch of the line."""
        counter = records.counter_of(line)
        for key, value in line.items():
            if key != counter:
                self._writer.add_scalar(key, value, line[counter])

    def add_grids(self, count: int, last: bool = False) -> None:
        """Add the sample grids that are new, up to the epoch or batch `count`.

        With `last` the grids without a number in their names are added, too, at step `count`.
        """
        _, grids = records.pictures(self._folder)
        for path in grids:
            kind, number = records.kind_and_number(path)
            if number is None:
                number = count if last else count + 1
            if number <= count and path not in self._shown:
                self._shown.add(path)
                try:
                    image = read_picture(path)[..., :3]
                except UserError as error:  # of an earlier process; the training goes on
                    print(error, file=sys.stderr)
                else:
                    self._writer.add_image(kind, image, number, dataformats="HWC")

    def add_results(self, results: dict[str, dict], count: int) -> None:
        """Add the numbers of the evaluation at the end, as "part/key", at step `count`."""
        for part, values in results.items():
            for key, value in values.items():
                self._writer.add_scalar(f"{part}/{key}", value, count)

    def close(self) -> None:
        """Write what is left to disk, if it has room."""
        with contextlib.suppress(OSError):
            self._writer.close()
