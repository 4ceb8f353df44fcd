"""Time per training step of this project and of the plain loop (`tests.plain`) on this machine.

python -m tests.benchmark [--device auto|cuda|mps|cpu] [--workers 0] [--epoch] [--scaling]
                          [--dataset mnist|fashion|kmnist] [--json FILE]

Each training has a process of its own, as in real use. The two take turns, a few steps at a time,
data loading included, with a third that only multiplies matrices. Medians are compared.

PyTorch multiplies matrices on a CPU by MKL, and has oneDNN as well. The peak is the rate of a
square product by the faster of the two, in the precision of the training. The fraction of peak is
the rate of this project's matrix products, if they took the whole step, over the peak. Beside it
stands the time that these products take alone, each by the faster of the two.

At the end stand the times to a published value of each model: epochs until recorded runs have
reached it, times the measured seconds. The plain loop trains as those without a moving average do.
"""

import contextlib
import itertools
import json
import multiprocessing
import resource
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import MNIST, N_PIXELS, Source, Stream, bmnist, mnist, read_mnist
from figures.recorded import read_recorded
from figures.runs import StoredRun
from harness import cli, references
from harness.average import WeightAverage
from harness.devices import select_device
from harness.provenance import device_name
from harness.steps import adam, captured
from tests import plain
from tests.products import SQUARE, bare_products, gflop, products_of, ways_to_multiply


