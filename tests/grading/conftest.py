import os
import shutil

import pytest

from grading.zygote import Zygote
from tests.conftest import ROOT

SECRET = "no submission reads this"


@pytest.fixture(scope="session")
def zygote():
    os.environ["GRADING_SECRET"] = SECRET
    zygote = Zygote()
    yield zygote
    del os.environ["GRADING_SECRET"]
    zygote.close()


@pytest.fixture
def project(tmp_path):
    """A folder with the packages that our scripts import, to put a script into."""
    for package in ("datasets", "harness"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    return tmp_path
