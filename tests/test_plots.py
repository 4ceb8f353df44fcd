"""Grids and curves show the data they are given."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from PIL import Image

from harness import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of their files; by suffix."""
    saved = {}
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path, *_: saved.update({path.suffix: figure})
    )
    return saved


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_tiles_fill_row_by_row_a_pixel_apart_and_end_in_white():
    images = torch.arange(5.0)[:, None].expand(5, 6) / 10
    tiled = plots.tile(images, n_columns=3, image_shape=(2, 3))
    assert tiled.shape == (2 * 2 + 1, 3 * 3 + 2)
    assert (tiled[2] == plots.GAP_GREY).all() and (tiled[:, [3, 7]] == plots.GAP_GREY).all()
    blocks = np.delete(np.delete(tiled, 2, axis=0), [3, 7], axis=1)
    blocks = blocks.reshape(2, 2, 3, 3).swapaxes(1, 2)
    expected = np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]], np.float32)
    assert np.array_equal(blocks, np.broadcast_to(expected[:, :, None, None], blocks.shape))


@pytest.mark.parametrize("shape", [(28, 28), (5, 9)])
def test_an_image_keeps_its_orientation(shape):
    image = torch.rand(shape)
    assert np.array_equal(plots.tile(image.view(1, -1), 1, shape), image.numpy())


