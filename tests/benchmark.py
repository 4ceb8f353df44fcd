"""Time per training step of this project and of the plain loop (`tests.plain`), measured in one run on this machine.

    python -m tests.benchmark [--device auto|cuda|mps|cpu] [--workers 0] [--epoch] [--scaling] [--json FILE]

Each training has a process of its own, as in real use, and the two take turns, a few steps at a time, data loading included,
with a third that multiplies square matrices; medians are compared. `fraction of peak` is the rate of this project's matrix
products, were they all of a step, over that of the square ones in the same precision. `--epoch` compares whole VAE epochs
with their validation as well.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import runs
import training
from datasets import N_PIXELS, Stream, bmnist, mnist
from tests import plain

ROUNDS = 4
STEPS = {"vae": 100, "nf": 6, "gan": 60}  # per turn: long enough that taking turns costs nothing
SQUARE = 4096


def endless(batches):
    return itertools.chain.from_iterable(iter(batches) for _ in itertools.count())


def ours_vae(device, batch_size=128, hidden_dim=500):
    train, val, _ = bmnist(batch_size=batch_size, device=device)
    model = vae.VAE(hidden_dim).to(device).train()
    optimizer = training.adam(model, 1e-3, device)
    average = training.WeightAverage(model, 0.999)
    eager = partial(vae.train_step, model, optimizer)
    steps = (
        training.steps_on(device, eager, model, optimizer),
        training.steps_on(device, partial(vae.evaluation_step, average.model)),
    )
    batches = endless(train)
    return {
        "step": lambda n: vae.epoch_iter(
            model.train(), itertools.islice(batches, n), optimizer, average, steps[0]
        ),
        "epoch": lambda _: vae.run_epoch(model, (train, val), optimizer, average, steps),
        "eager": lambda _: eager(next(batches)),
    }


def ours_nf(device, batch_size=128, n_hidden=1024):
    train, _, _ = mnist(batch_size=batch_size, device=device, max_shift=nf.MAX_SHIFT)
    model = nf.Model([N_PIXELS], n_hidden=n_hidden).to(device).train()
    optimizer = training.adam(model, 1e-3, device)
    average = training.WeightAverage(model, 0.999)
    eager = partial(nf.train_step, model, optimizer, 5.0)
    steps = training.steps_on(device, eager, model, optimizer)
    batches = endless(train)
    return {
        "step": lambda n: nf.epoch_iter(
            model, itertools.islice(batches, n), optimizer, average, steps=steps
        ),
        "eager": lambda _: eager(next(batches)),
    }


def ours_gan(device):
    train, _, _ = mnist(device=device)
    generator, discriminator = gan.Generator().to(device), gan.Discriminator().to(device)
    optimizers = [training.adam(model, 2e-4, device) for model in (generator, discriminator)]
    eager = partial(gan.train_batch, generator, discriminator, optimizers)
    steps = training.steps_on(device, eager, generator, discriminator, *optimizers)
    batches = (grey / 127.5 - 1 for grey in Stream(train.images, 64))
    return {
        "step": lambda n: torch.stack(
            [means for _, means in steps(itertools.islice(batches, n))]
        ).tolist(),
        "eager": lambda _: eager(next(batches)),
    }


def plain_vae(device, workers):
    train, val, _ = (
        plain.loader(
            255 * split.images, 128, [plain.to_tensor], shuffle=split.shuffle, workers=workers
        )
        for split in bmnist()
    )
    step, batches = plain.vae_step(device), endless(train)

    def epoch(_):
        for loader, training_mode in ((train, True), (val, False)):
            step.model.train(training_mode)
            with torch.set_grad_enabled(training_mode):
                for batch, _ in loader:
                    step(batch)
        step.model.train()

    return {
        "step": lambda n: [step(batch) for batch, _ in itertools.islice(batches, n)],
        "epoch": epoch,
    }


def plain_nf(device, workers):
    batches = endless(
        plain.loader(
            mnist()[0].images, 128, [plain.random_affine, plain.to_tensor], workers=workers
        )
    )
    step = plain.nf_step(device)
    return {"step": lambda n: [step(batch) for batch, _ in itertools.islice(batches, n)]}


def plain_gan(device, workers):
    batches = endless(
        plain.loader(mnist()[0].images, 64, [plain.to_tensor, plain.normalize], workers=workers)
    )
    step = plain.gan_step(device)
    return {"step": lambda n: [step(batch) for batch, _ in itertools.islice(batches, n)]}


def square_product(device):
    a, b = torch.randn(2, SQUARE, SQUARE, device=device)

    def multiply(n):
        for _ in range(n):
            product = a @ b
        product[0, 0].item()  # waits for the device

    return {"step": multiply}


def gflop(function):
    """Floating-point operations of the matrix products that `function` calls, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


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
    """In a process of its own: make the training, then answer ('step' | 'epoch' | 'gflop' | 'busy' | 'memory', n) until None."""
    functions = make(training.select_device(device.type), *arguments)
    while (request := pipe.recv()) is not None:
        name, n = request
        if name == "memory":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        elif name == "gflop":
            pipe.send(gflop(lambda: functions["eager"](1)))
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


