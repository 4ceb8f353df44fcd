"""The strip shows the arrays beside the last sample grids."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from datasets import mnist
from figures import strip
from figures.runs import find_runs
from harness import plots
from harness.errors import UserError
from tests.fake_runs import fake_runs


@pytest.fixture
def groups(tmp_path):
    """A run of each model; the last grids show the first validation images, bright to dark."""
    digits = mnist()[1].images[:100].float() / 255
    for kind, n in (("vae", 100), ("gan", 25), ("nf", 25)):
        (folder,) = fake_runs(tmp_path, kind).glob(kind)
        names = ("means", "draws") if kind == "vae" else ("samples",)
        panels = {name: digits[:n] / (1 + at) for at, name in enumerate(names)}
        plots.save_grid(folder / "samples_200000.png", panels, "the last")
        (folder / "samples_fresh.npz").touch()
    found, _ = find_runs(tmp_path)
    return {run.folder.name: [run] for run in found}


def test_a_strip_has_the_three_models_and_real_digits(tmp_path, groups):
    panels = strip.panels_of(groups)
    assert list(panels) == ["VAE (means)", "GAN", "flow", "real digits"]
    _, val, test = mnist()
    for title, images in (
        ("VAE (means)", val.images),
        ("flow", val.images),
        ("real digits", test.images),
    ):
        expected = images[:25].float() / 255
        torch.testing.assert_close(torch.tensor(panels[title]).float(), expected)
    strip.save_strip(tmp_path / "strip.png", panels)
    height, width, _ = imread(tmp_path / "strip.png").shape
    assert width == 1600 and 3 * height < width < 4 * height


def test_no_strip_is_drawn_without_a_run_of_each_model(groups):
    assert strip.panels_of(groups | {"nf": []}) is None
    recorded = groups["gan"][0]._replace(recorded=True)
    assert strip.panels_of(groups | {"gan": [recorded]}) is None


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_arrays_are_named(groups, content):
    path = groups["nf"][0].folder / "samples_200000.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="samples_200000.npz holds no samples"):
        strip.panels_of(groups)