def test_a_grid_has_a_panel_for_each_title_on_one_grey_scale(tmp_path):
    panels = {"dark": torch.full((4, 784), 0.2), "light": torch.full((4, 784), 0.8)}
    plots.save_grid(tmp_path / "grid.png", panels, "a caption", n_columns=2)
    grey = imread(tmp_path / "grid.png")
    height, width = grey.shape
    middle = grey[height // 4]
    assert np.isclose(middle[width // 8], 0.2, atol=0.01)
    assert np.isclose(middle[5 * width // 8], 0.8, atol=0.01)


def test_a_grid_s_arrays_are_beside_it_in_8_bits(tmp_path):
    means, draws = torch.rand(7, 784), torch.bernoulli(torch.full((3, 784), 0.5))
    plots.save_grid(tmp_path / "samples_010.png", {"means": means, "draws": draws}, "epoch 10")
    with np.load(tmp_path / "samples_010.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["means", "draws", "image_shape"]
        assert arrays["means"].dtype == arrays["draws"].dtype == np.uint8
        assert np.array_equal(arrays["draws"], 255 * draws.numpy())
        assert np.abs(arrays["means"] / 255 - means.numpy()).max() <= 0.5 / 255 + 1e-6
    assert {path.name for path in tmp_path.iterdir()} == {"samples_010.png", "samples_010.npz"}


@pytest.mark.parametrize(
    "names, words", [(["a"], "epoch 3"), (["a", "b"], "epoch 3; from left to right: a, b")]
)
def test_the_caption_is_in_the_file_and_not_in_the_picture(tmp_path, names, words):
    panels = {name: torch.ones(4, 784) for name in names}
    plots.save_grid(tmp_path / "grid.png", panels, "epoch 3")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.text["Description"] == words
        assert picture.getextrema() == (255, 255)
    assert plots.description(tmp_path / "grid.png") == words
    (tmp_path / "grid.png").write_bytes(b"no picture")
    assert plots.description(tmp_path / "grid.png") == ""


@pytest.mark.parametrize("n, n_columns", [(25, 5), (100, 10), (7, 3), (1, 1)])
def test_a_grid_is_square_unless_told_otherwise(monkeypatch, figures, tmp_path, n, n_columns):
    seen = []
    tile = plots.tile
    monkeypatch.setattr(plots, "tile", lambda *args: seen.append(args[1]) or tile(*args))
    plots.save_grid(tmp_path / "grid.png", {"a": torch.zeros(n, 784)}, "")
    plots.save_grid(tmp_path / "grid.png", {"a": torch.zeros(n, 784)}, "", n_columns=2)
    assert seen == [n_columns, 2]


CURVES = plots.Curves("loss", "nats", {"train": "training", "val": "validation"})


def history(counter="epoch", **columns):
    """Lines of metrics from columns of values; None leaves a value out."""
    lines = zip(*columns.values())
    return [
        {counter: n} | {key: v for key, v in zip(columns, values) if v is not None}
        for n, values in enumerate(lines, start=1)
    ]


def draw(path, *histories, curves=CURVES, **options):
    plots.draw_curves(curves, histories, path / "a.png", **options)


def test_curves_are_a_png_and_a_pdf(tmp_path):
    draw(tmp_path, history(train=[2.0, 1.0]), references=[(1, 1.5, "theirs")])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert imread(tmp_path / "a.png").ndim == 3


def test_one_run_s_columns_are_drawn_by_number(figures, tmp_path):
    CURVES.save(tmp_path / "a.png", train=[3.0, 2.0], val=[4.0, 3.5])
    lines = lines_of(figures[".png"].axes[0])
    assert lines["training"].get_xydata().tolist() == [[1, 3], [2, 2]]
    assert lines["validation"].get_xydata().tolist() == [[1, 4], [2, 3.5]]
    with pytest.raises(ValueError):
        CURVES.save(tmp_path / "a.png", train=[3.0, 2.0], val=[4.0])


def test_a_column_that_a_run_lacks_is_left_out_and_the_others_keep_their_colour(figures, tmp_path):
    draw(tmp_path, history(other=[1.0, 1.0], val=[2.0, 1.0]), title="a title")
    axes = figures[".png"].axes[0]
    lines = lines_of(axes)
    assert lines.keys() == {"validation"} and axes.get_title() == "a title"
    assert lines["validation"].get_color() == plots.COLOURS[1]


def test_a_value_that_only_some_lines_have_is_drawn_where_it_is(figures, tmp_path):
    draw(tmp_path, history(train=[3.0, 2.0, 1.0], val=[4.0, None, 2.0]))
    lines = lines_of(figures[".png"].axes[0])
    assert lines["validation"].get_xydata().tolist() == [[1, 4], [3, 2]]


def test_without_a_value_nothing_is_drawn(tmp_path):
    for histories in ([[]], [history(other=[1.0])], [history(train=[1.0]), []]):
        draw(tmp_path, *histories)
    assert not list(tmp_path.iterdir())


def test_bands_reach_from_the_smallest_to_the_largest_seed(figures, monkeypatch, tmp_path):
    seen = []

    def fill_between(self, x, low, high, **_):
        seen.append((np.asarray(x), low, high))

    monkeypatch.setattr(Axes, "fill_between", fill_between)
    # The second run is longer; the third lacks a validation.
    seeds = [history(train=[1.0, 2.0]), history(train=[3.0, 2.0, 9.0], val=[1.0, 1.0, 1.0])]
    draw(tmp_path, *seeds)
    ((x, low, high),) = seen
    assert np.allclose(x, [1, 2])
    assert np.allclose(low, [1, 2]) and np.allclose(high, [3, 2])
    lines = lines_of(figures[".png"].axes[0])
    assert lines.keys() == {"training"}
    assert np.allclose(lines["training"].get_ydata(), [2, 2])


def test_references_beyond_the_end_of_a_run_are_left_out(figures, tmp_path):
    references = [(2, 1.5, "theirs at 2"), (40, 1.0, "theirs at 40")]
    curves = plots.Curves("a", "nats", {"train": "a"}, levels=((0.7, "a level"),))
    lines = history(train=[3.0, 2.0, 1.0])
    draw(tmp_path, lines, curves=curves, references=references, levels=[(0.5, "published")])
    axes = figures[".pdf"].axes[0]
    lines = lines_of(axes)
    assert lines.keys() == {"a", "theirs at 2", "a level", "published"}
    assert lines["theirs at 2"].get_xydata().tolist() == [[2, 1.5]]
    assert lines["a level"].get_color() == plots.COLOURS[0]
    assert lines["published"].get_color() == plots.REFERENCE
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats")


@pytest.mark.parametrize("n, n_views", [(19, 1), (20, 2)])
def test_long_curves_are_magnified_without_their_first_tenth(figures, tmp_path, n, n_views):
    curves = plots.Curves("a", "nats", {"train": "a"}, counter="batch")
    draw(tmp_path, history("batch", train=[1000.0, *np.linspace(2, 1, n - 1)]), curves=curves)
    views = [figures[".png"].axes[0], *figures[".png"].axes[0].child_axes]
    assert len(views) == n_views and views[0].get_xlabel() == "batch"
    if n_views == 2:
        assert views[1].get_ylim()[1] < 3


def test_the_inset_hides_no_curve_cuts_no_marker_and_the_last_x_is_a_tick(figures, tmp_path):
    batches = range(500, 187_501, 500)
    lines = [{"batch": n, "train": 1.0, "val": 2.0 if n % 1000 else None} for n in batches]
    curves = plots.Curves("a", "nats", CURVES.columns, counter="batch")
    lines = [{key: value for key, value in line.items() if value} for line in lines]
    draw(tmp_path, lines, curves=curves)
    (axes,) = figures[".png"].axes
    (inset,) = axes.child_axes
    bottom, top = axes.get_ylim()
    assert (2.0 - bottom) / (top - bottom) < plots.INSET_BOTTOM - 0.05
    assert inset.get_xlim()[0] < 0.09 * 187_500
    words = [label.get_text() for label in axes.get_xticklabels()]
    assert words == ["0", "50,000", "100,000", "150,000", "187,500"]


def test_labels_say_that_validation_is_of_averaged_weights():
    labels = CURVES.of_averaged_weights(0.999).columns
    assert labels == {"train": "training", "val": "validation of averaged weights"}
    assert CURVES.of_averaged_weights(0.0) == CURVES


def test_a_constant_curve_can_be_magnified(figures, tmp_path):
    draw(tmp_path, history(train=30 * [2.0]))
    low, high = figures[".png"].axes[0].child_axes[0].get_ylim()
    assert low < 2 < high


def test_every_column_has_a_colour(figures, tmp_path):
    names = [f"column {n}" for n in range(len(plots.COLOURS) + 1)]
    curves = plots.Curves("a", "nats", {name: name for name in names})
    draw(tmp_path, history(**{name: [1.0] for name in names}), curves=curves)
    assert list(lines_of(figures[".png"].axes[0])) == names


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_an_annotated_copy_keeps_every_pixel(tmp_path, mode):
    imsave(tmp_path / "a.png", np.random.default_rng(0).random((60, 300)), cmap="gray")
    with Image.open(tmp_path / "a.png") as picture:
        picture.convert(mode).save(tmp_path / "a.png")
    plots.save_annotated(tmp_path / "a.png", tmp_path / "b.png", "a note")
    original, copy = plots.read_picture(tmp_path / "a.png"), imread(tmp_path / "b.png")
    assert np.array_equal(copy[-60:, :, :3], original[..., :3])
    assert copy.shape[0] > 60 and copy[:-60].min() < 0.5  # the note


@pytest.mark.parametrize(
    ("x", "shape"), [((1, 10, 40, 100), LineCollection), (range(1, 101), PolyCollection)]
)
def test_points_that_stand_apart_have_bars_and_curves_have_a_band(x, shape):
    """A band between four points would show what nobody measured."""
    axes = Figure().subplots()
    y = np.array([[1.0, 2.0, 4.0]]).T + np.zeros(len(x))
    plots._draw_curve(axes, "label", plots.STYLES[0], np.array(x), y, x[-1], clipped=False)
    (spread,) = axes.collections
    assert type(spread).__mro__.index(shape) < 2
    heights = np.ptp(spread.get_paths()[0].vertices[:, 1])
    assert heights == pytest.approx(np.ptp(y[:, 0]))


def test_pdfs_hold_no_type_3_font(tmp_path):
    draw(tmp_path, history(train=[1.0, 2.0], val=[2.0, 3.0]))
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_curves_differ_without_their_colours(tmp_path, figures):
    draw(tmp_path, history(train=list(range(12)), val=list(range(12))))
    lines = lines_of(figures[".png"].axes[0])
    assert lines["training"].get_linestyle() != lines["validation"].get_linestyle()


HOSTILE = {"image.origin": "lower", "savefig.bbox": "tight", "text.usetex": True, "font.size": 30}


def test_a_user_s_matplotlibrc_changes_no_picture(tmp_path):
    rng = np.random.default_rng(0)
    panels = {"samples": rng.random((9, 784))}
    history = [{"epoch": n, "loss": 1.0 / n} for n in range(1, 30)]
    for name, settings in (("plain", {}), ("hostile", HOSTILE)):
        (tmp_path / name).mkdir()
        with matplotlib.rc_context(settings):
            plots.save_grid(tmp_path / name / "samples.png", panels, "epoch 1")
            curves = plots.Curves("loss", "loss", {"loss": "training"})
            plots.draw_curves(curves, [history], tmp_path / name / "loss.png")
            plots.save_annotated(tmp_path / name / "loss.png", tmp_path / name / "note.png", "x")
    for picture in (tmp_path / "plain").glob("*.png"):
        assert picture.read_bytes() == (tmp_path / "hostile" / picture.name).read_bytes()
    assert len(list((tmp_path / "hostile").glob("*.png"))) == 3
