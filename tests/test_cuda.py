"""On CUDA captured steps train as eager ones do, resume exactly, and checkpoints cross devices."""

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import records
from harness.devices import select_device
from harness.steps import adam, captured
from tests.processes import GAN, SCRIPTS, run_script
from tests.test_command_lines import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# A wrong KL, a stale batch or a repeated random number changes a loss by more than this.
TOLERANCE = 1e-4


def step_of(name, device):
    """One script's training step, captured unless the device was selected with eager=True."""
    torch.manual_seed(0)
    if name == "gan":
        networks = gan.Generator().to(device), gan.Discriminator().to(device)
        optimizers = tuple(adam(network, 2e-4) for network in networks)
        return captured(gan.train_step, *networks, optimizers, (0.9, 0.0))
    if name == "vae":
        model = vae.VAE().to(device)
        return captured(vae.train_step, model, adam(model, 1e-3))
    model = nf.Model([784], n_flows=1, n_hidden=64).to(device)
    return captured(nf.train_step, model, adam(model, 1e-3), 5.0)


SCALE = {
    "vae": lambda grey: (grey > 127).float(),
    "nf": lambda grey: grey,
    "gan": lambda grey: grey / 127.5 - 1,
}


@pytest.mark.parametrize("name", SCALE)
def test_a_captured_step_gives_the_losses_of_the_eager_one(name):
    results = []
    for eager in (False, True):
        device = select_device("cuda", eager)
        torch.manual_seed(1)
        sizes = 25 * [64] + [40] + 25 * [64]  # a short batch has a graph of its own
        batches = [torch.randint(0, 256, (n, 784), device=device).float() for n in sizes]
        step = step_of(name, device)
        torch.manual_seed(2)
        results.append(torch.stack([step(SCALE[name](batch)) for batch in batches]))
    assert torch.allclose(*results, rtol=TOLERANCE)
    assert len(results[0].unique(dim=0)) == len(results[0])  # every batch and noise is new


def metrics_of(folder):
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in records.read_metrics(folder)
    ]


def train(script, *flags):
    process = run_script(script, *flags, device="cuda")
    assert process.returncode == 0, process.stderr


def assert_close(ours, expected):
    for line, expected_line in zip(ours, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=TOLERANCE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_without_graphs_has_the_same_metrics(tmp_path, script):
    train(script, *TINY[script], "--out", tmp_path / "graph")
    train(script, *TINY[script], "--no_graph", "--out", tmp_path / "eager")
    assert_close(metrics_of(tmp_path / "graph"), metrics_of(tmp_path / "eager"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, script):
    counter = "--n_epochs" if script == GAN else "--epochs"
    train(script, *TINY[script], counter, "4", "--out", tmp_path / "long")
    train(script, *TINY[script], counter, "2", "--out", tmp_path / "short")
    train(script, "--resume", tmp_path / "short", counter, "4")
    assert_close(metrics_of(tmp_path / "short")[-1:], metrics_of(tmp_path / "long")[-1:])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(tmp_path, script, first, second):
    counter = "--n_epochs" if script == GAN else "--epochs"
    flags = [*TINY[script], counter, "1", "--out", tmp_path / "run"]
    assert run_script(script, *flags, device=first).returncode == 0
    process = run_script(script, "--resume", tmp_path / "run", counter, "2", device=second)
    assert process.returncode == 0, process.stderr
