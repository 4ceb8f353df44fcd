"""On CUDA captured steps train as eager ones do, and runs resume there and on other devices."""

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import mnist
from harness import records, steps
from harness.steps import CapturedStep, adam, captured
from tests.processes import GAN, SCRIPTS, run_script
from tests.test_command_lines import FEW

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MODELS = ("vae", "nf", "gan")
COUNTER = {script: "--n_epochs" if script == GAN else "--epochs" for script in SCRIPTS}
SIZES = [*8 * [64], 40, *6 * [64]]  # of the batches: two shapes
# In these 15 steps rounding moves no loss by more than 5e-6 (the GAN's with two threads; others
# 3e-7), and each mistake below moves one by 6e-4 or more. After 50 steps rounding may have grown
# to as much.
TOLERANCE = 5e-5
RUN_TOLERANCE = 1e-4  # of the metrics of whole runs, 50 steps or more


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """No TF32, here and in processes started here: its rounding would hide mistakes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    yield
    torch.set_float32_matmul_precision(before)


def training(name, device):
    """(modules, step, inputs) of 15 steps of one script on real digits."""
    torch.manual_seed(0)
    grey = mnist()[1].images[: sum(SIZES)].float().to(device).split(SIZES)
    if name == "gan":
        networks = gan.Generator().to(device), gan.Discriminator().to(device)
        optimizers = tuple(adam(network, 2e-4) for network in networks)
        step = captured(gan.train_step, *networks, optimizers, (0.9, 0.0))
        return networks, step, [batch / 127.5 - 1 for batch in grey]
    if name == "vae":
        model = vae.VAE().to(device)
        step = captured(vae.train_step, model, adam(model, 1e-3))
        return [model], step, [(batch > 127).float() for batch in grey]
    model = nf.Model([784], n_flows=1, n_hidden=64).to(device)
    return [model], captured(nf.train_step, model, adam(model, 1e-3), 5.0), grey


def train(step, inputs):
    torch.manual_seed(1)
    return torch.stack([step(batch) for batch in inputs])


@needs_cuda
@pytest.mark.parametrize("name", MODELS)
def test_a_captured_step_gives_the_losses_of_the_eager_one(name, monkeypatch):
    losses = []
    for eager in (False, True):
        monkeypatch.setattr(steps, "use_graphs", not eager)
        _, step, inputs = training(name, torch.device("cuda"))
        assert isinstance(step, CapturedStep) != eager
        losses.append(train(step, inputs))
        assert steps.use_graphs != eager  # the graphs have been proved
    assert torch.allclose(*losses, rtol=TOLERANCE, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_the_tolerance_allows_rounding(name):
    losses = []
    for rounding in (0, torch.finfo(torch.float32).eps):
        modules, step, inputs = training(name, torch.device("cpu"))
        with torch.no_grad():
            for parameter in torch.nn.ModuleList(modules).parameters():
                parameter *= 1 + rounding * torch.randint(-1, 2, parameter.shape)
        losses.append(train(step, inputs))
    assert torch.allclose(*losses, rtol=TOLERANCE / 2, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, mistake",
    [
        *((name, mistake) for name in MODELS for mistake in ("stale batch", "repeated noise")),
        ("vae", "wrong KL"),
    ],
)
def test_the_tolerance_fails_a_mistake(name, mistake, monkeypatch):
    _, step, inputs = training(name, torch.device("cpu"))
    expected = train(step, inputs)
    _, step, inputs = training(name, torch.device("cpu"))
    if mistake == "stale batch":
        inputs = [*inputs[:11], inputs[10], *inputs[12:]]
    elif mistake == "repeated noise":
        step = repeating_noise(step, at=11)
    else:
        monkeypatch.setattr(vae, "kl_divergence", wrong_kl)
    assert not torch.allclose(train(step, inputs), expected, rtol=10 * TOLERANCE, atol=0)


def wrong_kl(mean, log_std):
    """With sigma where the KL has sigma^2, as the report had it."""
    return 0.5 * (torch.exp(log_std) + mean.square() - log_std - 1).sum(dim=1)


def repeating_noise(step, at):
    """The step, but call number `at` draws the random numbers of the call before."""
    states = []

    def mistaken(batch):
        if len(states) == at:
            torch.set_rng_state(states[-1])
        states.append(torch.get_rng_state())
        return step(batch)

    return mistaken


def succeed(script, *flags, device="cuda"):
    status, _, stderr = run_script(script, *flags, device=device)
    assert status == 0, stderr


def metrics_of(folder):
    return [line | {"seconds": 0.0} for line in records.read_metrics(folder)]


@needs_cuda
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_without_graphs_has_the_same_metrics(tmp_path, script):
    for name, flags in (("graph", []), ("no_graph", ["--no_graph"])):
        succeed(script, *FEW[script], *flags, "--out", tmp_path / name)
    graph, no_graph = (metrics_of(tmp_path / name) for name in ("graph", "no_graph"))
    for line, expected in zip(graph, no_graph, strict=True):
        assert line == pytest.approx(expected, rel=RUN_TOLERANCE)


@needs_cuda
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, script):
    counter = COUNTER[script]
    for name, epochs in (("long", 2), ("short", 1)):
        succeed(script, *FEW[script], counter, epochs, "--out", tmp_path / name)
    succeed(script, "--resume", tmp_path / "short", counter, 2)
    long, short = (metrics_of(tmp_path / name)[-1] for name in ("long", "short"))
    assert short == pytest.approx(long, rel=RUN_TOLERANCE)


@needs_cuda
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(tmp_path, script, first, second):
    counter, folder = COUNTER[script], tmp_path / "run"
    succeed(script, *FEW[script], counter, 1, "--out", folder, device=first)
    succeed(script, "--resume", folder, counter, 2, device=second)
    assert (folder / "result.json").exists()
