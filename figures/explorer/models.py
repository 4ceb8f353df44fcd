"""The runs that the page shows: which are wanted, which are there, and their trained models."""

import shlex
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import torch.nn as nn

from a3_gan_template import Discriminator, Generator
from figures.kinds import GAN, NF, SCRIPTS, VAE, epochs_of
from figures.runs import Runs, StoredRun, newest
from harness import weights
from harness.errors import UserError

MAX_FLOW_WIDTH = 320  # the weights of a wider flow don't fit in 10 MB


class Kind(NamedTuple):
    """A model of the page.

    Attributes:
        title: what the page calls it.
        script: the file name of the script that trains it.
        fits: whether a run with these arguments can be shown.
        flags: options of the script for a run that can.
    """

    title: str
    script: str
    fits: Callable[[Namespace], bool]
    flags: str = ""

    @property
    def command(self) -> str:
        """The command line that trains one."""
        return f"python {self.script} {self.flags}".strip()

    @property
    def n_epochs(self) -> int:
        """The epochs of such a training."""
        return epochs_of(SCRIPTS[self.script].parse_args(self.flags.split()))


def _is_plain_vae(args: Namespace, z_dim: int) -> bool:
    return (args.zdim, args.protocol, args.binarize) == (z_dim, "standard", "static")


KINDS = {
    "vae20": Kind(
        "VAE, 20 dimensions", VAE, lambda args: _is_plain_vae(args, z_dim=20), "--zdim 20"
    ),
    "vae2": Kind("VAE, 2 dimensions", VAE, lambda args: _is_plain_vae(args, z_dim=2), "--zdim 2"),
    "gan": Kind("GAN", GAN, lambda args: (args.protocol, args.latent_dim) == ("standard", 100)),
    "flow": Kind(
        "Flow",
        NF,
        lambda args: args.n_flows == 4 and args.n_hidden <= MAX_FLOW_WIDTH,
        "--n_hidden 256 --out runs/nf-narrow-seed0",
    ),
}


class Trained(NamedTuple):
    """A finished run with its model: a VAE or a flow; for a GAN a ModuleDict of both networks."""

    run: StoredRun
    model: nn.Module


class Missing(NamedTuple):
    """Why there is no model of a kind, and the command that makes one."""

    reason: str
    command: str


def find_models(found: Runs) -> tuple[dict[str, Trained], dict[str, Missing]]:
    """The trained model of each kind, and why every other kind is missing.

    Of the runs that fit, the `newest` is shown, and of its seeds the lowest, as in the gallery.
    """
    models, missing = {}, {}
    for name, kind in KINDS.items():
        candidates = [run for run in found if _is_of_kind(run, kind)]
        finished = newest(candidates, kind.n_epochs)
        try:
            if finished:
                models[name] = load(finished[0])
            elif candidates:
                folder = candidates[-1].folder
                command = shlex.join(["python", kind.script, "--resume", str(folder)])
                missing[name] = Missing(f"{folder} is unfinished", command)
            else:
                missing[name] = Missing("there is no run that fits", kind.command)
        except UserError as error:
            missing[name] = Missing(str(error), kind.command)
    return models, missing


def load(run: StoredRun) -> Trained:
    """A finished run with its model.

    Raises:
        UserError: its weights are missing or damaged.
    """
    if run.script != GAN:
        return Trained(run, SCRIPTS[run.script].load_model(run.folder))
    # The script's `load_model` is the generator alone.
    networks = {"generator": Generator(run.args.latent_dim), "discriminator": Discriminator()}
    return Trained(run, weights.load(run.folder, nn.ModuleDict(networks)))


def _is_of_kind(run: StoredRun, kind: Kind) -> bool:
    return run.script == kind.script and run.dataset == "mnist" and kind.fits(run.args)
