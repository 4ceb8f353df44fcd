"""Checks of a submission's own epoch functions: averages, units, clipping, validation."""

import contextlib
import itertools
import math
import weakref
import zlib
from functools import partial

import torch
import torch.nn as nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gencheck.modules import changed_weights, perturb, replaced
from gencheck.outcomes import PASS, WEAK, WRONG, CannotJudge, Check, Outcome
from grading.checks import OF_FLOWS, load_checks
from grading.epochs import BATCH, NATS_PER_BIT, numbers

LAST = 8  # images in the short last batch: unusual ones
FEW = 8  # images in a batch where their number doesn't matter
BIAS_STD = 1.5  # of the decoder's last biases, so that images' values differ widely
UNITS = {"vae": "nats", "nf": "bits/dim"}


def epoch_value(epochs):
    """What `epoch_iter` returns for two full batches and a short one of unusual images.

    Returns (words of the average it is, words of its unit, the value, the average over images).
    """
    if epochs.seed not in epochs.averages:
        epochs.settle()
        epochs.averages[epochs.seed] = _measured_average(epochs)
    return epochs.averages[epochs.seed]


def _measured_average(epochs):
    stride = len(epochs.images) // (2 * BATCH)
    usual = epochs.images[epochs.seed % stride :: stride][: 2 * BATCH]
    unusual = torch.full((784,), 128.0)
    with changed_weights([*epochs.module.parameters(), *epochs.module.buffers()]):
        if epochs.model == "vae":  # a new VAE gives all images nearly the same value
            biases = [p for p in epochs.module.parameters() if p.shape == (784,)]
            perturb(biases, BIAS_STD, epochs.seed)
            unusual = (sum(biases, torch.zeros(784)) < 0).float()  # the least likely image
        return _explain_average(epochs, torch.cat([usual, unusual.expand(LAST, 784)]))


def _explain_average(epochs, images):
    batches = images.split(BATCH)
    epochs.module.eval()
    draws = [[epochs.true_value(b).double().mean().item() for b in batches] for _ in range(3)]
    means = torch.tensor(draws).double()
    spread = means.std(dim=0).mean().item()  # of one value of a batch, from its noise
    losses, sizes = means.mean(dim=0), torch.tensor([len(b) for b in batches]).double()
    averages, units = known_averages(losses, sizes), units_of(epochs.model)
    value = epochs.epoch(images, training=False)
    values = numbers(value) if epochs.submission.find("epoch_iter") else validation_values(value)
    tolerance = 1e-3 + 5 * spread / abs(losses.mean().item())
    likely = [value for _, value in list(averages.items())[:2]]
    if abs(likely[0] / likely[1] - 1) < 2 * tolerance:
        raise CannotJudge("the images' values differ too little to tell averages apart")
    for words, average in averages.items():
        for unit_words, unit in units.items():
            for value in map(abs, values):
                if abs(value / abs(average * unit) - 1) < tolerance:
                    return words, unit_words, value, averages["the average over images"]
    raise CannotJudge(f"{values[0]:.5g} is no known average of the batches' values")


def known_averages(losses, sizes) -> dict[str, float]:
    """What an epoch may return of its batches' average losses and their sizes, by words."""
    total, n, n_images = (losses * sizes).sum().item(), len(losses), sizes.sum().item()
    return {
        "the average over images": total / n_images,
        "the average of batch averages": losses.mean().item(),
        "the sum of batch averages over the number of batches minus 1": losses.sum().item()
        / (n - 1),
        "the sum of batch averages": losses.sum().item(),
        "the last batch's average": losses[-1].item(),
        "the sum over images": total,
        "batch sums averaged over batches": total / n,
        "batch averages summed and divided by the number of images": losses.sum().item() / n_images,
    }


def units_of(model) -> dict[str, float]:
    """Factors of other units than the model's, by words."""
    if model == "vae":
        return {"": 1.0}
    return {
        "": 1.0,
        "nats per dimension (not divided by log 2)": math.log(2),
        "multiplied by log 2 instead of divided": math.log(2) ** 2,
        "divided by log 2 twice": 1 / math.log(2),
        "nats per image": NATS_PER_BIT,
        "bits per image": 784.0,
        "nats per image, multiplied by log 2": 784 * math.log(2) ** 2,
    }


