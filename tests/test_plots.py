"""Grids and curves show the data they are given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from harness import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of their files; by suffix."""
    saved = {}
    monkeypatch.setattr(
        plots, "_write", lambda figure, path, **_: saved.update({path.suffix: figure})
    )
    return saved


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_tiles_fill_row_by_row_and_end_in_white():
    images = torch.arange(5.0)[:, None].expand(5, 784) / 10
    tiled = plots.tile(images, n_columns=3)
    assert tiled.shape == (2 * 28, 3 * 28)
    blocks = tiled.reshape(2, 28, 3, 28).swapaxes(1, 2)
    expected = np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]], np.float32)
    assert np.array_equal(blocks, np.broadcast_to(expected[:, :, None, None], blocks.shape))


def test_an_image_keeps_its_orientation():
    image = torch.rand(28, 28)
    assert np.array_equal(plots.tile(image.view(1, 784), 1), image.numpy())


def test_a_grid_has_a_panel_for_each_title_on_one_grey_scale(tmp_path):
    panels = {"dark": torch.full((4, 784), 0.2), "light": torch.full((4, 784), 0.8)}
    plots.save_grid(tmp_path / "grid.png", panels, n_columns=2)
    grey = imread(tmp_path / "grid.png")[..., 0]
    height, width = grey.shape
    middle = grey[height // 2]
    assert np.isclose(middle[width // 4], 0.2, atol=0.01)
    assert np.isclose(middle[3 * width // 4], 0.8, atol=0.01)


@pytest.mark.parametrize("n, n_columns", [(25, 5), (100, 10), (7, 3), (1, 1)])
def test_a_grid_is_square_unless_told_otherwise(monkeypatch, figures, n, n_columns):
    seen = []
    tile = plots.tile
    monkeypatch.setattr(plots, "tile", lambda *args: seen.append(args[1]) or tile(*args))
    plots.save_grid(Path("grid.png"), {"title": torch.zeros(n, 784)})
    plots.save_grid(Path("grid.png"), {"title": torch.zeros(n, 784)}, n_columns=2)
    assert seen == [n_columns, 2]


def test_curves_are_a_png_and_a_pdf(tmp_path):
    curves = {"a": ("k", [1, 2], [2.0, 1.0])}
    plots.save_curves(tmp_path / "a.png", curves, "x", "y", [(1, 1.5, "theirs")])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert imread(tmp_path / "a.png").ndim == 3


def test_bands_are_one_standard_deviation_of_the_seeds(figures, monkeypatch, tmp_path):
    seen = []

    def fill_between(self, x, low, high, **_):
        seen.append((np.asarray(x), low, high))

    monkeypatch.setattr(Axes, "fill_between", fill_between)
    curves = {"a": ("k", [1, 2], [[1.0, 2.0], [3.0, 2.0]]), "b": ("r", [1, 2], [1.0, 1.0])}
    plots.save_curves(tmp_path / "a.png", curves, "x", "y")
    ((x, low, high),) = seen
    assert np.allclose(x, [1, 2])
    assert np.allclose(low, [2 - 2**0.5, 2]) and np.allclose(high, [2 + 2**0.5, 2])
    lines = lines_of(figures[".png"].axes[0])
    assert np.allclose(lines["a"].get_ydata(), [2, 2])


def test_references_beyond_the_end_of_a_run_are_left_out(figures, tmp_path):
    curves = {"a": ("k", [1, 2, 3], [3.0, 2.0, 1.0])}
    references = [(2, 1.5, "theirs at 2"), (40, 1.0, "theirs at 40")]
    levels = [(0.5, "r", "a level")]
    plots.save_curves(tmp_path / "a.png", curves, "epoch", "nats", references, levels)
    axes = figures[".pdf"].axes[0]
    lines = lines_of(axes)
    assert lines.keys() == {"a", "theirs at 2", "a level"}
    assert lines["theirs at 2"].get_xydata().tolist() == [[2, 1.5]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats")


@pytest.mark.parametrize("n, inset, n_views", [(19, True, 1), (20, True, 2), (20, False, 1)])
def test_long_curves_are_magnified_without_their_first_tenth(figures, tmp_path, n, inset, n_views):
    y = [1000.0, *np.linspace(2, 1, n - 1)]
    curves = {"a": ("k", np.arange(1, n + 1), y)}
    plots.save_curves(tmp_path / "a.png", curves, "x", "y", inset=inset)
    views = [figures[".png"].axes[0], *figures[".png"].axes[0].child_axes]
    assert len(views) == n_views
    if n_views == 2:
        assert views[1].get_ylim()[1] < 3


def test_epochs_count_from_one_and_chosen_epochs_are_points(figures, tmp_path):
    curves = {"train": [3.0, 2.0], "val": None, "chosen": ([2], [2.5])}
    plots.save_epochs(tmp_path / "a.png", curves, "nats", title="a title")
    axes = figures[".png"].axes[0]
    lines = lines_of(axes)
    assert lines.keys() == {"train", "chosen"} and axes.get_title() == "a title"
    assert lines["train"].get_xydata().tolist() == [[1, 3], [2, 2]]
    assert lines["chosen"].get_xydata().tolist() == [[2, 2.5]]
    assert lines["train"].get_color() == plots.TRAIN
    assert lines["chosen"].get_color() == plots.THIRD


def test_an_annotated_copy_keeps_every_pixel(tmp_path):
    imsave(tmp_path / "a.png", np.random.default_rng(0).random((60, 300)), cmap="gray")
    plots.save_annotated(tmp_path / "a.png", tmp_path / "b.png", "a note")
    original, copy = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    assert np.array_equal(copy[-60:], original)
    assert copy.shape[0] > 60 and copy[:-60].min() < 0.5  # the note


@pytest.mark.parametrize(
    ("x", "shape"), [((1, 10, 40, 100), LineCollection), (range(1, 101), PolyCollection)]
)
def test_points_that_stand_apart_have_bars_and_curves_have_a_band(x, shape):
    """A band between four points would show what nobody measured."""
    axes = Figure().subplots()
    y = np.array([[1.0, 2.0, 4.0]]).T + np.zeros(len(x))
    plots._draw_curve(axes, "label", plots.TRAIN, np.array(x), y, x[-1])
    (spread,) = axes.collections
    assert type(spread).__mro__.index(shape) < 2
    heights = np.ptp(spread.get_paths()[0].vertices[:, 1])
    assert heights == pytest.approx(2 * y[:, 0].std(ddof=1))
