"""Check a device in a few minutes: a table with a verdict on each line; exit status 0 if all pass.

python -m tests.device_check [--device auto|cuda|mps|cpu] [--quick] [--json FILE]

It compares each script's training step with the CPU's in float64, captured steps with eager ones,
killed and resumed runs with uninterrupted ones, and one whole epoch with the CPU's. Where there is
a GPU it measures speed against the plain loop and peak memory as well.
"""

import argparse
import contextlib
import functools
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import N_PIXELS, mnist
from harness import records, steps
from harness.devices import select_device, to_host
from harness.errors import UserError
from harness.provenance import device_name
from harness.steps import adam, captured

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
STEP = 1e-4  # relative error of a step in float32
TRAINING = 1e-3  # of the metrics of two runs with the same random numbers
SHORT = {
    "vae": "--epochs 3 --zdim 3 --hidden_dim 16 --batch_size 500 --importance_samples 2",
    "nf": "--epochs 3 --n_flows 1 --n_hidden 16 --batch_size 1000 --importance_samples 1",
    "gan": "--n_epochs 1 --batch_size 2048 --save_interval 5",
}
# The last line of metrics after one epoch with default options on a CPU, seed 0. Other seeds, and
# so other devices, differ by less than the tolerance.
EPOCH = {
    "vae": ("--epochs 1 --importance_samples 0", "val_neg_elbo_nats", 131.6, 4.0),
    "nf": ("--epochs 1 --importance_samples 0", "val_bpd", 1.995, 0.03),
    "gan": ("--n_epochs 1 --save_interval 937", "d_loss", 0.51, 0.03),
}
SPEED_UP = {"vae": 20.0, "gan": 15.0, "nf": 8.0}  # over the plain loop, on CUDA


class Line(NamedTuple):
    """One line of the table; without a bar there is only a value to know."""

    check: str
    value: float | str
    bar: str = ""
    passed: bool = True


class SameNoise(TorchFunctionMode):
    """Random numbers from one CPU generator, whatever the device and precision that ask."""

    def __init__(self, dtype: torch.dtype, seed: int = 0):
        super().__init__()
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        draw = {torch.randn_like: torch.randn, torch.rand_like: torch.rand}.get(function, function)
        if draw not in (torch.randn, torch.rand):
            return function(*args, **kwargs)
        if function is not draw:
            size, device = args[0].shape, args[0].device
        else:
            size = args[0] if isinstance(args[0], tuple) else args
            device = kwargs.get("device")
        return draw(size, generator=self.generator).to(device, self.dtype)


@functools.cache
def grey_images(device):
    """760 validation images, [760, 784]."""
    return mnist(device=device)[1].images[:760].float()


def training(name, device, dtype=torch.float32):
    """(models, optimizers, arguments of `train_step` before the batch, a function grey -> batch).

    Small enough for a CPU, and never clipped: clipping only changes the gradient's length.
    """
    torch.manual_seed(0)
    if name == "gan":
        models = [gan.Generator(), gan.Discriminator()]
    else:
        models = [vae.VAE() if name == "vae" else nf.Model([N_PIXELS], n_flows=2, n_hidden=256)]
    if name == "nf":  # away from the identity, where most gradients are zero
        for layer in models[0].flow.layers:
            torch.nn.init.normal_(layer.nn[-1].weight, std=0.01)
    for model in models:
        model.to(device, dtype).train()
    optimizers = [adam(model, 1e-3) for model in models]
    if name == "gan":
        arguments = (gan.train_step, *models, tuple(optimizers), (0.9, 0.1))
        return models, optimizers, arguments, lambda grey: grey / 127.5 - 1
    if name == "vae":
        arguments = (vae.train_step, *models, *optimizers)
        return models, optimizers, arguments, lambda grey: (grey > 127).to(grey.dtype)
    return models, optimizers, (nf.train_step, *models, *optimizers, 1e9), lambda grey: grey


def relative_error(found, expected):
    """|found - expected| / |expected| of two lists of tensors, as if each were one vector."""
    found, expected = (
        torch.cat([to_host(tensor.detach()).flatten() for tensor in tensors])
        for tensors in (found, expected)
    )
    return ((found - expected).norm() / expected.norm()).item()


def one_step(name, device, dtype, seed=0):
    """(losses, gradients, changes of the weights, what Adam's formula makes of the gradients)."""
    models, _, (step, *arguments), to_batch = training(name, device, dtype)
    parameters = [parameter for model in models for parameter in model.parameters()]
    before = [to_host(parameter.detach()).clone() for parameter in parameters]
    with SameNoise(dtype, seed):
        losses = step(*arguments, to_batch(grey_images(device)[:64].to(dtype)))
    gradients = [to_host(parameter.grad) for parameter in parameters]
    changes = [to_host(new.detach()) - old for new, old in zip(parameters, before)]
    # The first step of Adam: both bias-corrected moments are those of one gradient.
    formula = [-1e-3 * gradient / (gradient.abs() + 1e-8) for gradient in gradients]
    return [losses], gradients, changes, formula


def check_steps(device):
    """Each script's step on the device against the CPU's in float64."""
    for name in SHORT:
        losses, gradients, changes, formula = one_step(name, device, torch.float32)
        expected = one_step(name, CPU, torch.float64)
        for what, error in (
            ("loss of a step", relative_error(losses, expected[0])),
            ("its gradient", relative_error(gradients, expected[1])),
            ("Adam's step", relative_error(changes, formula)),
        ):
            check = f"{name}: {what}, relative error"
            yield Line(check, error, f"at most {STEP:.0e}", error <= STEP)