def _average(epochs):
    words, _, value, expected = epoch_value(epochs)
    unit = UNITS[epochs.model]
    status = PASS
    if words != "the average over images":
        harmless = ("the average of batch averages", "the sum of batch averages over the number of "
                    "batches minus 1")  # fmt: skip
        status = WEAK if words in harmless else WRONG
        if words == harmless[1]:
            words += ": 1.3% too much with the 79 batches of 128 validation images"
    return Outcome(
        status,
        f"{value:.4f} {unit}: {words}, for batches of {BATCH}, {BATCH} and {LAST} images",
        f"the average over images, {expected:.4f} {unit}",
    )


def _bpd(epochs):
    _, unit_words, value, expected = epoch_value(epochs)
    measured = f"{value:.4f}{': ' + unit_words if unit_words else ''}"
    expected = f"{expected:.4f} bits per dimension: nats / (784 log 2)"
    return Outcome(WRONG if unit_words else PASS, measured, expected)


def _state(module, optimizer):
    """Checksums of the module's tensors and of the optimiser's: copies would take much memory."""
    moments = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return tuple(
        [zlib.crc32(t.detach().contiguous().numpy()) for t in tensors]
        for tensors in ([*module.parameters(), *module.buffers()], moments)
    )


def _validation(epochs):
    """Whether validation changes weights, batch statistics, the optimiser's moments or images.

    A pass over a data set lasts until the next one begins, whatever their order, or until the end.
    """
    epochs.settle()
    module = epochs.module
    images = epochs.images[epochs.seed % 97 :][: 4 * FEW]
    train, val = (epochs.loader(part, FEW) for part in images.split(2 * FEW))
    originals = [loader.dataset.data.clone() for loader in (train, val)]
    optimizer = epochs.optimizer(1e-3)
    passes = []  # which data set, the state at the start, and the batches that the network got

    def begin(which):
        is_bound = "val" in (which, *(name for name, *_ in passes[-1:]))  # of a validation
        passes.append((which, _state(module, optimizer) if is_bound else None, []))

    train.on_start, val.on_start = partial(begin, "train"), partial(begin, "val")
    awaited = []  # a batch that no module was called with yet
    train.on_batch = val.on_batch = lambda: awaited.append(True)

    def record(module, inputs):
        tensor = next((part for part in inputs if isinstance(part, torch.Tensor)), images[0])
        if awaited and tensor.dim() > 1 and tensor[0].numel() == images.shape[1]:
            awaited.clear()
            passes[-1][2].append(tensor.detach().clone())

    forward = module.forward

    def recorded_forward(*args, **options):
        record(module, args)  # no hook sees a call of `forward` itself
        return forward(*args, **options)

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    with changed_weights([*module.parameters(), *module.buffers()]), contextlib.ExitStack() as end:
        end.callback(handle.remove)
        end.enter_context(replaced((module, "forward", recorded_forward)))
        if epochs.submission.find("run_epoch") is not None:
            epochs.run_epoch(train, val, optimizer)
        else:
            begin("train")
            epochs.epoch(images, training=True, lr=1e-3, size=FEW)
            begin("val")
            module.eval()
            epochs.epoch(images, training=False, lr=1e-3, size=FEW)
        begin("end")
    if {which for which, *_ in passes} != {"train", "val", "end"}:
        raise CannotJudge("run_epoch doesn't iterate over both data sets")
    moved = ["weights or batch statistics", "the optimiser's moments"]
    changes = [
        words
        for (which, start, _), (_, end, _) in itertools.pairwise(passes)
        if which == "val"
        for words, before, now in zip(moved, start, end)
        if before != now
    ]
    changed = list(dict.fromkeys(changes))
    problems = [f"validation trains: it changes {' and '.join(changed)}"] if changed else []
    if any(not torch.equal(data.dataset.data, o) for data, o in zip((train, val), originals)):
        problems.append("the data set's images are changed")
    got = [batch for which, _, batches in passes if which == "val" for batch in batches]
    if words := _other_images(torch.cat(got) if got else None, originals[1]):
        problems.append(f"the network gets changed validation images: {words}")
    expected = "validation changes nothing"
    return Outcome(WRONG if problems else PASS, "; ".join(problems) or expected, expected)


