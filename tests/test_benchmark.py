"""The plain loop of the benchmark does the same work as ours, and learns the same thing."""

import itertools
import json
import math
import time
from pathlib import Path

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import mnist, random_shift
from figures.runs import stored_run
from tests import benchmark, plain, products

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def images():
    return mnist()[1].images[:640]


def test_plain_images_are_ours(images):
    batch, _ = next(iter(plain.loader(images, 64, plain.VAE_TRANSFORM, shuffle=False)))
    assert torch.allclose(255 * batch.view(64, 784), images[:64].float())
    batch, _ = next(iter(plain.loader(images, 64, plain.GAN_TRANSFORM, shuffle=False)))
    assert torch.allclose(batch.view(64, 784), images[:64] / 127.5 - 1, atol=1e-6)


def test_plain_shifts_are_ours(images):
    torch.manual_seed(0)
    dataset = plain.ImageDataset(images[:3], plain.NF_TRANSFORM)
    for index in range(3):
        theirs = torch.stack([dataset[index][0].view(784) for _ in range(120)])
        ours = random_shift(images[index].expand(200, -1), 1)
        shifts = (255 * theirs).round().byte().unique(dim=0)
        assert len(shifts) == 9 and torch.equal(shifts, ours.unique(dim=0))


def test_plain_flow_has_our_likelihood(images):
    batch = images[:32].float()
    model, step = nf.Model([784]), plain.nf_step()
    torch.manual_seed(1)
    loss = step(batch / 255)
    torch.manual_seed(1)
    assert loss == pytest.approx(-model(batch).mean().item(), rel=1e-4)


def test_plain_vae_has_our_objective(images):
    batch = (images[:32] > 127).float()
    torch.manual_seed(0)
    model = vae.VAE()
    torch.manual_seed(0)
    step = plain.vae_step()
    torch.manual_seed(1)
    loss = step(batch)
    torch.manual_seed(1)
    assert loss == pytest.approx(model(batch).item(), rel=1e-5)


@pytest.mark.parametrize("model", ["vae", "nf"])
def test_plain_steps_learn(images, model):
    torch.manual_seed(0)
    step = {"vae": plain.vae_step, "nf": plain.nf_step}[model]()
    batch = images[:64].float() / 255
    batch = batch.round() if model == "vae" else batch
    losses = [step(batch) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_plain_gan_steps_learn(images):
    torch.manual_seed(0)
    step = plain.gan_step()
    losses = [step(images[i : i + 64] / 127.5 - 1) for i in range(0, 640, 64)]
    assert losses[-1][1] < losses[0][1]


def test_trainees_take_turns_in_processes_of_their_own():
    device = torch.device("cpu")
    with (
        benchmark.Trainee(benchmark.ours_vae, device) as ours,
        benchmark.Trainee(benchmark.plain_vae, device) as theirs,
    ):
        assert ours.process.pid != theirs.process.pid
        turns = [(theirs, "step", 2), (ours, "step", 3)]
        assert all(0 < ms < math.inf for ms in benchmark.compare(turns, rounds=1))
        assert 100 < ours.ask("memory") < 3000


@pytest.mark.parametrize(
    "make", [benchmark.ours_vae, benchmark.ours_nf, benchmark.ours_gan, benchmark.plain_nf]
)
def test_every_training_of_the_benchmark_makes_steps(make):
    functions = make(torch.device("cpu"))
    functions["step"](2)
    if "eager" in functions:
        assert products.gflop(products.products_of(lambda: functions["eager"](1))) > 0.1


@pytest.mark.parametrize("make, module", [(benchmark.ours_vae, vae), (benchmark.ours_nf, nf)])
def test_no_timed_step_has_a_shape_that_is_new(monkeypatch, make, module):
    """A new shape is captured on CUDA, which takes longer than the step."""
    shapes = set()

    def record(step, model, *_):
        nothing = torch.zeros(4) if module is vae else torch.zeros(())
        return lambda batch: (shapes.add(batch.shape), nothing)[1]

    monkeypatch.setattr(module, "captured", record)
    functions = make(torch.device("cpu"), batch_size=10_000 if module is nf else 8192)
    warmed_up = shapes.copy()
    functions["step"](8)  # an epoch is 5 or 7 batches
    assert shapes == warmed_up and len(shapes) == (1 if module is nf else 2)


def test_the_products_of_a_step_are_counted():
    # The forward pass, twice that for the backward pass, less the gradient towards the images.
    forward = 2 * 128 * (784 * 500 + 500 * 40 + 20 * 500 + 500 * 784)
    eager = benchmark.ours_vae(torch.device("cpu"))["eager"]
    expected = (3 * forward - 2 * 128 * 784 * 500) / 1e9
    counted = products.products_of(lambda: eager(1))
    assert products.gflop(counted) == pytest.approx(expected)


def test_products_by_each_way_are_equal_and_counted():
    a, b = torch.randn(3, 5), torch.randn(7, 5).t()
    key = ((3, 5), (5, 1)), ((5, 7), (1, 5))
    for way in products.ways_to_multiply(torch.device("cpu")).values():
        assert torch.allclose(way(a, b), a @ b, atol=1e-5)
        assert products.products_of(lambda: way(a, b)) == {key: 1}
    assert products.gflop({key: 4}) == pytest.approx(4 * 2 * 3 * 5 * 7 / 1e9)


def test_products_alone_are_those_of_the_step(monkeypatch):
    """The same number of each layout, by one of the ways; a square product by each way."""
    monkeypatch.setattr(products, "SQUARE", 16)
    device = torch.device("cpu")
    step = {(((8, 4), (4, 1)), ((4, 6), (1, 4))): 3, (((4, 8), (1, 4)), ((8, 6), (6, 1))): 2}
    functions = products.bare_products(device, step)
    assert functions.keys() == {"all", *products.ways_to_multiply(device)}
    assert products.products_of(lambda: functions.pop("all")(2)) == {
        layouts: 2 * n for layouts, n in step.items()
    }
    square = (16, 16), (16, 1)
    for multiply in functions.values():
        assert products.products_of(lambda: multiply(5)) == {(square, square): 5}


def test_the_faster_way_is_chosen(monkeypatch):
    ways = {"slow": lambda a, b: time.sleep(0.001), "fast": lambda a, b: None}
    monkeypatch.setattr(products, "ways_to_multiply", lambda device: ways)
    assert products.faster_way(torch.device("cpu"), None, None) is ways["fast"]


def test_the_json_file_has_its_keys(tmp_path, monkeypatch):
    """Readers of the file, and the README's tables, rely on them."""

    class FakeTrainee:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, name, n=1):
            return {(((2, 3), (3, 1)), ((3, 4), (4, 1))): 5} if name == "products" else 2.0

    monkeypatch.setattr(benchmark, "Trainee", FakeTrainee)
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    file = tmp_path / "figures.json"
    flags = f"--device cpu --epoch --scaling --json {file}".split()
    benchmark.main(benchmark.parse(flags))
    content = json.loads(file.read_text())
    keys = {"device", "dataset", "workers", "vae", "nf", "gan", "vae_epoch", "scaling"}
    assert content.keys() == keys | {"to_published"}
    for name in ("vae", "nf", "gan"):
        assert content[name].keys() >= {
            "plain_ms",
            "ours_ms",
            "ratio",
            "gflop_per_step",
            "peak_gflops",
            "fraction_of_peak",
            "products_ms",
            "peak_memory_mb",
        }
    assert content["vae_epoch"].keys() == {"plain_s", "ours_s", "ratio"}
    assert content["scaling"][0].keys() >= {"model", "batch_size", "us_per_image", "gflops"}


