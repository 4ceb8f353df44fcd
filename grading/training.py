"""Checks of a submission's own epoch functions: averages, units, clipping, validation, learning."""

import math
import time
from collections.abc import Callable

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from grading.adapters import SHAPES, first_that_works
from grading.flow import FlowSubject, log_normal
from grading.loading import Submission, time_limit
from grading.outcomes import (
    NOTE,
    PASS,
    WEAK,
    WRONG,
    CannotJudge,
    Check,
    Outcome,
    changed_weights,
    perturb,
    seed_everything,
)
from grading.stand_ins import Images
from grading.vae_subject import N_IMAGES, VAESubject, kl_divergence

BATCH, LAST = 32, 8  # two full batches and a short last one, of unusual images
EPOCH_SECONDS = 20
NATS_PER_BIT = 784 * math.log(2)
# Short training: steps of 128 images with Adam 1e-3, then the true value on 512 images. Bands: see
# grading/README.md, "Reference bands".
STEPS = {"vae": 120, "nf": 12}
BANDS = {"vae": (0.0, 1000.0), "nf": (0.0, 100.0)}
UNITS = {"vae": "nats", "nf": "bits/dim"}


class Snapshots(DataLoader):
    """A loader that calls a function when it is first iterated."""

    on_start: Callable = staticmethod(lambda: None)

    def __iter__(self):
        self.on_start()
        return super().__iter__()


class EpochSubject:
    """A submission's `epoch_iter` and `run_epoch` with data in the format that they take.

    Args:
        model: "vae" or "nf".
        submission: the module.
        module: the network to train.
        true_value: images [n, 784] -> the exact value of each in the model's unit, [n].
        caught: arguments that `main` gave to the epoch's function, by name.
        images, labels: data.
    """

    def __init__(self, model, submission, module, true_value, caught, images, labels):
        self.model, self.submission, self.module = model, submission, module
        self.true_value, self.images, self.labels = true_value, images.float(), labels
        self.seed = 0
        self.extra = {
            name: value
            for name, value in caught.items()
            if name not in ("model", "data", "optimizer", "function") and name != "net"
        }
        self.format = None

    def loader(self, images, size=BATCH) -> DataLoader:
        """Batches of these images in the format that the epoch's function takes."""
        with_labels, shape = self.format
        labels = self.labels[: len(images)] if with_labels else None
        data = Images(images.view(-1, *shape).clone(), labels)
        return Snapshots(data, batch_size=size)

    def settle(self) -> None:
        """Find the format of batches that `epoch_iter` or `run_epoch` takes."""
        if self.format is not None:
            return
        order = (False, True) if self.model == "vae" else (True, False)
        shapes = SHAPES[1::-1] if self.model == "vae" else SHAPES[:2]
        options = [(labels, shape) for labels in order for shape in shapes]

        def attempt(option):
            self.format = option
            with time_limit(EPOCH_SECONDS):
                value = self.submission.attempt(self.epoch, self.images[:64], training=False)
            if value is None:
                raise NotImplementedError
            return numbers(value)

        try:
            first_that_works(options, attempt, "the epoch's function")
        except Exception:
            self.format = None
            raise

    def optimizer(self, lr=0.0):
        """A new optimiser of the network; with a learning rate of 0 it changes nothing."""
        kind = torch.optim.SGD if lr == 0 else torch.optim.Adam
        return kind(self.module.parameters(), lr=lr)

    def epoch(self, images, training, lr=0.0, size=BATCH):
        """What `epoch_iter` returns for these images."""
        function = self.submission.find("epoch_iter")
        if function is None:
            raise CannotJudge("there is no epoch_iter")
        self.module.train(training)
        return self.submission.call(
            function, self.module, self.loader(images, size), self.optimizer(lr), **self.known()
        )

    def known(self):
        """Further arguments: those that `main` gave."""
        return self.extra

    def run_epoch(self, train, val, optimizer):
        """What `run_epoch` returns for these loaders."""
        function = self.submission.find("run_epoch")
        if function is None:
            raise CannotJudge("there is no run_epoch")
        return self.submission.call(function, self.module, (train, val), optimizer, **self.known())


