"""TensorBoard's event files, read back."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave

from harness import records
from harness.errors import UserError
from harness.plots import save_grid
from tests.bare_runs import make_run

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
)


def read_back(folder):
    """({tag: {step: value}}, {tag: steps of its images}); fails if a step is there twice."""
    events = reader.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    tags, scalars, images = events.Tags(), {}, {}
    for tag in tags["scalars"]:
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        scalars[tag] = dict(found)
        assert len(found) == len(scalars[tag])
    for tag in tags["images"]:
        images[tag] = [event.step for event in events.Images(tag)]
    return scalars, images, events


def train(run, last, until):
    """Train to the epoch `until` of a run of `last`; each epoch draws a grid after its line."""
    for epoch in run.remaining(last):
        run.log(epoch=epoch, loss=1 / epoch, val_loss=epoch / 3)
        samples = np.full((4, 6), epoch / 10)
        save_grid(run.folder / f"samples_{epoch:03d}.png", {"samples": samples}, "", 2, (2, 3))
        if epoch == until and until != last:
            return
        run.checkpoint()


def expected_scalars(folder):
    lines = records.read_metrics(folder)
    keys = ("loss", "val_loss", "seconds")
    return {key: {line["epoch"]: np.float32(line[key]) for line in lines} for key in keys}


def test_the_event_file_has_the_numbers_of_the_metrics_and_the_grids(tmp_path):
    run = make_run(tmp_path / "run", tensorboard=True)
    with run:
        train(run, 3, 3)
        imsave(run.folder / "samples_fresh.png", np.zeros((2, 2)))
        run.finish({}, torch.nn.Linear(1, 1))
    scalars, images, events = read_back(run.folder)
    assert scalars == expected_scalars(run.folder) and len(scalars["loss"]) == 3
    assert images == {"samples": [1, 2, 3], "samples_fresh": [3]}
    content = events.Images("samples")[1].encoded_image_string
    (tmp_path / "read.png").write_bytes(content)
    original = imread(run.folder / "samples_002.png")
    assert original.ndim == 2 and imread(tmp_path / "read.png").shape == (*original.shape, 3)
    assert np.allclose(imread(tmp_path / "read.png"), original[..., None], atol=1 / 255)


@pytest.mark.parametrize("flushed", [True, False])
def test_a_killed_and_resumed_run_has_every_step_once(tmp_path, flushed):
    """Whether or not the killed process had written its last events to disk."""
    run = make_run(tmp_path / "run", tensorboard=True)
    train(run, 5, 3)  # stops after line 3, before the checkpoint that would hold it
    if flushed:
        run._events._writer.flush()
        assert read_back(run.folder)[0]["loss"].keys() == {1, 2, 3}
    run.close()
    resumed = make_run(resume=run.folder, tensorboard=True)
    assert resumed.count < 3
    with resumed:
        train(resumed, 5, 5)
    scalars, images, _ = read_back(run.folder)
    assert scalars == expected_scalars(run.folder) and len(scalars["loss"]) == 5
    assert images == {"samples": [1, 2, 3, 4, 5]}


def test_a_run_can_get_its_event_file_when_it_is_resumed(tmp_path):
    run = make_run(tmp_path / "run")
    train(run, 2, 2)
    assert not list(run.folder.glob("events*"))
    run.close()
    with make_run(resume=run.folder, tensorboard=True) as resumed:
        train(resumed, 4, 4)
    assert read_back(run.folder)[0] == expected_scalars(run.folder)


class Broken:
    """A finder that lets one package raise an error when it is imported."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "torch.utils.tensorboard":
            raise self.error


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no tensorboard"), AttributeError("numpy has no\nbool8")]
)
def test_a_package_that_cannot_be_imported_is_named_before_anything_is_written(
    tmp_path, monkeypatch, error
):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(UserError, match="pip install tensorboard") as raised:
        make_run(tmp_path / "run", tensorboard=True)
    assert type(error).__name__ in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
