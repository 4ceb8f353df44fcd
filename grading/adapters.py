"""What the adapters of the three models share: from a submission's module to its models' parts."""

import inspect
from collections.abc import Callable

import torch.nn as nn

from gencheck.outcomes import CannotJudge, one_line
from grading.loading import CannotLoad, Submission

MAIN_SECONDS = 15  # until `main` calls the first epoch
SHAPES = ((784,), (1, 28, 28), (28, 28))
EPOCH_FUNCTIONS = ("epoch_iter", "run_epoch", "train_epoch", "train")


def first_that_works(options: list, try_one: Callable, what: str):
    """The first option for which try_one(option) raises nothing, and its result.

    Raises:
        CannotLoad: all fail; the reason is the first error, or the template's NotImplementedError.
    """
    errors = []
    for option in options:
        try:
            return option, try_one(option)
        except Exception as error:
            errors.append(error)
    missing = [e for e in errors if isinstance(e, NotImplementedError)]
    if missing:
        raise CannotLoad(f"{what} is not implemented") from missing[0]
    is_plain = isinstance(errors[0], CannotJudge | CannotLoad)
    words = str(errors[0]) if is_plain else f"{what} fails: {one_line(errors[0])}"
    raise CannotLoad(words) from errors[0]


def build(submission: Submission, kind: type, *args):
    """An instance: the one that `main` makes on its way to the first epoch, or one of our own.

    Returns it with the arguments of the function that `main` called, if it got so far.
    """
    if any("NotImplementedError" in line for line in _body(kind)):
        submission.attempt(submission.call, kind, *args)  # not worth running main for
    caught = submission.attempt(submission.run_main, EPOCH_FUNCTIONS, MAIN_SECONDS) or {}
    made = submission.made(kind)
    if made is None:
        _, made = first_that_works(
            [args, ()], lambda a: submission.attempt(submission.call, kind, *a), kind.__name__
        )
    return made.cpu(), caught


def _body(kind):
    try:
        return inspect.getsource(kind.__init__).splitlines()
    except (OSError, TypeError):
        return []


def parts_of(model, *names, methods=()):
    """A submodule by attribute, with or without underscores, or by its class's name; and methods.

    Raises:
        CannotLoad: there is none.
    """
    attributes = [form.format(name) for name in names for form in ("{}", "_{}", "{}_")]
    modules = [getattr(model, name, None) for name in attributes]
    modules += [
        part
        for part in nn.Module.modules(model)
        if part is not model and any(name in type(part).__name__.lower() for name in names)
    ]
    found = [part for part in modules if isinstance(part, nn.Module)][:1]
    found += [getattr(model, name) for name in methods if callable(getattr(model, name, None))]
    if not found:
        raise CannotLoad(f"the model has no {names[0]}")
    return found


def required(function, known):
    """Of the known arguments those that the function demands."""
    parameters = inspect.signature(function).parameters.items()
    demanded = {n for n, p in parameters if p.default is p.empty}
    return {name: value for name, value in known.items() if name in demanded}