def epoch_subject(model, submission: Submission, subject, caught, images, labels) -> EpochSubject:
    """The epoch functions of a submission whose model is under measurement in `subject`."""
    if model == "vae":
        subject.to_float32()
        module, value = subject.modules[0].model, vae_value(subject)
    else:
        module, value = subject.model, flow_value(subject)
    epochs = EpochSubject(model, submission, module, value, caught, images, labels)
    exact = true_elbo(subject) if model == "vae" else true_bpd(subject)

    def exact_average(images):
        seed_everything(1)
        return exact(images).mean().item()

    epochs.exact = exact_average
    return epochs


def numbers(value) -> list[float]:
    """The readings of a returned value: itself, its first part, or the sum of two parts."""
    if isinstance(value, tuple | list):
        parts = [numbers(part)[0] for part in value]
        return [parts[0]] + ([parts[0] + parts[1]] if len(parts) > 1 else [])
    return [float(torch.as_tensor(value).detach().double().mean())]


def vae_value(vae: VAESubject) -> Callable:
    """-ELBO in nats of every image, with one draw of z, from the loss as it is coded."""
    c = []

    @torch.no_grad()
    def value(images):
        if not c:
            with torch.enable_grad():
                c.append(vae.recon_and_kl(vae.x[:N_IMAGES])[0] or 1.0)
        x = images.view(-1, *vae.x.shape[1:])
        summed = abs(abs(c[0]) / N_IMAGES - 1) < 1e-3  # the loss is a sum over the batch
        scale = len(x) if summed else c[0]
        return torch.full((len(images),), vae.draw(x).loss.item() / scale)

    return value


def true_elbo(vae: VAESubject) -> Callable:
    """The true -ELBO in nats of every image, with one draw of z."""

    @torch.no_grad()
    def value(images):
        x = images.view(-1, *vae.x.shape[1:])
        draw = vae.draw(x)
        return draw.nll + kl_divergence(*vae.posterior.of(vae.outputs(x))).double()

    return value


def flow_value(flow: FlowSubject) -> Callable:
    """Bits per dimension of every image, from the model's own log p(x)."""

    @torch.no_grad()
    def value(images):
        log_px = torch.as_tensor(flow.model(images.clone())).double()
        log_px = log_px.sum(dim=1) if log_px.dim() > 1 and log_px.shape[1] > 1 else log_px
        log_px = log_px.reshape(-1)
        bits = log_px.abs() / NATS_PER_BIT
        return bits if len(bits) == len(images) else bits.mean().expand(len(images))

    return value


def true_bpd(flow: FlowSubject) -> Callable:
    """Bits per dimension of every image from the flow alone: our noise, logit step and prior."""

    @torch.no_grad()
    def value(images):
        alpha = 1e-5
        y = (images + torch.rand_like(images)) / 256 * (1 - alpha) + alpha / 2
        logit = (math.log1p(-alpha) - math.log(256) - y.log() - (1 - y).log()).sum(dim=1)
        z, ldj = flow.flow.forward(y.logit(), torch.zeros(len(y)))
        return -(log_normal(z) + ldj + logit) / NATS_PER_BIT

    return value


