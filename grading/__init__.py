"""The class grader: `python -m grading PATH` judges implementations of the assignment.

The mathematics is judged by `gencheck`, whose functions are here too, under their old address.
"""

import grading.search_path  # noqa: F401  (before anything else is imported)

# isort: split
from gencheck import CheckFailure, Finding, check_flow, check_gan, check_vae

__all__ = ["CheckFailure", "Finding", "check_flow", "check_gan", "check_vae"]