@dataclass
class Options:
    """Time per training step of this project and of the plain loop on this machine."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # where to train
    workers: int = 0  # of the plain loop's DataLoader
    epoch: bool = False  # time a whole VAE epoch as well
    scaling: bool = False  # by batch size and width as well
    json: Path | None = None  # write the figures to this file
    data: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError("--workers must be at least 0")


def parse(words=None):
    """The options on a command line."""
    return cli.parse(Options, words, "benchmark.py")


ROUNDS = 4
STEPS = {"vae": 100, "nf": 6, "gan": 60}  # per turn: long enough that taking turns costs nothing
MODELS = {"vae": "VAE", "nf": "flow", "gan": "GAN"}
# The metrics whose published values runs are timed to.
TARGETS = {"vae": "val_neg_elbo_nats", "nf": "val_bpd_shifted", "gan": "quality.parzen_nats"}
STEPS_PER_EPOCH = {"vae": 391, "nf": 391, "gan": 937.5}
RECORDED = Path(__file__).parents[1] / "figures/measured/runs.jsonl"


def endless(batches):
    return itertools.chain.from_iterable(iter(batches) for _ in itertools.count())


def one_of_each_shape(batches):
    """A full batch and the short last one: with these, all steps of an epoch are captured."""
    return {batch.shape: batch for batch in batches}.values()


def ours_vae(device, source=MNIST, batch_size=128, hidden_dim=500):
    train, val, _ = bmnist(source, batch_size, device)
    model = vae.VAE(hidden_dim).to(device).train()
    optimizer, average = adam(model, 1e-3), WeightAverage(model, 0.999)
    vae.epoch_iter(model, one_of_each_shape(train), optimizer, average)
    batches = endless(train)
    return {
        "step": lambda n: vae.epoch_iter(model, itertools.islice(batches, n), optimizer, average),
        "epoch": lambda _: vae.run_epoch(model, (train, val), optimizer, average),
        "eager": lambda _: vae.train_step(model, optimizer, next(batches)),
    }


def ours_nf(device, source=MNIST, batch_size=128, n_hidden=1024):
    train, _, _ = mnist(source, batch_size, device, nf.MAX_SHIFT)
    model = nf.Model([N_PIXELS], n_hidden=n_hidden).to(device).train()
    optimizer, average = adam(model, 1e-3), WeightAverage(model, 0.999)
    nf.epoch_iter(model, one_of_each_shape(train), optimizer, average)
    batches = endless(train)
    return {
        "step": lambda n: nf.epoch_iter(model, itertools.islice(batches, n), optimizer, average),
        "eager": lambda _: nf.train_step(model, optimizer, 5.0, next(batches)),
    }


def ours_gan(device, source=MNIST):
    train, _, _ = mnist(source, device=device)
    networks = [made.to(device) for made in (gan.Generator(), gan.Discriminator())]
    arguments = *networks, tuple(adam(network, 2e-4) for network in networks), (0.9, 0.0)
    step = captured(gan.train_step, *arguments)
    batches = (grey / 127.5 - 1 for grey in Stream(train.images, 64))
    return {
        "step": lambda n: torch.stack([step(next(batches)) for _ in range(n)]).tolist(),
        "eager": lambda _: gan.train_step(*arguments, next(batches)),
    }


def plain_vae(device, source=MNIST, workers=0):
    train, val, _ = (
        plain.loader(255 * split.images, 128, plain.VAE_TRANSFORM, split.shuffle, workers)
        for split in bmnist(source)
    )
    step, batches = plain.vae_step(device), endless(train)

    def epoch(_):
        for loader, training_mode in ((train, True), (val, False)):
            step.model.train(training_mode)
            with torch.set_grad_enabled(training_mode):
                for batch, _ in loader:
                    step(batch)
        step.model.train()

    return {"step": partial(_take, step, batches), "epoch": epoch}


def plain_nf(device, source=MNIST, workers=0):
    data = plain.loader(mnist(source)[0].images, 128, plain.NF_TRANSFORM, workers=workers)
    return {"step": partial(_take, plain.nf_step(device), endless(data))}


def plain_gan(device, source=MNIST, workers=0):
    data = plain.loader(mnist(source)[0].images, 64, plain.GAN_TRANSFORM, workers=workers)
    return {"step": partial(_take, plain.gan_step(device), endless(data))}


def _take(step, batches, n):
    for batch, _ in itertools.islice(batches, n):
        step(batch)


def gpu_busy(function):
    """The time of the CUDA kernels that `function` launches over the wall time it takes."""
    function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    torch.cuda.synchronize()
    wall = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6 / wall


def serve(pipe, make, device, arguments):
    """In a process of its own: make the training, then answer (name, n) until None."""
    device = select_device(device.type)
    functions = make(device, *arguments)
    while (request := pipe.recv()) is not None:
        name, n = request
        if name == "memory":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        elif name == "products":
            pipe.send(products_of(lambda: functions["eager"](1)))
        elif name == "busy":
            pipe.send(gpu_busy(lambda: functions["step"](n)))
        else:
            started = time.perf_counter()
            functions[name](n)
            pipe.send(1000 * (time.perf_counter() - started) / n)


class Trainee:
    """A training in its own process, that trains when asked."""

    def __init__(self, make, device, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Not a daemon: the plain loop's DataLoader may have worker processes.
        self.process = context.Process(target=serve, args=(theirs, make, device, arguments))
        self.process.start()

    def ask(self, name, n=1):
        self.pipe.send((name, n))
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):  # it has failed
            self.pipe.send(None)
        self.process.join()


def compare(turns, rounds):
    """Median milliseconds per unit of each (trainee, name, units per turn), after one warm-up."""

    def take(trainee, name, n):
        time.sleep(0.2)  # the other's threads spin for a while before they sleep
        return trainee.ask(name, n)

    times = [[take(*turn) for turn in turns] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times)]


def compare_step(name, make_ours, make_plain, options, device):
    """The figures of one model, printed as a line; with --epoch those of the VAE's epoch, too."""
    source = options.data
    n, many = STEPS[name], 20 if device.type == "cuda" else 1  # a launch or two measure nothing
    results = {}
    with (
        Trainee(make_ours, device, source) as ours,
        Trainee(make_plain, device, source, options.workers) as theirs,
        Trainee(bare_products, device, products := ours.ask("products")) as bare,
    ):
        turns = [(theirs, "step", n), (ours, "step", many * n), (bare, "all", many * n)]
        turns += [(bare, way, many) for way in ways_to_multiply(device)]
        plain_ms, ours_ms, products_ms, *square_ms = compare(turns, ROUNDS)
        gflop_per_step, peak = gflop(products), 2e-6 * SQUARE**3 / min(square_ms)
        row = {"plain_ms": plain_ms, "ours_ms": ours_ms, "ratio": plain_ms / ours_ms}
        row |= {"gflop_per_step": gflop_per_step, "peak_gflops": peak, "products_ms": products_ms}
        row["fraction_of_peak"] = 1000 * gflop_per_step / ours_ms / peak
        row["peak_memory_mb"] = ours.ask("memory")
        print(
            f"{MODELS[name]:4} plain {plain_ms:7.2f} ms   ours {ours_ms:7.2f} ms   "
            f"ratio {row['ratio']:5.2f}   {gflop_per_step:6.2f} GFLOP a step   "
            f"{row['fraction_of_peak']:.2f} of {peak:.0f} GFLOP/s   "
            f"products alone {products_ms:6.2f} ms   peak memory {row['peak_memory_mb']:.0f} MB"
        )
        if name == "vae" and options.epoch:
            turns = [(theirs, "epoch", 1), (ours, "epoch", 1)]
            plain_s, ours_s = (milliseconds / 1000 for milliseconds in compare(turns, 3))
            ratio = plain_s / ours_s
            results["vae_epoch"] = {"plain_s": plain_s, "ours_s": ours_s, "ratio": ratio}
            words = f"plain {plain_s:.2f} s, ours {ours_s:.2f} s, ratio {ratio:.2f}"
            print(f"     an epoch with validation: {words}")
        if device.type == "cuda":
            row["gpu_busy"] = ours.ask("busy", many * n)
            print(f"     time of the kernels over wall time {row['gpu_busy']:.2f}")
    return {name: row, **results}


