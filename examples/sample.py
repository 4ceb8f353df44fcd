"""Draw samples from finished runs of any of the three scripts.

    python -m examples.sample runs/vae-z20-seed0 runs/gan-seed0 --n 100 --seed 0 --out pictures

For each run it writes RUN_samples.png and the arrays, RUN_samples.npz: uint8 [n, n_pixels] by name.
The picture of a VAE has Bernoulli means on the left, draws from them on the right. It overwrites
nothing: RUN_samples-2.png follows, and so on.
`examples.interpolate` walks through the latent spaces.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

if not __package__:  # called as a file, without -m
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import cli, records
from harness.errors import UserError
from harness.plots import save_grid
from harness.run import candidates

SCRIPTS = {script.Config.SCRIPT: script for script in (vae, gan, nf)}


@dataclass
class Runs:
    """Finished runs, and where pictures of them go."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders of finished runs
    seed: int = 0  # seed of the random numbers
    out: Path = Path(".")  # the folder of the pictures

    def __post_init__(self):
        if not self.runs:
            raise ValueError("name at least one run folder")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2^32, not {self.seed}")

    def each(self, what: str) -> Iterator[tuple[ModuleType, Path, Path]]:
        """Of each run its script, its folder, and a new name for its picture: NAME_`what`.png.

        Sets the seed before each, so that its pictures don't depend on the others.

        Raises:
            UserError: a folder is not a run of one of the three scripts, or two have one name.
        """
        names = [folder.resolve().name for folder in self.runs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"two runs are named {name}: call once for each, with another --out"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        for name, folder in zip(names, self.runs):
            script = records.read_config(folder)["script"]
            if script not in SCRIPTS:
                raise UserError(f"{folder} is a run of {script!r}, not of {', '.join(SCRIPTS)}")
            torch.manual_seed(self.seed)
            yield SCRIPTS[script], folder, new_picture(self.out / f"{name}_{what}")


def new_picture(start: Path) -> Path:
    """START.png, or START-2.png and so on: neither it nor the .npz beside it is there."""
    pictures = (Path(f"{path}.png") for path in candidates(start))
    return next(
        picture
        for picture in pictures
        if not any(map(os.path.lexists, (picture, picture.with_suffix(".npz"))))
    )


@dataclass
class Command(Runs):
    """Draw samples from finished runs of any of the three scripts.

    Example: python -m examples.sample runs/vae-z20-seed0 --n 100
    """

    n: int = 100  # samples of each run

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise ValueError("--n must be at least 1")


def parse(words: list[str] | None = None) -> Command:
    """The command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m examples.sample")


def samples(script: ModuleType, folder: Path, n: int) -> dict[str, torch.Tensor]:
    """Samples by name, [n, n_pixels] in [0, 1] each; of a VAE also their Bernoulli means."""
    model = script.load_model(folder)
    if script is vae:
        draws, means = model.sample(n)
        return {"means": means, "draws": draws}
    images = model.sample(n)
    return {"samples": images / 255 if script is nf else images}


def main(command: Command) -> None:
    """Write samples of each run."""
    for script, folder, picture in command.each("samples"):
        shape = script.Config.of(folder).image_shape
        panels = samples(script, folder, command.n)
        save_grid(picture, panels, f"seed {command.seed}", image_shape=shape)
        print(picture)


if __name__ == "__main__":
    cli.run(main, parse)
