"""The example that loads trained models: it uses each run's own data, and errors are one line."""

import json

import pytest
import torch
import torch.nn as nn

import a3_nf_template as nf
import a3_vae_template as vae
from datasets import Batches, Source
from examples import use_trained_models
from harness import weights
from harness.errors import UsageError, UserError


def write_run(folder, script, model, **arguments):
    """A run folder as far as the example reads it."""
    folder.mkdir()
    config = {"script": f"{script.__name__}.py", "arguments": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    weights.save(folder, model)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What the example asks `datasets` for. It gets 12 images that are in no data set."""
    asked = []
    images = torch.randint(0, 2, (12, 784), dtype=torch.uint8)

    def few(*args, **options):
        asked.append((*args, options))
        return (Batches(images, 12, torch.Tensor.float),) * 3

    monkeypatch.setattr(use_trained_models, "bmnist", few)
    monkeypatch.setattr(use_trained_models, "mnist", few)
    return asked


def run_example(*words):
    use_trained_models.main(use_trained_models.parse_args(list(map(str, words))))


def test_test_images_are_those_of_the_run(tmp_path, asked):
    where = {"dataset": "fashion", "data_dir": "clothes"}
    dressed = write_run(tmp_path / "dressed", vae, vae.VAE(8, 2), zdim=2, hidden_dim=8, **where)
    bits = {"binarize": "larochelle", "data_dir": "bits"}
    hugo = write_run(tmp_path / "hugo", vae, vae.VAE(8, 2), zdim=2, hidden_dim=8, **bits)
    flow = nf.Model([784], 1, 8)
    grey = write_run(tmp_path / "grey", nf, flow, n_flows=1, n_hidden=8, **where)
    run_example(dressed, hugo, grey, "--out", tmp_path / "pictures")
    assert asked == [
        (Source("fashion", "clothes"), 12, {"binarize": "static"}),
        (Source("mnist", "bits"), 12, {"binarize": "larochelle"}),
        (Source("fashion", "clothes"), 12, {}),
    ]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


def test_a_run_of_another_script_is_one_line(tmp_path):
    folder = write_run(tmp_path / "run", nn, nn.Linear(1, 1))
    with pytest.raises(UserError, match="run is a run of 'torch.nn.py', not of a3_vae_") as error:
        run_example(folder)
    assert "\n" not in str(error.value)


def test_runs_whose_pictures_would_replace_each_other_are_refused(tmp_path):
    with pytest.raises(UserError, match="two runs are named run"):
        run_example(tmp_path / "old" / "run", tmp_path / "new" / "run")


def test_a_seed_that_torch_cannot_take_is_a_usage_error():
    with pytest.raises(UsageError, match="--seed: must be .* below 4294967296, not"):
        use_trained_models.parse_args(["run", "--seed", str(2**70)])
