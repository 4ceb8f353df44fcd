"""What a run needs, whatever it trains.

Nothing here imports a script, or knows its model or its metrics. A script uses the names below;
`figures`, `grading` and the tests use the modules, too.
"""

from harness import cli, latent, likelihood, sample_quality
from harness.average import WeightAverage
from harness.devices import separate_random_numbers
from harness.plots import Curves
from harness.run import Run
from harness.settings import RunConfig
from harness.steps import adam, captured

__all__ = [
    "Curves",
    "Run",
    "RunConfig",
    "WeightAverage",
    "adam",
    "captured",
    "cli",
    "latent",
    "likelihood",
    "sample_quality",
    "separate_random_numbers",
]
