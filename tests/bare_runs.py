"""A `Run` without a script, for tests of the harness."""

import argparse
import json
import sys
from pathlib import Path

import torch

from harness.run import Run

CPU = torch.device("cpu")


def make_run(folder, draw_curves=lambda *_: None, parts=None, grade=lambda *_: [], **settings):
    defaults = {"out": folder, "resume": None, "evaluate": None, "tensorboard": False}
    defaults["script"] = Path(sys.argv[0]).name
    return Run(argparse.Namespace(**defaults | settings), CPU, draw_curves, grade, **parts or {})


def three_epochs(folder):
    """A run of three epochs whose weight is the epoch's number."""
    model = torch.nn.Linear(1, 1)
    run = make_run(folder, parts={"model": model})
    for epoch in run.count_to(3):
        torch.nn.init.constant_(model.weight, epoch)
        run.log(epoch=epoch, loss=1 / epoch)
    run.close()
    return run


def config_of(run):
    return json.loads((run.folder / "config.json").read_text())