def scaling(device, source):
    """Microseconds per training image by batch size and by width: rows of a table, printed."""
    rows = []
    print("      batch  width   us per image   GFLOP/s")
    models = ("vae", ours_vae, "hidden_dim", 500), ("nf", ours_nf, "n_hidden", 1024)
    for name, make, width, default in models:
        sizes = [(batch, default) for batch in (64, 128, 512, 2048, 8192)]
        sizes += [(128, units) for units in (500, 1000, 2000, 4000) if units != default]
        for batch_size, units in sizes:
            # About as much work as 20 steps of the default size, all of full batches.
            n = max(1, 20 * 128 * default // (batch_size * units))
            with Trainee(make, device, source, batch_size, units) as ours:
                milliseconds, products = ours.ask("step", n), ours.ask("products")
            row = {"model": name, "batch_size": batch_size, width: units}
            row["us_per_image"] = 1000 * milliseconds / batch_size
            row["gflops"] = 1000 * gflop(products) / milliseconds
            rows.append(row)
            size = f"{MODELS[name]:4} {batch_size:6} {units:6}"
            print(f"{size} {row['us_per_image']:14.1f} {row['gflops']:9.0f}")
    return rows


def epochs_to(row: references.Row, run: StoredRun) -> int | None:
    """The epochs until a run first passed a row; of a value that only its end has, all of them."""
    part, _, key = row.key.rpartition(".")
    if part:
        value = run.results.get(part, {}).get(key)
        passed = value is not None and row.verdict(value) == references.PASS
        return run.n_epochs if passed else None
    lines = (line for line in run.history if key in line)
    return next((line["epoch"] for line in lines if line[key] <= row.high), None)


def epochs_to_published(name: str, found: list[StoredRun]) -> dict:
    """The hardest published value of a model, and the epochs until all seeds had reached it.

    Those of the plain recipe are of runs without a moving average, or of the published curve; None
    where nothing is recorded.
    """
    script = f"a3_{name}_template.py"
    settings = {"protocol": "standard"}
    rows = [row for row in references.rows(script, settings) if row.key == TARGETS[name]]
    row = min(rows, key=lambda row: row.high)
    runs = [run for run in found if run.script == script]
    ours = [run for run in runs if references.difference(script, run.settings) is None]
    ours = [run for run in ours if run.settings["protocol"] == "standard"]
    raw = [run for run in runs if not run.settings.get("ema_decay")]
    plain_epochs = [n for run in raw if (n := epochs_to(row, run))]
    curve = references.protocol_of(script, settings)["curve"]
    if not plain_epochs and curve:
        points = zip(curve["at"], curve["values"])
        plain_epochs = [next(epoch for epoch, value in points if value <= row.high)]
    ours_epochs = [epochs_to(row, run) for run in ours]
    return {
        "value": row.value,
        "unit": row.unit,
        "plain_epochs": max(plain_epochs, default=None),
        "ours_epochs": None if None in ours_epochs else max(ours_epochs, default=None),
    }


def time_to_published(results: dict) -> dict:
    """Seconds of both trainings to a published value, by the times measured; printed."""
    reached, found = {}, read_recorded(RECORDED)
    for name, model in MODELS.items():
        row = epochs_to_published(name, found)
        epoch = results.get(f"{name}_epoch")
        for side in ("plain", "ours"):
            steps = STEPS_PER_EPOCH[name] * results[name][f"{side}_ms"] / 1000
            seconds = epoch[f"{side}_s"] if epoch else steps
            n = row[f"{side}_epochs"]
            row[f"{side}_s"] = None if n is None else n * seconds
        words = [
            f"{side} {row[f'{side}_epochs']} epochs, {row[f'{side}_s']:,.0f} s"
            for side in ("plain", "ours")
            if row[f"{side}_s"] is not None
        ]
        print(f"{model:4} to {row['value']:g} {row['unit']}: {'; '.join(words) or 'not recorded'}")
        reached[name] = row
    return reached


def main(options):
    device = select_device(options.device)
    read_mnist(options.data)  # before the processes start: they would all download it
    print(device_name(device))
    results = {"device": device_name(device), "dataset": options.data.dataset}
    results["workers"] = options.workers
    models = ("vae", ours_vae, plain_vae), ("nf", ours_nf, plain_nf), ("gan", ours_gan, plain_gan)
    for name, ours, theirs in models:
        results |= compare_step(name, ours, theirs, options, device)
    results["to_published"] = time_to_published(results)
    if options.scaling:
        results["scaling"] = scaling(device, options.data)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main, parse)