def _epoch_value(epochs):
    """What `epoch_iter` returns, as (average, unit): which mean of the batches it is.

    Returns (words of the average, words of the unit, measured, expected).
    """
    epochs.settle()
    usual = epochs.images[:: len(epochs.images) // 64][:64]
    unusual = torch.full((LAST, 784), 1.0 if epochs.model == "vae" else 128.0)
    images = torch.cat([usual, unusual])
    with changed_weights([*epochs.module.parameters(), *epochs.module.buffers()]):
        if epochs.model == "vae":  # a new VAE gives all images nearly the same value
            perturb(epochs.module.parameters(), 0.03, epochs.seed)
        return _explain_average(epochs, images)


def _explain_average(epochs, images):
    batches = images.split(BATCH)
    epochs.module.eval()
    draws = [[epochs.true_value(b).double().mean().item() for b in batches] for _ in range(4)]
    means = torch.tensor(draws).double()
    spread = (means.std(dim=0) / math.sqrt(len(draws)) + means.std(dim=0)).sum().item()
    losses, sizes = means.mean(dim=0), torch.tensor([len(b) for b in batches]).double()
    total, n = (losses * sizes).sum().item(), len(batches)
    averages = {
        "the average over images": total / len(images),
        "the average of batch averages": losses.mean().item(),
        "the sum of batch averages over the number of batches minus 1": losses.sum().item()
        / (n - 1),
        "the sum of batch averages": losses.sum().item(),
        "the last batch's average": losses[-1].item(),
        "the sum over images": total,
        "batch sums averaged over batches": total / n,
        "batch averages summed and divided by the number of images": losses.sum().item()
        / len(images),
    }
    units = {"": 1.0}
    if epochs.model == "nf":
        units |= {
            "nats per dimension (not divided by log 2)": math.log(2),
            "multiplied by log 2 instead of divided": math.log(2) ** 2,
            "nats per image": NATS_PER_BIT,
            "bits per image": 784.0,
        }
    with time_limit(EPOCH_SECONDS):
        values = numbers(epochs.epoch(images, training=False))
    tolerance = 3e-3 + 3 * spread / abs(averages["the average over images"])
    for words, average in averages.items():
        for unit_words, unit in units.items():
            for value in map(abs, values):
                if abs(value / abs(average * unit) - 1) < tolerance:
                    return words, unit_words, value, averages["the average over images"]
    raise CannotJudge(f"{values[0]:.5g} is no known average of the batches' values")


def _average(epochs):
    words, _, value, expected = _epoch_value(epochs)
    unit = UNITS[epochs.model]
    status = PASS
    if words != "the average over images":
        harmless = ("the average of batch averages", "the sum of batch averages over the number of "
                    "batches minus 1")  # fmt: skip
        status = WEAK if words in harmless else WRONG
    return Outcome(
        status, f"{value:.4f}: {words}", f"the average over images, {expected:.4f} {unit}"
    )


def _bpd(epochs):
    _, unit_words, value, expected = _epoch_value(epochs)
    measured = f"{value:.4f}{': ' + unit_words if unit_words else ''}"
    expected = f"{expected:.4f} bits per dimension: nats / (784 log 2)"
    return Outcome(WRONG if unit_words else PASS, measured, expected)


def _state(module, optimizer):
    tensors = [t.detach().clone() for t in (*module.parameters(), *module.buffers())]
    moments = [
        v.detach().clone()
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, torch.Tensor)
    ]
    return tensors, moments


def _validation(epochs):
    """Whether weights, batch statistics or the optimiser's moments change after training ends."""
    epochs.settle()
    module = epochs.module
    images = epochs.images[epochs.seed % 97 :][: 6 * BATCH]
    train, val = epochs.loader(images[: 3 * BATCH]), epochs.loader(images[3 * BATCH :])
    optimizer = epochs.optimizer(1e-3)
    states = {}
    train.on_start = lambda: states.setdefault("train", _state(module, optimizer))
    val.on_start = lambda: states.setdefault("val", _state(module, optimizer))
    with changed_weights([*module.parameters(), *module.buffers()]), time_limit(EPOCH_SECONDS):
        if epochs.submission.find("run_epoch") is not None:
            epochs.run_epoch(train, val, optimizer)
        else:
            states["train"] = None
            epochs.epoch(images, training=True, lr=1e-3)
            val.on_start()
            module.eval()
            epochs.epoch(images, training=False, lr=1e-3)
        after = _state(module, optimizer)
    if len(states) < 2:
        raise CannotJudge("run_epoch doesn't iterate over both data sets")
    moved = ["weights or batch statistics", "the optimiser's moments"]
    changed = [
        words
        for words, before, now in zip(moved, states["val"], after)
        if len(before) != len(now) or any(not torch.equal(b, a) for b, a in zip(before, now))
    ]
    expected = "validation changes nothing"
    if not changed:
        return Outcome(PASS, expected, expected)
    return Outcome(WRONG, f"validation trains: it changes {' and '.join(changed)}", expected)