def train(name, device, use_graphs):
    """(the results of 12 steps, a short batch among them; the weights after them)."""
    steps.use_graphs = use_graphs
    models, _, (step, *arguments), to_batch = training(name, device)
    step = captured(step, *arguments)
    torch.manual_seed(1)
    losses = [step(to_batch(batch)) for batch in grey_images(device).split(64)]
    if steps.use_graphs != use_graphs:
        raise RuntimeError("the capture failed, or its replay disagrees with the step")
    return losses, [parameter for model in models for parameter in model.parameters()]


def check_captured(device):
    """Captured steps against eager ones with the same random numbers, on CUDA."""
    if device.type != "cuda":
        return
    for name in SHORT:
        pairs = zip(train(name, device, use_graphs=True), train(name, device, use_graphs=False))
        for what, bar, (found, expected) in zip(("losses", "weights"), (STEP, 1e-2), pairs):
            error = relative_error(found, expected)
            check = f"{name}: {what} of 12 captured steps, relative error to eager"
            yield Line(check, error, f"at most {bar:.0e}", error <= bar)
    steps.use_graphs = True


def start(name, device, *flags):
    """The script in a process of its own, without evaluation of samples."""
    command = [sys.executable, ROOT / f"a3_{name}_template.py", *map(str, flags)]
    if "--resume" not in flags:
        command += ["--device", device.type, "--quality_samples", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    """Wait for a script; UserError with its last line if it fails."""
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise UserError(output.strip().splitlines()[-1])


def metrics_of(folder):
    """All metrics of a run, without times."""
    lines = records.read_metrics(folder)
    return [torch.tensor([v for k, v in line.items() if k != "seconds"]) for line in lines]


def killed_and_resumed(name, device, folder):
    """The relative error of the metrics of a run that was killed and resumed."""
    whole, broken = folder / f"{name}-whole", folder / f"{name}-broken"
    finish(start(name, device, *SHORT[name].split(), "--out", whole))
    process = start(name, device, *SHORT[name].split(), "--out", broken)
    metrics = broken / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    if not (broken / "result.json").exists():
        finish(start(name, device, "--resume", broken))
    whole, broken = metrics_of(whole), metrics_of(broken)
    if len(whole) != len(broken):
        return float("inf")
    return relative_error(broken, whole)


def check_runs(device):
    """Whole short runs of each script, killed and resumed, against uninterrupted ones."""
    bar = 0.0 if device.type == "cpu" else TRAINING
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(SHORT)) as pool:
        futures = {
            name: pool.submit(killed_and_resumed, name, device, Path(folder)) for name in SHORT
        }
        for name, future in futures.items():
            check = f"{name}: metrics of a killed and resumed run, relative error"
            yield Line(check, (error := future.result()), f"at most {bar:.0e}", error <= bar)


def check_epoch(device):
    """One epoch of each script with its default options, against the CPU's."""
    for name, (flags, key, expected, tolerance) in EPOCH.items():
        if name == "nf" and device.type == "cpu":
            continue  # 50 seconds to learn nothing about another device
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            finish(start(name, device, *flags.split(), "--out", Path(folder) / "run"))
            seconds = time.perf_counter() - started
            value = records.read_metrics(Path(folder) / "run")[-1][key]
        passed = abs(value - expected) <= tolerance
        yield Line(f"{name}: {key} after one epoch", value, f"{expected} +- {tolerance}", passed)
        yield Line(f"{name}: seconds for that, start and evaluation included", seconds)


def check_speed(device):
    """The benchmark's ratios, on a GPU."""
    if device.type == "cpu":
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        command = ["-m", "tests.benchmark", "--device", device.type, "--json", file]
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        ratios = {name: json.loads(file.read_text())[name]["ratio"] for name in SPEED_UP}
    for name, ratio in ratios.items():
        bar = SPEED_UP[name] if device.type == "cuda" else 1.0
        yield Line(f"{name}: speed over the plain loop", ratio, f"at least {bar:g}", ratio >= bar)


def check_memory(device):
    """Peak memory of this process."""
    if device.type == "cuda":
        yield Line("peak memory of the steps above, MB", torch.cuda.max_memory_allocated() / 2**20)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Line(
            "peak memory of this process, MB", peak / 2 ** (20 if sys.platform == "darwin" else 10)
        )


def lines_of(check, device):
    """The lines of one check; one that raises is a line that fails."""
    try:
        yield from check(device)
    except Exception as error:  # whatever it is, the next check still runs
        words = str(error).strip().splitlines() or [""]
        yield Line(check.__doc__.splitlines()[0], f"{type(error).__name__}: {words[0]}", "", False)


def main(argv=None):
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="only steps, no whole runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE")
    args = parser.parse_args(argv)
    try:
        device = select_device(args.device)
    except UserError as error:
        parser.error(str(error))
    print(f"Python {sys.version.split()[0]}, PyTorch {torch.__version__}, {device_name(device)}")
    checks = [check_steps, check_captured, check_memory]
    if not args.quick:
        checks += [check_runs, check_epoch, check_speed]
    lines = []
    for line in itertools.chain.from_iterable(lines_of(check, device) for check in checks):
        lines.append(line)
        value = line.value if isinstance(line.value, str) else f"{line.value:.3g}"
        verdict = ("pass" if line.passed else "FAIL") if line.bar or not line.passed else ""
        print(f"{line.check:62} {value:>9}  {line.bar:18} {verdict}", flush=True)
    n_failed = sum(not line.passed for line in lines)
    print(f"{n_failed} checks failed" if n_failed else f"all pass on {device_name(device)}")
    if args.json is not None:
        table = {"torch": torch.__version__, "device": device_name(device)}
        table["lines"] = [line._asdict() for line in lines]
        args.json.write_text(json.dumps(table, indent=2) + "\n")
    return 1 if n_failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
