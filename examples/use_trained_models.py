"""Load trained models from their run folders, draw from them, and walk through their latent spaces.

    python -m examples.use_trained_models runs/vae-z20-seed0 runs/gan-seed0 runs/nf-seed0

For each run this writes RUN_samples.png, and RUN_interpolation.png with straight lines between two
latents: those of test images for the VAE and the flow, random ones for the GAN. The test images are
those of the run's data set, for the VAE with the run's kind of bits.
"""

from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import Source, bmnist, mnist
from harness import cli, records
from harness.errors import UserError
from harness.latent import interpolate

N_LINES = 6
N_SAMPLES = 64


def vae_images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, interpolations) of a VAE, as Bernoulli means: [n, 784] in [0, 1] each."""
    model = vae.load_model(folder)
    _, samples = model.sample(N_SAMPLES)
    args = cli.settings_of(folder, vae.__file__, vae.parse_args)
    *_, test = bmnist(Source.of(args), 2 * N_LINES, binarize=args.binarize)
    z, _ = model.encoder(next(iter(test)))  # the means of q(z|x)
    return samples, model.decoder(lines_between(z))


def gan_images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, interpolations) of a GAN: [n, 784] in [0, 1] each."""
    generator = gan.load_model(folder)
    z = gan.sample_latents(2 * N_LINES, generator.latent_dim)
    return generator.sample(N_SAMPLES), gan.generate(generator, lines_between(z))


def flow_images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, interpolations) of a flow: [n, 784] in [0, 1] each."""
    model = nf.load_model(folder)
    args = cli.settings_of(folder, nf.__file__, nf.parse_args)
    *_, test = mnist(Source.of(args), 2 * N_LINES)
    ldj = torch.zeros(2 * N_LINES)
    z, _ = model.flow(*model.logit_normalize(model.dequantize(next(iter(test))), ldj))
    z = lines_between(z)
    logits, ldj = model.flow(z, torch.zeros(len(z)), reverse=True)
    images, _ = model.logit_normalize(logits, ldj, reverse=True)
    return model.sample(N_SAMPLES) / 255, images / 256


def lines_between(z: torch.Tensor) -> torch.Tensor:
    """Lines of 9 points from each latent in the first half of z to its partner in the second."""
    return torch.cat([interpolate(first, last) for first, last in zip(*z.chunk(2))])


IMAGES = {
    Path(script.__file__).name: function
    for script, function in ((vae, vae_images), (gan, gan_images), (nf, flow_images))
}


@torch.no_grad()
def main(args) -> None:
    """Write both pictures of each run.

    Raises:
        UserError: a folder is not a finished run of one of the three scripts, or two have the same
            name.
        DataError: a run's data set is not where the run found it.
    """
    names = [folder.resolve().name for folder in args.runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs are named {name}: call once for each, with another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in args.runs:
        script = records.read_config(folder)["script"]
        if script not in IMAGES:
            raise UserError(f"{folder} is a run of {script!r}, not of {', '.join(IMAGES)}")
        torch.manual_seed(args.seed)
        samples, lines = IMAGES[script](folder)
        for name, images, n_columns in (("samples", samples, 8), ("interpolation", lines, 9)):
            path = args.out / f"{folder.resolve().name}_{name}.png"
            save_image(make_grid(images.view(-1, 1, 28, 28), n_columns, pad_value=0.5), path)
            print(path)


def parse_args(argv=None):
    """The command line."""
    parser = cli.ArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="finished run folders")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder of the pictures")
    parser.add_number("--seed", 0, "seed of the samples", at_least=0, below=2**32)
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run_script(main, parse_args)
