"""What is drawn from metrics and arrays: spikes that captions name, and the data manifold."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from figures import drawing
from figures.runs import read_run
from harness import plots
from harness.errors import UserError
from tests.fake_runs import fake_run


def test_spikes_are_named_by_seed_and_epoch(tmp_path):
    def spiky(epoch):
        return 1.8 + 1 / epoch + 0.2 * (epoch in (1, 52, 95))

    run = read_run(fake_run(tmp_path / "nf", "nf", "--seed", "1", train_bpd=spiky))
    remark = drawing.curves([run], tmp_path / "a.png", None)
    assert remark == "spikes: training (shifted images) of seed 1 at epoch 52, 95"
    at_the_end = read_run(
        fake_run(tmp_path / "end", "nf", train_bpd=lambda epoch: 1.8 + 1 / epoch + (epoch == 100))
    )
    remark = drawing.curves([at_the_end], tmp_path / "a.png", None)
    assert remark == "spikes: training (shifted images) of seed 0 at epoch 100"
    smooth = read_run(fake_run(tmp_path / "smooth", "nf", train_bpd=lambda epoch: 1.8 + 1 / epoch))
    assert drawing.curves([smooth], tmp_path / "a.png", None) is None


@pytest.mark.parametrize("decay, words", [("0.999", " of averaged weights"), ("0", "")])
def test_the_legend_says_whose_weights_are_validated(tmp_path, decay, words):
    run = read_run(fake_run(tmp_path / "vae", "vae", "--ema_decay", decay))
    assert drawing.curves_of(run).columns["val_neg_elbo_nats"] == f"validation{words}"


def test_the_manifold_has_z_on_its_axes(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(plots, "save_with_pdf", lambda figure, path: saved.append(figure))
    run = read_run(fake_run(tmp_path / "vae", "manifold"))
    images = np.zeros((16, 12), np.uint8)
    images[0] = 255  # z1 is lowest and z2 highest: on top, at the left
    np.savez(run.folder / "manifold_100.npz", means=images, image_shape=(3, 4))
    drawing.manifold([run], tmp_path / "a.png", None)
    (axes,) = saved[0].axes
    assert isinstance(saved[0], Figure)
    (picture,) = axes.get_images()
    assert picture.get_array()[0, 0] == 1 and picture.get_array()[-1, -1] == 0
    assert picture.origin == "upper" and list(picture.get_extent()) == [0, 1, 0, 1]
    at = dict(zip((label.get_text() for label in axes.get_xticklabels()), axes.get_xticks()))
    assert at["0"] == 0.5 and at["1"] == pytest.approx(0.8413, abs=1e-4)
    assert axes.get_ylabel() == "$z_2$"
    np.savez(run.folder / "manifold_100.npz", means=images[:15], image_shape=(3, 4))
    with pytest.raises(UserError, match="manifold_100.npz holds no samples"):
        drawing.manifold([run], tmp_path / "a.png", None)
