"""From a submission's module to its GAN, watched in the training that it starts."""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn as nn

from gencheck.gan_checks import GanSubject
from gencheck.gan_observer import Observer
from gencheck.outcomes import TooLong, seed_everything
from grading.adapters import MAIN_SECONDS
from grading.loading import CannotLoad, Submission, time_limit
from grading.stand_ins import BATCHES

GAN_BATCH = 32
SMALL_BATCH = 8  # for networks that make no step with GAN_BATCH


def gan_subject(submission: Submission, pictures: list, loader: Iterable) -> GanSubject:
    """The GAN of a submission, watched in the training that it starts.

    That is its `main`; where there is none, or it makes no steps, a `train` that gets networks,
    optimisers and the `loader`; and then loops and calls at the file's top level.
    """
    kinds = {
        "generator": submission.find_class("Generator", "Gen"),
        "discriminator": submission.find_class("Discriminator", "Critic", "Disc"),
    }
    if None in kinds.values():
        raise CannotLoad(f"there is no class {[n for n, k in kinds.items() if k is None][0]}")
    starts = _starts(submission, kinds, loader)
    if not starts:
        raise CannotLoad("there is no function main or train, and no training at the top level")
    _set_batch(submission, GAN_BATCH)  # enough for statistics, and faster

    def watch(seed):
        try:
            return watch_all(seed)
        except TooSlow:
            BATCHES.limit = SMALL_BATCH
            _set_batch(submission, SMALL_BATCH)
            return watch_all(seed)

    def watch_all(seed):
        errors = []
        for start in starts:
            few = []
            try:
                args = (submission, start, kinds, pictures, seed, few)
                return submission.attempt(_watch_main, *args)
            except Exception as error:
                if few:  # what was seen before an exception was seen
                    return few[-1]
                errors.append(error)
        raise errors[0]

    subject = GanSubject(watch)
    subject.pictures = pictures  # whether G was in training mode at each one saved
    subject.seed = 1000
    try:
        _ = subject.seen  # remembered for the first measurement
    except Exception as error:
        if any(not list(made.parameters()) for made in submission.instances):
            raise CannotLoad("the networks are not implemented") from error
        raise
    return subject


class TooSlow(BaseException):
    """The training makes no steps of both networks in time."""


def _set_batch(submission, size) -> None:
    """Lower the batch size among the submission's settings."""
    if getattr(submission.settings, "batch_size", 0) > size:
        with contextlib.suppress(AttributeError):  # of a frozen dataclass
            submission.settings.batch_size = size


def _starts(submission, kinds, loader) -> list[Callable]:
    """What may start the training, the likeliest first."""
    main = submission.find("main", "Main", "run", "train_model")
    train = submission.find("train", "train_gan", "fit", "training")
    starts = [partial(submission.call, main)] if inspect.isfunction(main) else []
    if inspect.isfunction(train) and train is not main:
        starts.append(partial(_train, submission, train, kinds, loader))
    return starts + ([submission.run_work] if submission.work else [])


def _train(submission, train, kinds, loader):
    """Call `train` with new networks, an Adam for each, and the loader, by parameters' names."""
    nets = {which[0]: submission.call(kind) for which, kind in kinds.items()}
    known = {}
    for name in inspect.signature(train).parameters:
        word = name.lower()
        found = [
            w for w in "dg" if re.search(rf"(^|_){w}(_|$)|{w}{dict(d='isc', g='en')[w]}", word)
        ]
        if found and "loss" not in word:
            net = nets[found[0]]
            is_optimizer = "opt" in word
            known[name] = torch.optim.Adam(net.parameters(), 2e-4) if is_optimizer else net
        elif "load" in word or "data" in word:
            known[name] = loader
    submission.call(train, **known)


def _watch_main(submission, start, kinds, pictures, seed, few):
    """Start the training with an observer that starts once both networks are made.

    An observer that saw some steps of both before an exception is put into `few`.
    """
    seed_everything(seed)
    submission.instances.clear()
    pictures.clear()
    watching = []

    def networks():
        return [submission.made(kind) for kind in kinds.values()]

    def watch_from_here():
        if not watching and None not in networks():
            watching.append(Observer(*networks()))
            watching[0].__enter__()

    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: watch_from_here())
    seconds, error = 4 * MAIN_SECONDS if BATCHES.limit else 2 * MAIN_SECONDS, None
    try:
        with time_limit(seconds):
            start()
    except BaseException as raised:
        error = raised
    finally:
        handle.remove()
        if watching:
            watching[0].__exit__(None, None, None)
    steps = [net.steps for net in (watching[0].g, watching[0].d)] if watching else [[], []]
    if isinstance(error, TooLong) and not all(steps) and not BATCHES.limit:
        raise TooSlow
    if not any(steps):
        if isinstance(error, Exception):
            raise error
        if isinstance(error, TooLong):
            raise CannotLoad(f"no optimiser's step in {seconds} s: its networks are too large here")
        reason = "it calls sys.exit" if error else "it ends before any optimiser's step"
        raise CannotLoad(f"the training makes no steps: {reason}")
    if isinstance(error, Exception) and watching[0].total < 4:
        if all(steps):
            few.append(watching[0])
        raise error
    return watching[0]
