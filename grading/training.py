"""Checks of a short training with a submission's own `run_epoch`: what it learns and reports."""

import contextlib
import math
import resource
import time

import torch

from gencheck.outcomes import NOTE, PASS, WRONG, CannotJudge, Outcome
from grading.checks import load_checks
from grading.epoch_checks import UNITS, epoch_value, known_averages, units_of, validation_values

SIZE = {"vae": 128, "nf": 64}  # of the batches of a short training
VALIDATION = {"vae": 500, "nf": 250}  # images it validates on: as in the course, no full batches
SHORT = 28  # images that its last training batch lacks
TRAINING_SECONDS = 60  # for one pass of it
# Short training: steps with Adam 1e-3, then the exact value of the validation images. Bands are
# what right code reached: see grading/README.md, "Reference bands".
STEPS = {"vae": 112, "nf": 12}
BANDS = {"vae": (184.1, 190.8), "nf": (3.6, 6.07)}
BOUNDS = {"vae": (85.0, 210.0), "nf": (1.0, 8.0)}  # less is not believed, more is a note


def _short_training(epochs):
    """Train for a few steps with the submission's own function: a dict of what came out.

    Every seed of a measurement has a training of its own, from the same weights, on other images.
    """
    if epochs.seed in epochs.trained:
        return epochs.trained[epochs.seed]
    epochs.settle()
    size, steps, n_val = (of[epochs.model] for of in (SIZE, STEPS, VALIDATION))
    images = epochs.images.roll(epochs.seed // 1000 * n_val, dims=0)
    train, val = images[n_val:][: steps * size], images[:n_val]
    n, module = len(train) // size * size - SHORT, epochs.module
    train, passes = train[:n], max(1, round(steps * size / n))
    module.load_state_dict(epochs.untrained)
    optimizer = epochs.optimizer(1e-3)
    before, started, value = epochs.exact(val), time.process_time(), None
    for _ in range(passes):
        loaders = epochs.loader(train, size), epochs.loader(val, size)
        value = epochs.run_epoch(*loaders, optimizer, TRAINING_SECONDS)
    seconds = time.process_time() - started
    module.eval()
    after, reported, own = epochs.exact(val), validation_values(value), []
    if min(abs(abs(r) / after - 1) for r in reported) > 0.02:
        own = [epochs.true_value(b).double().mean().item() for b in val.split(size)]
    epochs.trained[epochs.seed] = {
        "before": before, "after": after, "seconds": seconds / passes / n * 50_000, "own": own,
        "reported": reported, "steps": passes * math.ceil(n / size),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }  # fmt: skip
    return epochs.trained[epochs.seed]


def _learns(epochs):
    run, unit = _short_training(epochs), UNITS[epochs.model]
    (low, high), (least, most) = BANDS[epochs.model], BOUNDS[epochs.model]
    measured = (
        f"{run['before']:.4g} to {run['after']:.4g} {unit} in {run['steps']} steps; an epoch of "
        f"50,000 images would take {run['seconds']:.0f} s on one core, in {run['megabytes']} MB"
    )
    expected = f"{least:g} to {most:g} {unit}; right code reached {low:g} to {high:g}"
    if not math.isfinite(run["before"]):
        raise CannotJudge("the true value of the untrained network is infinite or no number")
    if not math.isfinite(run["after"]) or run["after"] >= run["before"]:
        return Outcome(WRONG, measured, expected)
    if run["after"] < least:
        words = f"{measured}: too little to be true, so it is no density's"
        return Outcome(WRONG, words, expected)
    return Outcome(PASS if run["after"] <= most else NOTE, measured, expected)


def _reported(epochs):
    if epochs.wrong_logdet:
        raise CannotJudge("not compared: the log-determinant is wrong")
    run, unit = _short_training(epochs), UNITS[epochs.model]
    if not math.isfinite(run["after"]):
        raise CannotJudge("the true value of the trained network is infinite or no number")
    if run["after"] < BOUNDS[epochs.model][0]:
        raise CannotJudge("not compared: the exact value is too little to be true")
    says = min((abs(abs(r) - run["after"]), abs(r)) for r in run["reported"])[1]
    if not math.isfinite(says):
        raise CannotJudge("run_epoch returns a value that is infinite or no number")
    error = abs(says / run["after"] - 1)
    measured = f"run_epoch returns {says:.4g} {unit}"
    expected = f"{run['after']:.4g} {unit}, recomputed on the same weights and images"
    if error > 0.02 and (words := _explained(epochs, run, says)):
        raise CannotJudge(f"{measured}, not {expected}: it is {words}, which other checks judge")
    return Outcome(WRONG if error > 0.02 else PASS, measured, expected)


def _explained(epochs, run, says) -> str:
    """The average of the loss as it is coded that a reported value is, in words, or "".

    It may be the right average of it, or the one that `epoch_average` finds.
    """
    known = [("the average over images", "")]
    with contextlib.suppress(Exception):  # whatever it is, `epoch_average` reports it
        known.append(epoch_value(epochs)[:2])
    n_val, size = VALIDATION[epochs.model], SIZE[epochs.model]
    sizes = torch.tensor([len(part) for part in torch.zeros(n_val).split(size)]).double()
    averages = known_averages(torch.tensor(run["own"]).double(), sizes)
    for words, unit in known:
        if abs(abs(says) / abs(averages[words] * units_of(epochs.model)[unit]) - 1) < 0.02:
            return f"{words} of the loss as it is coded{', ' * bool(unit)}{unit}"
    return ""


TRAINING_CHECKS = load_checks("training", {"learns": _learns, "reported": _reported})
