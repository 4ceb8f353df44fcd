"""The runs that the page shows: which are wanted, which are there, and their trained models."""

import shlex
from typing import Any, NamedTuple

import torch.nn as nn

import a3_gan_template as gan
from figures.kinds import GAN, NF, SCRIPTS, VAE, epochs_of
from figures.runs import Runs, StoredRun, newest
from harness.errors import UserError

MAX_FLOW_WIDTH = 320  # the weights of a wider flow don't fit in 10 MB


class Wanted(NamedTuple):
    """A model that the page shows.

    Attributes:
        title: what the page calls it.
        script: the file name of the script that trains it.
        settings: those that its run must have.
        flags: options of the script for such a run.
    """

    title: str
    script: str
    settings: dict[str, Any]
    flags: str = ""

    @property
    def command(self) -> str:
        """The command line that trains one."""
        return f"python {self.script} {self.flags}".strip()

    @property
    def n_epochs(self) -> int:
        """The epochs of such a training."""
        return epochs_of(SCRIPTS[self.script].Config.parse(self.flags.split()).flat())

    def fits(self, run: StoredRun) -> bool:
        """Whether the page can show the model of a run in this place."""
        if run.script != self.script or run.settings.get("n_hidden", 0) > MAX_FLOW_WIDTH:
            return False
        return self.settings.items() <= run.settings.items()


PLAIN = {"dataset": "mnist", "protocol": "standard"}
BITS = PLAIN | {"binarize": "static"}
WANTED = {
    "vae20": Wanted("VAE, 20 dimensions", VAE, BITS | {"zdim": 20}, "--zdim 20"),
    "vae2": Wanted("VAE, 2 dimensions", VAE, BITS | {"zdim": 2}, "--zdim 2"),
    "gan": Wanted("GAN", GAN, PLAIN | {"latent_dim": 100}),
    "flow": Wanted("Flow", NF, PLAIN | {"n_flows": 4}, "--n_hidden 256 --out runs/nf-narrow-seed0"),
}


class Trained(NamedTuple):
    """A finished run with its model: a VAE or a flow; for a GAN a ModuleDict of both networks."""

    run: StoredRun
    model: nn.Module


class Missing(NamedTuple):
    """Why a wanted model is not there, and the command that makes one."""

    reason: str
    command: str


def find_models(found: Runs) -> tuple[dict[str, Trained], dict[str, Missing]]:
    """The wanted models that are there, and why the others are missing.

    Of the runs that fit, the `newest` is shown, and of its seeds the lowest, as in the gallery.
    """
    models, missing = {}, {}
    for name, wanted in WANTED.items():
        candidates = [run for run in found if wanted.fits(run)]
        finished = newest(candidates, wanted.n_epochs)
        try:
            if finished:
                models[name] = load(finished[0])
            elif candidates:
                folder = candidates[-1].folder
                command = shlex.join(["python", wanted.script, "--resume", str(folder)])
                missing[name] = Missing(f"{folder} is unfinished", command)
            else:
                missing[name] = Missing("there is no run that fits", wanted.command)
        except UserError as error:
            missing[name] = Missing(str(error), wanted.command)
    return models, missing


def load(run: StoredRun) -> Trained:
    """A finished run with its model.

    Raises:
        UserError: its weights are missing or damaged.
    """
    if run.script == GAN:  # the script's `load_model` is the generator alone
        return Trained(run, gan.load_networks(run.folder))
    return Trained(run, SCRIPTS[run.script].load_model(run.folder))
