"""A `Run` without a script, for tests of the harness."""

import argparse
import os
import sys
from pathlib import Path

import torch

from harness.run import Run

CPU = torch.device("cpu")


def make_run(folder, draw_curves=lambda *_: None, parts=None, grade=lambda *_: [], **settings):
    defaults = {"out": folder, "resume": None, "evaluate": None, "tensorboard": False}
    defaults["script"] = Path(sys.argv[0]).name
    return Run(argparse.Namespace(**defaults | settings), CPU, draw_curves, grade, **parts or {})


def release(run):
    """Let another run of this process have the folder, as the end of a process does."""
    os.close(run._folder_lock)
