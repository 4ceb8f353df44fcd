"""The runs that the page shows: which are wanted, which are there, and their trained models."""

from typing import Any, NamedTuple

import torch.nn as nn

import a3_gan_template as gan
from figures.kinds import GAN, NF, SCRIPTS, VAE, epochs_of
from figures.runs import Runs, StoredRun, newest, unfinished_message
from harness.errors import UserError
from harness.records import image_shape

MAX_FLOW_WIDTH = 320  # the weights of a wider flow don't fit in 10 MB
MAX_REASONS = 3  # runs that are named as left out


class Wanted(NamedTuple):
    """A model that the page shows.

    Attributes:
        title: what the page calls it.
        option: of the command line, that names its run.
        script: the file name of the script that trains it.
        settings: those without which the page cannot show it.
        flags: options of the script for such a run.
    """

    title: str
    option: str
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

    def misfit(self, run: StoredRun, chosen: bool = False) -> str | None:
        """Why the page can't show the model of a run in this place; None if it can.

        A run that was chosen by hand may have any length, images of 28 x 28 pixels and protocol.
        """
        if run.script != self.script:
            return f"a run of {run.script}, not of {self.script}"
        if (shape := image_shape(run.config)) != SHAPE:
            return "its images are {} x {}, not {} x {}".format(*shape, *SHAPE)
        usual = {} if chosen else USUAL
        for name, wanted in (self.settings | usual).items():
            actual = run.settings.get(name, wanted)
            if actual != wanted:
                return f"its {name} is {actual}, not {wanted}"
        if (width := run.settings.get("n_hidden", 0)) > MAX_FLOW_WIDTH:
            return f"its n_hidden is {width:,}, more than {MAX_FLOW_WIDTH}, so it is too large"
        return None


SHAPE = (28, 28)  # of the page's digits
USUAL = {"dataset": "mnist", "protocol": "standard", "binarize": "static"}
WANTED = {
    "vae20": Wanted("VAE, 20 dimensions", "vae", VAE, {"zdim": 20}, "--zdim 20"),
    "vae2": Wanted("VAE, 2 dimensions", "manifold", VAE, {"zdim": 2}, "--zdim 2"),
    "gan": Wanted("GAN", "gan", GAN, {"latent_dim": 100}),
    "flow": Wanted("Flow", "nf", NF, {"n_flows": 4}, "--n_hidden 256 --out runs/nf-narrow-seed0"),
}


class Trained(NamedTuple):
    """A finished run with its model: a VAE or a flow; for a GAN a ModuleDict of both networks."""

    run: StoredRun
    model: nn.Module


class Missing(NamedTuple):
    """Why a wanted model is not there, and the command that makes one."""

    reason: str
    command: str


def find_models(
    found: Runs, chosen: dict[str, StoredRun] | None = None
) -> tuple[dict[str, Trained], dict[str, Missing]]:
    """The wanted models that are there, and why the others are missing.

    Of the runs that fit, the `newest` is shown, and of its seeds the lowest, as in the gallery.

    Args:
        found: all runs.
        chosen: runs by the names of WANTED, which are shown instead.

    Raises:
        UserError: the page cannot show a chosen run.
    """
    models, missing = {}, {}
    for name, wanted in WANTED.items():
        if run := (chosen or {}).get(name):
            if reason := wanted.misfit(run, chosen=True):
                raise UserError(f"--{wanted.option} {run.folder}: {reason}")
            if not run.finished:
                raise UserError(f"--{wanted.option}: {unfinished_message(run)}")
            models[name] = load(run)
            continue
        candidates = [run for run in found if wanted.misfit(run) is None]
        finished = newest(candidates, wanted.n_epochs)
        try:
            if finished:
                models[name] = load(finished[0])
            elif candidates:
                missing[name] = Missing(unfinished_message(candidates[-1]), wanted.command)
            else:
                missing[name] = Missing(_why_none_fits(found, wanted), wanted.command)
        except UserError as error:
            missing[name] = Missing(str(error), wanted.command)
    return models, missing


def _why_none_fits(found: Runs, wanted: Wanted) -> str:
    """What is different in the runs of the same script, the newest first."""
    others = [run for run in reversed(found) if run.script == wanted.script]
    # VAEs of the other dimension are another model of the page.
    rivals = [other for other in WANTED.values() if other is not wanted]
    others = [run for run in others if all(rival.misfit(run) for rival in rivals)]
    reasons = [f"{run.folder} is left out: {wanted.misfit(run)}" for run in others[:MAX_REASONS]]
    return "; ".join(["there is no run that fits", *reasons])


def load(run: StoredRun) -> Trained:
    """A finished run with its model.

    Raises:
        UserError: its weights are missing or damaged.
    """
    if run.script == GAN:  # the script's `load_model` is the generator alone
        return Trained(run, gan.load_networks(run.folder))
    return Trained(run, SCRIPTS[run.script].load_model(run.folder))
