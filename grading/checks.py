"""The checks of submissions, and their points: those of gencheck and those of the course's code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gencheck import outcomes

CHECKS_FILE = Path(__file__).parent / "checks.toml"
OF_FLOWS = {"bits_per_dimension", "clipping"}  # checks of epochs that VAEs don't have
MAX_TEXT = 500  # characters of what was measured, of what was expected, of a reason
STOPPED = "stopped after"  # so begins the reason where a limit of time ended a file
# In the default rubric, by section and check; 1 where none are stated.
POINTS = {
    "vae": {"kl": 3.0, "seeded": 0.0},
    "flow": {"coupling_logdet": 2.0},
    "model": {"log_px": 2.0},
    "epochs": {"validation": 2.0},
    "gan": {
        "discriminator_loss": 2.0,
        "generator_loss": 2.0,
        "smoothing": 0.0,
        "discriminator_range": 0.0,
        "pictures": 0.0,
        "interpolation": 0.0,
    },
    "all": {"runs": 4.0, "runs_today": 0.0, "runs_on_cpu": 0.0},
}


def checks_table() -> dict[str, dict]:
    """By section and name, what a report says about a check of gencheck or of ours."""
    theirs, ours = outcomes.read_checks(), outcomes.read_checks(CHECKS_FILE)
    return {name: theirs.get(name, {}) | ours.get(name, {}) for name in theirs | ours}


def load_checks(section: str, measures: dict[str, Callable[[Any], outcomes.Outcome]]):
    """The checks of a section with the functions that measure them."""
    return outcomes.load_checks(section, measures, checks_table())