def compare(trainees, name, rounds):
    """Median milliseconds per unit of `name` of each (trainee, units per turn), taking turns after one turn each to warm up."""

    def turn(trainee, n):
        time.sleep(0.2)  # the other's threads spin for a while before they sleep
        return trainee.ask(name, n)

    times = [[turn(*each) for each in trainees] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times)]


def scaling(device):
    """Microseconds per training image of the VAE and the flow by batch size and by width; rows of a table, printed."""
    rows = []
    print("      batch  width   us per image   GFLOP/s")
    for name, make, width, default in (
        ("vae", ours_vae, "hidden_dim", 500),
        ("nf", ours_nf, "n_hidden", 1024),
    ):
        sizes = [(batch, default) for batch in (64, 128, 512, 2048, 8192)]
        sizes += [(128, units) for units in (500, 1000, 2000, 4000) if units != default]
        for batch_size, units in sizes:
            # About as much work as 20 steps of the default size.
            n = max(1, 20 * 128 * default // (batch_size * units))
            with Trainee(make, device, batch_size, units) as ours:
                ours.ask("step", 1)
                milliseconds, gflop_per_step = ours.ask("step", n), ours.ask("gflop")
            rows.append(
                {
                    "model": name,
                    "batch_size": batch_size,
                    width: units,
                    "us_per_image": 1000 * milliseconds / batch_size,
                    "gflops": 1000 * gflop_per_step / milliseconds,
                }
            )
            print(
                f"{name:4} {batch_size:6} {units:6} {rows[-1]['us_per_image']:14.1f} {rows[-1]['gflops']:9.0f}"
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument(
        "--workers", type=int, default=0, help="worker processes of the plain loop's DataLoader"
    )
    parser.add_argument("--epoch", action="store_true", help="time one whole VAE epoch as well")
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="time per image by batch size (64 to 8192) and width (500 to 4000) as well",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    device = training.select_device(args.device)
    print(runs.device_name(device))
    results = {"device": runs.device_name(device), "workers": args.workers}
    makers = {"vae": (ours_vae, plain_vae), "nf": (ours_nf, plain_nf), "gan": (ours_gan, plain_gan)}
    many = 20 if device.type == "cuda" else 1  # a launch or two would be no measure there
    for name, (make_ours, make_plain) in makers.items():
        n = STEPS[name]
        with (
            Trainee(make_ours, device) as ours,
            Trainee(make_plain, device, args.workers) as theirs,
            Trainee(square_product, device) as square,
        ):
            plain_ms, ours_ms, square_ms = compare(
                [(theirs, n), (ours, many * n), (square, many)], "step", ROUNDS
            )
            gflop_per_step = ours.ask("gflop")
            peak = 2 * SQUARE**3 / 1e9 / (square_ms / 1000)
            results[name] = row = {
                "plain_ms": plain_ms,
                "ours_ms": ours_ms,
                "ratio": plain_ms / ours_ms,
                "gflop_per_step": gflop_per_step,
                "peak_gflops": peak,
                "fraction_of_peak": gflop_per_step / (ours_ms / 1000) / peak,
                "peak_memory_mb": ours.ask("memory"),
            }
            print(
                f"{name:4} plain {plain_ms:7.2f} ms   ours {ours_ms:7.2f} ms   ratio {row['ratio']:5.2f}   "
                f"{gflop_per_step:6.2f} GFLOP a step   {row['fraction_of_peak']:.2f} of the {peak:.0f} GFLOP/s of a square "
                f"{SQUARE} product   peak memory {row['peak_memory_mb']:.0f} MB"
            )
            if name == "vae" and args.epoch:
                plain_epoch, ours_epoch = (
                    ms / 1000 for ms in compare([(theirs, 1), (ours, 1)], "epoch", 3)
                )
                results["vae_epoch"] = {
                    "plain_s": plain_epoch,
                    "ours_s": ours_epoch,
                    "ratio": plain_epoch / ours_epoch,
                }
                print(
                    f"     one epoch with validation: plain {plain_epoch:.2f} s, ours {ours_epoch:.2f} s, "
                    f"ratio {plain_epoch / ours_epoch:.2f}"
                )
            if device.type == "cuda":
                row["gpu_busy"] = ours.ask("busy", many * n)
                print(f"     time of the kernels over wall time {row['gpu_busy']:.2f}")
    if args.scaling:
        results["scaling"] = scaling(device)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
