"""The examples that use trained models: each run's own data, and errors are one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from matplotlib.image import imread

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import Batches, Source
from examples import interpolate, sample
from harness import checkpoints
from harness.errors import UsageError, UserError


def write_run(folder, script, model, **settings):
    """A run folder as far as the examples read it."""
    folder.mkdir()
    if hasattr(script, "Config"):
        settings = script.Config().flat() | settings
    config = {"script": f"{script.__name__}.py", "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints.save_weights(folder, model)
    return folder


def call(module, *words):
    module.main(module.parse(list(map(str, words))))


@pytest.fixture
def folders(tmp_path):
    """A run of each script."""
    torch.manual_seed(0)
    networks = {"generator": gan.Generator(4), "discriminator": gan.Discriminator()}
    return [
        write_run(tmp_path / "vae", vae, vae.VAE(8, 2), zdim=2, hidden_dim=8),
        write_run(tmp_path / "gan", gan, nn.ModuleDict(networks), latent_dim=4),
        write_run(tmp_path / "nf", nf, nf.Model([784], 1, 8), n_flows=1, n_hidden=8),
    ]


def test_samples_of_all_three_models_are_pictures_and_arrays(tmp_path, folders):
    call(sample, *folders, "--n", 7, "--seed", 3, "--out", tmp_path / "out")
    for name, panels in (("vae", ["means", "draws"]), ("gan", ["samples"]), ("nf", ["samples"])):
        arrays = np.load(tmp_path / "out" / f"{name}_samples.npz")
        assert arrays.files == [*panels, "image_shape"]
        for panel in panels:
            assert arrays[panel].shape == (7, 784) and arrays[panel].dtype == np.uint8
            assert len(np.unique(arrays[panel], axis=0)) == 7
        assert imread(tmp_path / "out" / f"{name}_samples.png").ndim == 2  # grey
    draws = np.load(tmp_path / "out" / "vae_samples.npz")["draws"]
    assert set(np.unique(draws)) == {0, 255}


def test_samples_depend_on_the_seed_and_on_no_other_run(tmp_path, folders):
    call(sample, *folders, "--n", 3, "--out", tmp_path / "all")
    call(sample, folders[2], "--n", 3, "--out", tmp_path / "one")
    call(sample, folders[2], "--n", 3, "--seed", 1, "--out", tmp_path / "other")
    of_all, one, other = (
        np.load(tmp_path / name / "nf_samples.npz")["samples"] for name in ("all", "one", "other")
    )
    assert np.array_equal(of_all, one) and not np.array_equal(one, other)


@pytest.fixture
def asked(monkeypatch):
    """What the example asks `datasets` for. It gets 12 images that are in no data set."""
    asked = []
    images = torch.randint(0, 2, (12, 784), dtype=torch.uint8)

    def few(*args, **options):
        asked.append((*args, options))
        return (Batches(images, 12, torch.Tensor.float),) * 3

    monkeypatch.setattr(interpolate, "bmnist", few)
    monkeypatch.setattr(interpolate, "mnist", few)
    return asked


def test_test_images_are_those_of_the_run(tmp_path, asked):
    where = {"dataset": "fashion", "data_dir": "clothes"}
    dressed = write_run(tmp_path / "dressed", vae, vae.VAE(8, 2), zdim=2, hidden_dim=8, **where)
    bits = {"binarize": "larochelle", "data_dir": "bits"}
    hugo = write_run(tmp_path / "hugo", vae, vae.VAE(8, 2), zdim=2, hidden_dim=8, **bits)
    flow = nf.Model([784], 1, 8)
    grey = write_run(tmp_path / "grey", nf, flow, n_flows=1, n_hidden=8, **where)
    call(interpolate, dressed, hugo, grey, "--out", tmp_path / "pictures")
    assert asked == [
        (Source("fashion", Path("clothes")), 12, {"binarize": "static"}),
        (Source("mnist", Path("bits")), 12, {"binarize": "larochelle"}),
        (Source("fashion", Path("clothes")), 12, {}),
    ]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


def test_a_flow_s_lines_end_at_its_test_images(folders, asked):
    with torch.no_grad():
        images = interpolate.flow_images(folders[2]).view(6, 9, 784)
    test = interpolate.mnist()[2].images
    ends = torch.cat([images[:, 0], images[:, -1]]) * 255
    assert torch.equal(ends.round(), test.float())


@pytest.mark.parametrize("module", [sample, interpolate])
def test_a_run_of_another_script_is_one_line(tmp_path, module):
    folder = write_run(tmp_path / "run", nn, nn.Linear(1, 1))
    with pytest.raises(UserError, match="run is a run of 'torch.nn.py', not of a3_vae_") as error:
        call(module, folder)
    assert "\n" not in str(error.value)


def test_runs_whose_pictures_would_replace_each_other_are_refused(tmp_path):
    with pytest.raises(UserError, match="two runs are named run"):
        call(sample, tmp_path / "old" / "run", tmp_path / "new" / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--seed", str(2**70)], "--seed must be at least 0 and below 2"),
        (["run", "--n", "0"], "--n must be at least 1"),
        ([], "name at least one run folder"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        sample.parse(words)
