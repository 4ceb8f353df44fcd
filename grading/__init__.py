"""Checks of the mathematics of VAEs, normalising flows and GANs, on callables and on submissions.

`check_vae`, `check_flow` and `check_gan` raise an AssertionError that says what is wrong, for
anyone's tests. `python -m grading PATH` grades implementations of the assignment.
"""

import grading.search_path  # noqa: F401  (before anything else is imported)

# isort: split
from grading.flow import check_flow
from grading.gan import check_gan
from grading.outcomes import CheckFailure, Finding
from grading.vae import check_vae

__all__ = ["CheckFailure", "Finding", "check_flow", "check_gan", "check_vae"]