def _clipping(epochs):
    """Norms of the gradients at the optimiser's steps, at weights where they are large."""
    epochs.settle()
    norms = []

    def record(optimizer, args, options):
        parts = [
            p.grad.norm() for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        norms.append(torch.stack(parts).norm().item())

    module = epochs.module
    handle = register_optimizer_step_pre_hook(record)
    try:
        with changed_weights([*module.parameters(), *module.buffers()]):
            perturb(module.parameters(), 0.003, epochs.seed)
            epochs.epoch(epochs.images[: 3 * BATCH], training=True)
    finally:
        handle.remove()
    if not norms:
        raise CannotJudge("no optimiser's step was seen")
    words = f"gradient norms {', '.join(f'{n:.4g}' for n in norms)} at the steps"
    if max(norms) - min(norms) < 1e-3 * max(norms) or max(norms) <= 10.001:
        return Outcome(PASS, words)
    return Outcome(WEAK, words, "clipped: equal norms where gradients are large")


def _short_training(epochs):
    """Train for a few steps with the submission's own function: a dict of what came out."""
    cache = getattr(epochs, "trained", None)
    if cache is not None:
        return cache
    epochs.settle()
    size, steps = 128, STEPS[epochs.model]
    n = min(len(epochs.images) - 512, steps * size)
    train, val = epochs.images[:n], epochs.images[-512:]
    passes = max(1, round(steps * size / n))
    optimizer, module = epochs.optimizer(1e-3), epochs.module
    before = epochs.exact(val)
    started, value = time.monotonic(), None
    for _ in range(passes):
        loaders = epochs.loader(train, size), epochs.loader(val, size)
        with time_limit(60):
            value = epochs.run_epoch(*loaders, optimizer)
    seconds = time.monotonic() - started
    module.eval()
    epochs.trained = {
        "before": before, "after": epochs.exact(val), "seconds": seconds / passes / n * 50_000,
        "reported": _last_number(value), "coded": epochs.true_value(val).double().mean().item(),
        "steps": passes * math.ceil(n / size),
    }  # fmt: skip
    return epochs.trained


def _last_number(value):
    """The validation's part of what `run_epoch` returns."""
    if isinstance(value, tuple | list) and len(value) >= 2:
        half = value[len(value) // 2 :] if len(value) % 2 == 0 and len(value) > 2 else value[1]
        if len(value) > 2:
            return [sum(numbers(part)[0] for part in half)]
        return numbers(half)
    raise CannotJudge("run_epoch doesn't return a value for each data set")


def _learns(epochs):
    run, unit = _short_training(epochs), UNITS[epochs.model]
    low, high = BANDS[epochs.model]
    measured = (
        f"{run['before']:.4g} to {run['after']:.4g} {unit} in {run['steps']} steps; an epoch of "
        f"50,000 images would take {run['seconds']:.0f} s on one core"
    )
    expected = f"{low:g} to {high:g}"
    if not math.isfinite(run["after"]) or run["after"] >= run["before"]:
        return Outcome(WRONG, measured, expected)
    return Outcome(PASS if run["after"] <= high else NOTE, measured, expected)


def _reported(epochs):
    run, unit = _short_training(epochs), UNITS[epochs.model]
    says = min((abs(abs(r) - run["after"]), abs(r)) for r in run["reported"])[1]
    error = abs(says / run["after"] - 1)
    measured = f"says {says:.4g} {unit}"
    expected = f"{run['after']:.4g}, recomputed on the same weights and images"
    return Outcome(WRONG if error > 0.02 else PASS, measured, expected)


AVERAGE = Check("epoch_average", _average, "A short last batch weighs as much as a full one.", "",
                "What is divided by what when the epoch ends?")  # fmt: skip
VALIDATION = Check("validation", _validation, "Validation on images that were trained on says "
                   "nothing.", "", "Which lines run in evaluation mode, too?", points=2.0)  # fmt: skip
EPOCH_CHECKS = {
    "vae": (VALIDATION, AVERAGE),
    "nf": (
        VALIDATION,
        AVERAGE,
        Check("bits_per_dimension", _bpd, "Numbers compare in one unit only.",
              "Papamakarios et al. 2017, Appendix E.2", "Nats to bits, image to dimension: which "
              "two factors?"),
        Check("clipping", _clipping, "Gradients of 300 to 900 nats make training diverge.",
              "the assignment", "Print the gradient's norm just before the optimiser's step."),
    ),
}  # fmt: skip
TRAINING_CHECKS = (
    Check("learns", _learns, "Training lowers the loss.", "", "Plot the loss of the first steps."),
    Check("reported", _reported, "A reported number is the true one.", "", "Recompute the number "
          "on the same weights."),
)  # fmt: skip


def epoch_checks(model: str) -> tuple[Check, ...]:
    """The checks of the epoch functions of a model."""
    return EPOCH_CHECKS[model]


def training_checks(model: str) -> tuple[Check, ...]:
    """The checks after a short training of a model."""
    return TRAINING_CHECKS