def test_endless_starts_again():
    assert list(itertools.islice(benchmark.endless([1, 2]), 5)) == [1, 2, 1, 2, 1]


def recorded(script, lines, results=None, **changed):
    settings = script.Config().flat() | changed
    config = {"script": script.Config.SCRIPT, "settings": settings}
    return stored_run(Path("run"), config, lines, results or {}, True)


def test_epochs_are_counted_until_all_seeds_have_reached_the_published_value():
    def run(*values, **changed):
        lines = [{"epoch": n, "val_neg_elbo_nats": value} for n, value in enumerate(values, 1)]
        return recorded(vae, lines, **changed)

    seeds = [run(120.0, 100.5, 101.0, 99.0), run(101.0, 100.7, 100.6)]
    plain = run(120.0, 110.0, 102.0, 100.7, 100.5, ema_decay=0.0)
    row = benchmark.epochs_to_published("vae", [*seeds, plain])
    assert row == {"value": 100.6, "unit": "nats", "plain_epochs": 5, "ours_epochs": 3}
    late = benchmark.epochs_to_published("vae", [*seeds, run(101.0)])
    assert late["ours_epochs"] is late["plain_epochs"] is None


def test_the_flow_s_curve_is_the_report_s_and_the_gan_is_timed_to_its_end():
    lines = [{"epoch": 1, "val_bpd_shifted": 2.0}, {"epoch": 2}, {"epoch": 3}]
    lines.append({"epoch": 4, "val_bpd_shifted": 1.80})
    row = benchmark.epochs_to_published("nf", [recorded(nf, lines)])
    assert row == {"value": 1.804, "unit": "bits/dim", "plain_epochs": 60, "ours_epochs": 4}
    lines = [{"batch": 500, "g_loss": 1.0}]
    ends = [recorded(gan, lines, {"quality": {"parzen_nats": nats}}) for nats in (223.5, 222.5)]
    assert benchmark.epochs_to_published("gan", ends[:1])["ours_epochs"] == 200
    assert benchmark.epochs_to_published("gan", ends)["ours_epochs"] is None


def test_the_time_is_epochs_times_measured_seconds(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "read_recorded", lambda path: [])
    times = {"plain_ms": 100.0, "ours_ms": 50.0}
    results = {"vae": times, "nf": times, "gan": times}
    row = benchmark.time_to_published(results)["nf"]
    assert row["plain_s"] == pytest.approx(60 * 391 * 0.1) and row["ours_s"] is None
    assert "flow to 1.804 bits/dim: plain 60 epochs, 2,346 s\n" in capsys.readouterr().out
