"""The runs that the page shows: which are wanted, which are there, and their trained models."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch.nn as nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import cli, records, weights
from harness.errors import UserError

MAX_FLOW_WIDTH = 320  # the weights of a wider flow don't fit in 10 MB


class Kind(NamedTuple):
    """A model of the page.

    Attributes:
        title: what the page calls it.
        script: the module that trains it.
        fits: whether a run with these arguments can be shown.
        command: trains a run that can.
    """

    title: str
    script: ModuleType
    fits: Callable[[Namespace], bool]
    command: str


KINDS = {
    "vae20": Kind(
        "VAE, 20 dimensions",
        vae,
        lambda args: args.zdim == 20 and args.protocol == "standard",
        "python a3_vae_template.py --zdim 20",
    ),
    "vae2": Kind(
        "VAE, 2 dimensions",
        vae,
        lambda args: args.zdim == 2 and args.protocol == "standard",
        "python a3_vae_template.py --zdim 2",
    ),
    "gan": Kind(
        "GAN",
        gan,
        lambda args: args.protocol == "standard",
        "python a3_gan_template.py",
    ),
    "flow": Kind(
        "Flow",
        nf,
        lambda args: args.n_flows == 4 and args.n_hidden <= MAX_FLOW_WIDTH,
        "python a3_nf_template.py --n_hidden 256 --out runs/nf-narrow-seed0",
    ),
}


class Trained(NamedTuple):
    """A finished run with its model.

    Attributes:
        folder: the run folder.
        args: the script's arguments.
        history: the lines of `metrics.jsonl`.
        model: a VAE or a flow; for a GAN a ModuleDict of generator and discriminator.
    """

    folder: Path
    args: Namespace
    history: list[dict]
    model: nn.Module


class Missing(NamedTuple):
    """Why there is no model of a kind, and the command that makes one."""

    reason: str
    command: str


def find_models(base: Path) -> tuple[dict[str, Trained], dict[str, Missing]]:
    """The newest finished run of each kind under `base`, and why every other kind is missing.

    Raises:
        UserError: there is none of any kind.
    """
    found, missing = {}, {}
    folders = _folders_by_start(base)
    for name, kind in KINDS.items():
        candidates = [folder for folder in folders if _is_of_kind(folder, kind)]
        finished = [folder for folder in candidates if (folder / "result.json").exists()]
        try:
            if finished:
                found[name] = load(finished[-1], kind)
            elif candidates:
                script = Path(kind.script.__file__).name
                command = f"python {script} --resume {candidates[-1]}"
                missing[name] = Missing(f"{candidates[-1]} is unfinished", command)
            else:
                missing[name] = Missing("there is no run that fits", kind.command)
        except UserError as error:
            missing[name] = Missing(str(error), kind.command)
    if not found:
        raise UserError(
            f"no finished run under {base} that the page can show; make one, with "
            f"{KINDS['vae2'].command}, say, or name another folder with --runs"
        )
    return found, missing


def load(folder: Path, kind: Kind) -> Trained:
    """Read a finished run of a kind, and load its weights.

    Raises:
        UserError: a file is missing or damaged.
    """
    args = _settings(folder, kind)
    if kind.script is gan:  # its `load_model` has no discriminator
        parts = {"generator": gan.Generator(args.latent_dim), "discriminator": gan.Discriminator()}
        model = weights.load(folder, nn.ModuleDict(parts))
    else:
        model = kind.script.load_model(folder)
    return Trained(folder, args, records.read_metrics(folder), model)


def _folders_by_start(base: Path) -> list[Path]:
    """The run folders under `base`, the newest last. What is none is left out."""
    starts = {}
    for path in sorted(base.rglob("config.json")):
        try:
            starts[path.parent] = str(records.read_config(path.parent).get("started", ""))
        except UserError:
            continue
    return sorted(starts, key=starts.get)


def _is_of_kind(folder: Path, kind: Kind) -> bool:
    try:
        args = _settings(folder, kind)
        return args.dataset == "mnist" and kind.fits(args)
    except UserError:
        return False


def _settings(folder: Path, kind: Kind) -> Namespace:
    return cli.settings_of(folder, kind.script.__file__, kind.script.parse_args)