def _other_images(got, images) -> str:
    """How images that a network got differ from those of the data set, or "".

    They may be scaled: equal grey levels become equal values. Noise within a grey level is
    dequantisation.
    """
    if got is None or got.numel() != images.numel() or not got.is_floating_point():
        return ""
    got, images = got.flatten().double(), images.flatten().double()
    if ((got - images) >= 0).all() and ((got - images) <= 1).all() and images.max() > 1:
        return ""
    levels, index = images.unique(return_inverse=True)
    low = torch.full_like(levels, math.inf).scatter_reduce(0, index, got, "amin")
    high = torch.full_like(levels, -math.inf).scatter_reduce(0, index, got, "amax")
    widest = (high - low).argmax()
    if high[widest] - low[widest] < 1e-4 * (1 + got.abs().max()):
        return ""
    return f"pixels of value {levels[widest]:g} become {low[widest]:.2f} to {high[widest]:.2f}"


class _Kept:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def _validation_memory(epochs):
    """Whether the graphs of earlier batches are kept until a validation pass ends."""
    epochs.settle()
    kept, sizes = weakref.WeakSet(), []

    def pack(tensor):
        kept.add(one := _Kept(tensor.detach()))  # with its graph it would keep itself
        return one

    def count():
        sizes.append(sum({o.tensor.data_ptr(): o.tensor.nbytes for o in list(kept)}.values()))

    images = epochs.images[epochs.seed % 97 :][: 4 * FEW]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        if epochs.submission.find("run_epoch") is None:
            epochs.epoch(images, training=False, size=FEW, on_batch=count)
        else:  # it may be what switches gradients off
            train, val = epochs.loader(images[:FEW], FEW), epochs.loader(images, FEW)
            val.on_batch = count
            module = epochs.module
            with changed_weights([*module.parameters(), *module.buffers()]):
                epochs.run_epoch(train, val, epochs.optimizer())
    if len(sizes) < 4:
        raise CannotJudge("fewer than four batches were seen")
    growth = min(later - sooner for sooner, later in itertools.pairwise(sizes[1:]))
    expected = "no_grad, or item() of each batch's loss"
    if growth <= 0:
        return Outcome(PASS, "the graph of a batch is gone when the next one comes", expected)
    mega = growth / FEW * 10_000 / 2**20
    measured = f"validation keeps the graphs of all its batches: {mega:.0f} MB for 10,000 images"
    return Outcome(WEAK, measured, expected)


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
            images = epochs.images[epochs.seed % 97 :][: 3 * FEW]
            epochs.epoch(images, training=True, size=FEW)
    finally:
        handle.remove()
    if not norms:
        raise CannotJudge("no optimiser's step was seen")
    words = f"gradient norms {', '.join(f'{n:.4g}' for n in norms)} at the steps"
    if max(norms) - min(norms) < 1e-3 * max(norms) or max(norms) <= 10.001:
        return Outcome(PASS, words)
    return Outcome(WEAK, words, "clipped: equal norms where gradients are large")


def validation_values(value):
    """What the validation's value may be in what `run_epoch` returns.

    The second value: (train, val, ...). Or a half: the terms of train, then those of val. Of a
    dictionary, the values in this order.
    """
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, tuple | list) or len(value) < 2:
        raise CannotJudge("run_epoch doesn't return a value for each data set")
    half = value[len(value) // 2 :] if len(value) % 2 == 0 else value[1:2]
    return numbers(value[1]) + [numbers(half[0])[0], sum(numbers(part)[0] for part in half)]


EPOCH_MEASURES = {
    "validation": _validation,
    "validation_memory": _validation_memory,
    "epoch_average": _average,
    "bits_per_dimension": _bpd,
    "clipping": _clipping,
}
EPOCH_CHECKS = load_checks("epochs", EPOCH_MEASURES)


def epoch_checks(model: str) -> tuple[Check, ...]:
    """The checks of the epoch functions of a model."""
    return tuple(c for c in EPOCH_CHECKS if model == "nf" or c.name not in OF_FLOWS)
