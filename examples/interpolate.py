"""Walk through the latent spaces of finished runs, on straight lines between two latents.

    python -m examples.interpolate runs/vae-z20-seed0 runs/gan-seed0 runs/nf-seed0 --out pictures

For each run it writes RUN_interpolation.png and the arrays. The ends of a line are the latents of
two test images for the VAE and the flow, random ones for the GAN. The test images are those of the
run's data set, for the VAE with the run's kind of bits.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # called as a file, without -m
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import bmnist, mnist
from examples.sample import Runs
from harness import cli
from harness.latent import interpolate
from harness.plots import save_grid

N_LINES = 6


@dataclass
class Command(Runs):
    """Walk through the latent spaces of finished runs, on straight lines between two latents.

    Example: python -m examples.interpolate runs/vae-z20-seed0
    """


def parse(words: list[str] | None = None) -> Command:
    """The command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m examples.interpolate")


def vae_images(folder: Path) -> torch.Tensor:
    """Bernoulli means on lines between the posterior means of test images: [6 * 9, n_pixels]."""
    model, config = vae.load_model(folder), vae.Config.of(folder)
    _, _, test = bmnist(config.data, 2 * N_LINES, binarize=config.binarize)
    z, _ = model.encoder(next(iter(test)))
    return model.decoder(lines_between(z))


def gan_images(folder: Path) -> torch.Tensor:
    """Images on lines between random latents: [6 * 9, n_pixels] in [0, 1]."""
    generator = gan.load_model(folder)
    z = gan.sample_latents(2 * N_LINES, generator.latent_dim)
    return gan.generate(generator, lines_between(z))


def flow_images(folder: Path) -> torch.Tensor:
    """Images on lines between the latents of test images: [6 * 9, n_pixels] in [0, 1]."""
    model, config = nf.load_model(folder), nf.Config.of(folder)
    _, _, test = mnist(config.data, 2 * N_LINES)
    x = model.dequantize(next(iter(test)))
    logits, ldj = model.logit_normalize(x, torch.zeros(len(x)))
    z, _ = model.flow(logits, ldj)
    z = lines_between(z)
    logits, ldj = model.flow(z, torch.zeros(len(z)), reverse=True)
    images, _ = model.logit_normalize(logits, ldj, reverse=True)
    return images.floor().clamp(0, 255) / 255  # as `Model.sample` makes integers of them


def lines_between(z: torch.Tensor) -> torch.Tensor:
    """Lines of 9 points from each latent in the first half of z to its partner in the second."""
    return torch.cat([interpolate(first, last) for first, last in zip(*z.chunk(2))])


IMAGES = {vae: vae_images, gan: gan_images, nf: flow_images}


@torch.no_grad()
def main(command: Command) -> None:
    """Write lines through the latent space of each run.

    Raises:
        DataError: a run's data set is not where the run found it.
    """
    for script, folder, picture in command.each("interpolation"):
        lines, shape = IMAGES[script](folder), script.Config.of(folder).image_shape
        save_grid(picture, {"lines": lines}, "lines between two latents", 9, shape)
        print(picture)


if __name__ == "__main__":
    cli.run(main, parse)
