"""What a check says: a status, what was measured, what was expected; and how checks are run."""

import contextlib
import functools
import random
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gencheck.modules import without_dropout

# From the worst to the best. Only the first two accuse.
WRONG, WEAK, OLD, UNJUDGED, NOTE, PASS = "wrong", "weak", "old", "unjudged", "note", "pass"
STATUSES = (WRONG, WEAK, OLD, UNJUDGED, NOTE, PASS)
ACCUSING = (WRONG, WEAK)


class CannotJudge(Exception):
    """A check's preconditions don't hold; the message says why."""


class TooLong(BaseException):
    """A statement or call took longer than its limit."""


@dataclass(frozen=True)
class Outcome:
    """The result of one measurement.

    Args:
        status: one of STATUSES.
        measured: in one line, with its unit.
        expected: in one line, with its unit.
        proof: an exact counterexample; a second measurement could only repeat it.
    """

    status: str
    measured: str
    expected: str = ""
    proof: bool = False


@dataclass(frozen=True)
class Check:
    """One thing that is checked.

    Args:
        name: short, unique within a model.
        measure: a function of the subject that returns an `Outcome`; it may raise `CannotJudge`.
        why: why it matters, in one sentence.
        hint: what to look at, without the answer.
        reference: equation and paper.
        central: whether a submission counts as judged only with this check.
        crash: an exception of the submission's own code is WRONG, as it is called as documented.
    """

    name: str
    measure: Callable[[Any], Outcome]
    why: str
    hint: str
    reference: str = ""
    central: bool = False
    crash: bool = False


@dataclass(frozen=True)
class Finding:
    """A check's outcome with all that a report says about it."""

    model: str
    check: str
    status: str
    measured: str
    expected: str
    why: str
    reference: str
    hint: str
    central: bool

    def line(self) -> str:
        """The finding in one line."""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.status}: {self.check}: {self.measured}{expected}"


CHECKS_FILE = Path(__file__).parent / "checks.toml"


def load_checks(
    section: str, measures: dict[str, Callable[[Any], Outcome]], table: dict | None = None
) -> tuple[Check, ...]:
    """The checks of these measures, by name, with what a section of the table says about them.

    Raises:
        KeyError: the table, by default `checks.toml`, says nothing about one.
    """
    texts = (read_checks() if table is None else table)[section]
    return tuple(Check(name, measure, **texts[name]) for name, measure in measures.items())


@functools.cache
def read_checks(file: Path = CHECKS_FILE) -> dict[str, dict]:
    """A file like `checks.toml`: by section and name, what a report says about a check."""
    return tomllib.loads(file.read_text())


def seed_everything(seed: int) -> None:
    """Seed PyTorch, NumPy and Python: submissions draw from any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def kept_random_numbers() -> Iterator[None]:
    """Restore the state of all generators that `seed_everything` seeds after the block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def run_checks(
    model: str,
    subject: Any,
    checks: Iterable[Check],
    adapt: Callable[[Exception], bool] = lambda error: False,
    theirs: Callable[[Exception], bool] = lambda error: True,
    seed: int = 0,
    errors: dict[str, BaseException] | None = None,
) -> Iterator[Finding]:
    """Findings of all checks on a subject. Accusations are measured twice, with other draws.

    If the second measurement disagrees with the first, the check is unjudged. Proofs are measured
    once.

    Args:
        model: "vae", "flow" or "gan".
        subject: what is measured; its attribute `seed` is what measurements start from.
        checks: in order.
        adapt: called with an exception; True means that the measurement may now succeed.
        theirs: whether an exception was raised by the code under measurement.
        seed: 0 to 999, another one for other random numbers.
        errors: is given the exceptions that left checks unjudged, by check.
    """
    errors = {} if errors is None else errors
    for check in checks:
        outcome = _measure(check, subject, 1000 + seed, adapt, theirs, errors)
        if outcome.status in ACCUSING and not outcome.proof:
            second = _measure(check, subject, 2000 + seed, adapt, theirs, errors)
            if second.status not in ACCUSING:
                outcome = Outcome(UNJUDGED, _uncertain(outcome, second))
        yield finding(model, check, outcome)


def _uncertain(first, second):
    """Why an accusation that a second measurement doesn't repeat is none."""
    once = f"it was measured once ({first.measured}; expected {first.expected or 'otherwise'})"
    if second.status == UNJUDGED:
        return f"{once}, but not a second time, with other random numbers: {second.measured}"
    return f"{once}, but not again with other random numbers ({second.measured})"


def finding(model: str, check: Check, outcome: Outcome) -> Finding:
    """The finding of a check with this outcome."""
    return Finding(
        model,
        check.name,
        outcome.status,
        outcome.measured,
        outcome.expected,
        why=check.why,
        reference=check.reference,
        hint=check.hint,
        central=check.central,
    )


CRASHES = (RuntimeError, TypeError, AttributeError, ValueError, IndexError, UnboundLocalError)


def _measure(check, subject, seed, adapt, theirs, errors) -> Outcome:
    subject.seed = seed
    while True:
        seed_everything(subject.seed)
        try:
            with without_dropout():
                return check.measure(subject)
        except CannotJudge as reason:
            if reason.__cause__ is not None:
                errors[check.name] = reason.__cause__
            return Outcome(UNJUDGED, str(reason))
        except NotImplementedError as error:
            if check.crash and theirs(error):
                return Outcome(WRONG, f"`{check.name}` is not implemented", "no exception")
            return Outcome(UNJUDGED, "not implemented")
        except TooLong as error:
            return Outcome(UNJUDGED, f"it took {error}")
        except SystemExit:
            return Outcome(UNJUDGED, "it calls sys.exit")
        except Exception as error:  # whatever other people's code raises
            if theirs(error) and adapt(error):
                continue
            if check.crash and isinstance(error, CRASHES) and theirs(error):
                return Outcome(WRONG, f"`{check.name}` crashes: {one_line(error)}", "no exception")
            errors[check.name] = error
            return Outcome(UNJUDGED, one_line(error))


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, at most 160 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160].rstrip(": ")
