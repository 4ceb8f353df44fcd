"""The kinds of run that the report needs, and the commands that train them."""

import functools
from typing import Any, NamedTuple

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


def epochs_of(settings: dict[str, Any]) -> int:
    """The number of epochs that a script's settings ask for."""
    return settings["n_epochs"] if "n_epochs" in settings else settings["epochs"]


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
        options = self.flags.split()
        if quick:
            options += QUICK[self.script].split()
        return options

    def settings(self, quick: bool = False) -> dict[str, Any]:
        """The script's settings with these options."""
        return _settings(self.script, *self.options(quick))

    def n_epochs(self, quick: bool = False) -> int:
        """The epochs of such a training."""
        return epochs_of(self.settings(quick))


@functools.cache  # every run is compared with every kind
def _settings(script: str, *options: str) -> dict[str, Any]:
    return SCRIPTS[script].Config.parse(list(options)).flat()


KINDS = {
    "vae": Kind("VAE, 20 latent dimensions", VAE, "--zdim 20", 10),
    "manifold": Kind("VAE, 2 latent dimensions", VAE, "--zdim 2", 9),
    "vae_report": Kind("VAE, the report's computation", VAE, "--zdim 20 --protocol report", 10),
    "larochelle": Kind(
        "VAE, Larochelle's bits", VAE, "--zdim 20 --binarize larochelle", 10, optional=True
    ),
    "gan": Kind("GAN", GAN, "", 90),
    "gan_report": Kind("GAN, the report's computation", GAN, "--protocol report", 90),
    "nf": Kind("flow (RealNVP)", NF, "", 150),
    "nf_report": Kind(
        "flow, the report's computation", NF, "--protocol report", 150, optional=True
    ),
}
NEEDED = tuple(name for name, kind in KINDS.items() if not kind.optional)
