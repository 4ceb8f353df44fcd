import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from gencheck.outcomes import ACCUSING
from grading.discovery import discover
from grading.loading import Submission
from grading.sandbox import require
from harness.errors import UsageError
from tests.conftest import ROOT

SECRET = "no submission reads this"
METHODS_VAE = '''
from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class VAE(nn.Module):
    """Its encoder is a part of `encode`, its decoder is no module of its own."""

    def __init__(self, hidden_dim=64, z_dim=6):
        super().__init__()
        self.z_dim = z_dim
        self.encoder = nn.Sequential(nn.Linear(784, hidden_dim), nn.Tanh())
        self.mean, self.log_std = nn.Linear(hidden_dim, z_dim), nn.Linear(hidden_dim, z_dim)
        self.hidden, self.out = nn.Linear(z_dim, hidden_dim), nn.Linear(hidden_dim, 784)

    def encode(self, x):
        hidden = self.encoder(x)
        return self.mean(hidden), self.log_std(hidden)

    def decode(self, z):
        return torch.sigmoid(self.out(torch.tanh(self.hidden(z))))

    def forward(self, x):
        mean, log_std = self.encode(x)
        p = self.decode(mean + log_std.exp() * torch.randn_like(mean))
        recon = F.binary_cross_entropy(p, x, reduction="none").sum(1)
        kl = 0.5 * ((2 * log_std).exp() + mean.square() - 2 * log_std - 1).sum(1)
        return (recon + kl).mean()

    def sample(self, n_samples) -> tuple[Tensor, Tensor]:
        p = self.decode(torch.randn(n_samples, self.z_dim))
        return torch.bernoulli(p), p
'''


def statuses(result):
    """The statuses by check, of a file that must be judged and not accused."""
    assert result.is_judged, result.reason
    assert not [f.line() for f in result.findings if f.status in ACCUSING]
    return {f.check: f.status for f in result.findings}


UNPACKED = tempfile.TemporaryDirectory(prefix="grading-tests-")  # until the tests end


def people_in(path):
    """The people that are found in a class's folder."""
    return [person for person in discover(path, Path(UNPACKED.name)) if person.is_person]


@pytest.fixture(scope="session")
def sandbox():
    """A sandbox for the harmless files of a test file; skips where there can be none."""
    os.environ["GRADING_SECRET"] = SECRET
    try:
        box = require(unsafe=False)
    except UsageError as error:
        pytest.skip(f"no sandbox here: {error}")
    finally:
        del os.environ["GRADING_SECRET"]
    yield box
    box.end()


@pytest.fixture
def project(tmp_path):
    """A folder with the packages that our scripts import, to put a script into."""
    for package in ("datasets", "harness"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    return tmp_path


@pytest.fixture
def settings_of(monkeypatch, tmp_path):
    """A function: the settings that a submission of this source, without a parser, is given."""

    def read(source):
        monkeypatch.setattr("sys.argv", [])
        monkeypatch.setitem(sys.modules, "settings_of_a_test", None)  # is put back
        path = tmp_path / "settings_of_a_test.py"
        path.write_text(source)
        return Submission(path, lambda function, *args: function(*args)).settings

    return read
