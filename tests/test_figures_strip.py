"""The strip reads back the digits of a sample grid."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave

from datasets import mnist
from figures import strip
from harness import plots
from harness.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return mnist()[1].images[:100].float() / 255


@pytest.mark.parametrize("n_columns, n_panels", [(5, 1), (10, 2)])
def test_digits_of_a_grid_are_read_back(tmp_path, digits, n_columns, n_panels):
    images = digits[: n_columns**2]
    panels = {f"panel {n}": images if n == 0 else 1 - images for n in range(n_panels)}
    plots.save_grid(tmp_path / "grid.png", panels)
    read = strip.digits_of(tmp_path / "grid.png", n_columns)
    expected = images.view(n_columns, n_columns, 784)[:5, :5].reshape(25, 784)
    assert read.shape == (25, 784) and np.abs(read - expected.numpy()).max() < 0.01


def test_a_picture_without_a_grid_is_refused(tmp_path):
    imsave(tmp_path / "white.png", np.ones((60, 60, 3)))
    with pytest.raises(UserError, match="white.png is no grid of samples"):
        strip.digits_of(tmp_path / "white.png", 5)


def test_a_strip_has_the_three_models_and_real_digits(tmp_path, monkeypatch, digits):
    pictures, saved = {}, {}
    for kind, (_, n_columns) in strip.PANELS.items():
        pictures[kind] = tmp_path / f"{kind}.png"
        plots.save_grid(pictures[kind], {kind: digits[: n_columns**2]})
    strip.save_strip(tmp_path / "strip.png", pictures)
    assert imread(tmp_path / "strip.png").shape[1] > 3 * imread(tmp_path / "strip.png").shape[0]
    monkeypatch.setattr(strip.plots, "save_grid", lambda _, panels: saved.update(panels))
    strip.save_strip(tmp_path / "strip.png", pictures)
    assert list(saved) == ["VAE", "GAN", "flow", "real digits"]
    assert torch.equal(saved["real digits"], mnist()[2].images[:25].float() / 255)


def test_the_last_grid_is_that_of_the_highest_epoch(tmp_path):
    for name in ("samples_980", "samples_1000", "samples_fresh"):
        (tmp_path / f"{name}.png").touch()
    groups = dict.fromkeys(strip.PANELS, [Namespace(folder=tmp_path, recorded=False)])
    assert {path.name for path in strip.last_pictures(groups).values()} == {"samples_1000.png"}
    assert strip.last_pictures(groups | {"nf": []}) is None
