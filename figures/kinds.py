"""The kinds of run that the report needs, and the commands that train them."""

from argparse import Namespace
from typing import NamedTuple

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae

VAE, GAN, NF = "a3_vae_template.py", "a3_gan_template.py", "a3_nf_template.py"
SCRIPTS = {VAE: vae, GAN: gan, NF: nf}
QUICK = {  # a fraction of the length, with a short evaluation
    VAE: "--epochs 2 --importance_samples 4 --quality_samples 0",
    GAN: "--n_epochs 1 --quality_samples 0",
    NF: "--epochs 1 --importance_samples 4 --quality_samples 0",
}


def epochs_of(args: Namespace) -> int:
    """The number of epochs that a script's arguments ask for."""
    return vars(args).get("epochs") or args.n_epochs


class Kind(NamedTuple):
    """A training; the report does not need an `optional` one.

    `minutes` is its time on two cores.
    """

    title: str
    script: str
    flags: str
    minutes: float
    optional: bool = False

    def options(self, quick: bool = False) -> list[str]:
        """The script's options, for seed 0."""
        return [*self.flags.split(), *(QUICK[self.script].split() if quick else [])]

    def args(self, quick: bool = False) -> Namespace:
        """The arguments on the command line, as the script parses them."""
        return SCRIPTS[self.script].parse_args(self.options(quick))

    def n_epochs(self, quick: bool = False) -> int:
        """The epochs of such a training."""
        return epochs_of(self.args(quick))


KINDS = {
    "vae": Kind("VAE, 20 latent dimensions", VAE, "--zdim 20", 6),
    "manifold": Kind("VAE, 2 latent dimensions", VAE, "--zdim 2", 5),
    "vae_report": Kind("VAE, the report's computation", VAE, "--zdim 20 --protocol report", 6),
    "larochelle": Kind(
        "VAE, Larochelle's bits", VAE, "--zdim 20 --binarize larochelle", 6, optional=True
    ),
    "gan": Kind("GAN", GAN, "", 40),
    "gan_report": Kind("GAN, the report's computation", GAN, "--protocol report", 40),
    "nf": Kind("flow (RealNVP)", NF, "", 85),
}
NEEDED = [name for name, kind in KINDS.items() if not kind.optional]
