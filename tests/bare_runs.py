"""A `Run` without a script, for tests of the harness."""

import json
from dataclasses import dataclass

import torch

from harness import Curves, Run, RunConfig
from harness.settings import RunOptions

CURVES = Curves("loss", "loss (nats)", {"loss": "training", "val_loss": "validation"})


@dataclass
class Config(RunConfig):
    """A script that trains nothing."""

    SCRIPT = "script.py"
    EXAMPLE = "python script.py --lr 0.1"
    REPORT = {"decay": 0.0}

    epochs: int = 10  # passes over the training images
    lr: float = 1e-3  # learning rate
    decay: float = 0.5  # of an average

    def __post_init__(self):
        super().__post_init__()
        if self.epochs < 1:
            raise ValueError("--epochs must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"--lr must be positive, not {self.lr}")

    @property
    def name(self):
        return f"script-lr{self.lr}"

    @classmethod
    def program(cls):
        return cls.SCRIPT


def config_for(folder=None, resume=None, evaluate=None, tensorboard=False, **settings):
    options = RunOptions(
        device="cpu", out=folder, resume=resume, evaluate=evaluate, tensorboard=tensorboard
    )
    return Config(run=options, **settings)


def make_run(folder=None, parts=None, curves=CURVES, **settings):
    """A run whose folder is made, or whose state is restored."""
    run = Run(config_for(folder, **settings), curves)
    with_folder = False
    try:
        run.start_or_resume(**parts or {})
        with_folder = True
    finally:
        if not with_folder:
            run.close()
    return run


def three_epochs(folder):
    """A run of three epochs whose weight is the epoch's number."""
    model = torch.nn.Linear(1, 1)
    run = make_run(folder, {"model": model})
    for epoch in run.remaining(3):
        torch.nn.init.constant_(model.weight, epoch)
        run.log(epoch=epoch, loss=1 / epoch)
        run.checkpoint()
    run.close()
    return run


def config_of(run):
    """The run's `config.json`."""
    return json.loads((run.folder / "config.json").read_text())
