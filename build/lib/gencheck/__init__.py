"""Checks of the mathematics of VAEs, normalising flows and GANs: gradcheck for generative models.

`check_vae`, `check_flow` and `check_gan` return what was measured, or raise an error that says what
is wrong, in a test or at a prompt.
"""

from gencheck.flow import check_flow
from gencheck.gan import check_gan
from gencheck.outcomes import Finding
from gencheck.result import CheckFailure, NotJudged, Result
from gencheck.vae import check_vae

__all__ = [
    "CheckFailure",
    "Finding",
    "NotJudged",
    "Result",
    "check_flow",
    "check_gan",
    "check_vae",
]
