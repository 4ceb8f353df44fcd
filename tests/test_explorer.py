import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import bmnist, mnist
from figures.explorer import measure, models, networks, page
from figures.explorer.__main__ import main, parse_args
from harness.average import WeightAverage
from harness.errors import UserError
from tests.conftest import ROOT

TABS = ("plane", "units", "draw", "gan", "flow", "compare")


def perturbed(model):
    """All parameters, and the statistics of batch norm, away from their initial values."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.data += 0.05 * torch.rand_like(value)
    return model


def write_run(folder, script, arguments, parts, metrics, finished=True):
    """A run folder as the script leaves it, as far as the page reads it."""
    folder.mkdir(parents=True)
    config = {"script": Path(script.__file__).name, "arguments": arguments, "started": "2026"}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    torch.save(checkpoint | {"metrics": [metrics]}, folder / "checkpoint.pt")
    if finished:
        (folder / "result.json").write_text(json.dumps({"graded": [], "finished": "now"}))


def write_vae(folder, z_dim, **options):
    arguments = {"zdim": z_dim, "hidden_dim": 16}
    parts = {"average": WeightAverage(perturbed(vae.VAE(16, z_dim)), 0.9)}
    metrics = {"epoch": 7, "val_neg_elbo_nats": 123.4}
    write_run(folder, vae, arguments, parts, metrics, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind, with small models where the script allows it."""
    base = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    write_vae(base / "vae2", 2)
    write_vae(base / "vae20", 20)
    parts = {"generator": perturbed(gan.Generator()), "discriminator": gan.Discriminator()}
    write_run(base / "gan", gan, {}, parts, {"batch": 9, "d_fake": 0.3})
    parts = {"average": WeightAverage(perturbed(nf.Model([784], 4, 16)), 0.9)}
    write_run(base / "flow", nf, {"n_hidden": 16}, parts, {"epoch": 5, "val_bpd": 2.345})
    return base


@pytest.fixture(scope="module")
def rounded(runs):
    """The models whose weights the page has."""
    found, _ = models.find_models(runs)
    return {name: networks.quantised(trained.model) for name, trained in found.items()}


# --- Weights
def test_rounded_weights_are_within_half_a_step():
    weight = torch.randn(5, 40) * torch.tensor([[1e-6], [1.0], [50.0], [0.0], [1.0]])
    integers, scale = networks.quantise_rows(weight)
    assert integers.dtype == torch.int8 and integers.min() >= -127
    error = (weight - integers * scale[:, None]).abs()
    assert (error <= 0.5001 * scale[:, None]).all()
    assert (integers.abs().amax(dim=1) == torch.tensor([127, 127, 127, 0, 127])).all()


def test_rounding_twice_changes_nothing():
    model = networks.quantised(vae.VAE(16, 3))
    again = networks.quantised(model)
    for one, other in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_folded_batch_norm_is_the_same_function():
    torch.manual_seed(0)
    generator = perturbed(gan.Generator()).eval()
    z = torch.randn(20, 100)
    images, rounded_images = generator(z), networks.quantised(generator)(z)
    assert images.std() > 0.05
    assert (images - rounded_images).abs().max() < 0.02


def test_packed_layers_can_be_read_back():
    layer = torch.nn.Linear(7, 3)
    description, blob = networks.pack({"one": [(layer, 0.2)]})
    assert description == {"one": [{"nIn": 7, "nOut": 3, "slope": 0.2}]}
    scale, bias = np.frombuffer(blob, "<f4", 6).reshape(2, 3)
    weight = np.frombuffer(blob, np.int8, 21, 24).reshape(3, 7) * scale[:, None]
    assert len(blob) == 48
    np.testing.assert_array_equal(bias, layer.bias.detach())
    np.testing.assert_allclose(weight, layer.weight.detach(), atol=scale.max() / 2 + 1e-7)


def test_all_models_at_full_size_fit_in_10_megabytes():
    flow, generator = nf.Model([784], n_hidden=256), gan.Generator()
    for layer in flow.flow.layers:
        torch.nn.init.normal_(layer.nn[-1].weight)  # zeros would be compressed
    packed = [
        networks.vae_networks(vae.VAE(500, 20)),
        networks.vae_networks(vae.VAE(500, 2)),
        networks.gan_networks(networks.quantised(generator), gan.Discriminator()),
        networks.flow_networks(flow),
    ]
    size = sum(len(page.encoded(networks.pack(each)[1])) for each in packed)
    digits = page.encoded(measure.grey_images().numpy().tobytes())
    assert size + len(digits) < 9.5e6


def test_8_bit_weights_cost_less_than_half_a_nat_and_a_hundredth_of_a_bit():
    torch.manual_seed(0)
    images = bmnist()[0].images[:3000].float()
    model = vae.VAE(200, 20)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(3):
        for batch in images.split(100):
            vae.train_step(model, optimizer, batch)
    cost = measure.measure_vae(model, networks.quantised(model))
    assert cost["bands"]["negElbo"][1] < 200  # it has learned something
    assert abs(cost["cost"]["value"]) < 0.5
    model = nf.Model([784], 2, 64)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for batch in mnist()[0].images[:6000].float().split(100):
        nf.train_step(model, optimizer, 5.0, batch)
    cost = measure.measure_flow(model, networks.quantised(model))
    assert cost["bands"]["bpd"][1] < 5
    assert abs(cost["cost"]["value"]) < 0.01


# --- Which runs
def test_the_newest_finished_run_that_fits_is_shown(runs, tmp_path):
    base = tmp_path / "runs"
    shutil.copytree(runs / "flow", base / "old")
    shutil.copytree(runs / "flow", base / "new")
    write_vae(base / "vae", 20, finished=False)
    config = json.loads((base / "new" / "config.json").read_text())
    (base / "new" / "config.json").write_text(json.dumps(config | {"started": "2027"}))
    shutil.copytree(base / "new", base / "wide")
    config["arguments"]["n_hidden"] = 1024
    (base / "wide" / "config.json").write_text(json.dumps(config | {"started": "2028"}))
    (base / "foreign").mkdir()
    (base / "foreign" / "config.json").write_text("[]")
    found, missing = models.find_models(base)
    assert {name: trained.folder.name for name, trained in found.items()} == {"flow": "new"}
    assert missing["gan"] == "python a3_gan_template.py"
    assert missing["vae20"] == f"python a3_vae_template.py --resume {base / 'vae'}"


def test_commands_for_missing_models_make_runs_that_fit():
    for kind in models.KINDS.values():
        _, script, *flags = kind.command.split()
        assert script == Path(kind.script.__file__).name
        assert kind.fits(kind.script.parse_args(flags))


def test_a_damaged_checkpoint_is_missing_with_its_reason(runs, tmp_path, capsys):
    shutil.copytree(runs / "vae2", tmp_path / "vae2")
    shutil.copytree(runs / "flow", tmp_path / "flow")
    (tmp_path / "vae2" / "checkpoint.pt").write_bytes(b"nothing")
    found, missing = models.find_models(tmp_path)
    assert list(found) == ["flow"]
    assert "holds no usable checkpoint" in missing["vae2"]


def test_no_run_at_all_is_one_line_and_status_1(tmp_path):
    command = [sys.executable, "-m", "figures.explorer", "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "no finished run" in done.stderr


def test_no_folder_of_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        main(parse_args(["--runs", str(tmp_path / "none")]))
