"""What only a CUDA device can show: captured steps train as eager ones do, and checkpoints cross devices."""

from functools import partial

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import runs
import training
from tests.test_command_lines import TINY, run_script

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def steps_of(name, device, no_graph):
    """The training steps of one script, captured unless `no_graph`."""
    torch.manual_seed(0)
    if name == "gan":
        models = [gan.Generator().to(device), gan.Discriminator().to(device)]
        optimizers = [training.adam(model, 2e-4, device, no_graph) for model in models]
        step, parts = partial(gan.train_batch, *models, optimizers), [*models, *optimizers]
    else:
        model = (vae.VAE() if name == "vae" else nf.Model([784], n_flows=1, n_hidden=64)).to(device)
        optimizer = training.adam(model, 1e-3, device, no_graph)
        more = () if name == "vae" else (5.0,)
        step, parts = (
            partial({"vae": vae, "nf": nf}[name].train_step, model, optimizer, *more),
            [model, optimizer],
        )
    return training.steps_on(device, step, *parts, no_graph=no_graph)


@pytest.mark.parametrize("name", ["vae", "nf", "gan"])
def test_a_captured_step_gives_the_losses_of_the_eager_one(name):
    device, results = training.select_device("cuda"), []
    batches = [
        torch.randint(0, 256, (n, 784), device=device).float() for n in 25 * [64] + [40] + 25 * [64]
    ]
    scale = {"vae": lambda x: (x > 127).float(), "nf": lambda x: x, "gan": lambda x: x / 127.5 - 1}[
        name
    ]
    for no_graph in (False, True):
        steps = steps_of(name, device, no_graph)
        torch.manual_seed(1)
        results.append(
            torch.stack([result for _, result in steps(scale(batch) for batch in batches)])
        )
    assert torch.allclose(*results, rtol=1e-3)


@pytest.mark.parametrize("script", TINY)
def test_a_run_without_graphs_has_the_same_metrics(tmp_path, script):
    metrics = []
    for name, flags in (("graph", []), ("no_graph", ["--no_graph"])):
        process = run_script(script, *TINY[script], *flags, "--out", tmp_path / name, device="cuda")
        assert process.returncode == 0, process.stderr
        metrics.append(
            [
                {key: value for key, value in line.items() if key != "seconds"}
                for line in runs.read_metrics(tmp_path / name)
            ]
        )
    for line, expected in zip(*metrics, strict=True):
        assert line == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("script", TINY)
@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(tmp_path, script, first, second):
    counter = "--n_epochs" if "gan" in script else "--epochs"
    flags = dict(zip(TINY[script][::2], TINY[script][1::2]))
    process = run_script(
        script,
        *(word for pair in (flags | {counter: "1"}).items() for word in pair),
        "--out",
        tmp_path / "run",
        device=first,
    )
    assert process.returncode == 0, process.stderr
    process = run_script(script, "--resume", tmp_path / "run", counter, "2", device=second)
    assert process.returncode == 0, process.stderr


def test_a_resumed_run_on_cuda_ends_as_the_uninterrupted_one(tmp_path):
    flags = TINY["a3_vae_template.py"]
    for name, epochs in (("long", "4"), ("short", "2")):
        run_script(
            "a3_vae_template.py",
            *flags,
            "--epochs",
            epochs,
            "--out",
            tmp_path / name,
            device="cuda",
        )
    run_script("a3_vae_template.py", "--resume", tmp_path / "short", "--epochs", "4", device="cuda")
    long, short = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("long", "short")
    )
    assert long["metrics"][-1]["val_neg_elbo_nats"] == pytest.approx(
        short["metrics"][-1]["val_neg_elbo_nats"], rel=1e-4
    )
