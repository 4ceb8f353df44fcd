"""Optimisers step without torch._dynamo, and whoever needs the module has it."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import inspect, sys
import torch
from grading import dynamo

dynamo.install()
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.Adam([weight])
for _ in range(2):
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
inspect.getmodule(sys._getframe())
assert "torch._dynamo.utils" not in sys.modules and weight[0] < 1
import torch._dynamo.config
assert sys.modules["torch._dynamo"] is torch._dynamo and torch._dynamo.utils
optimizer.step()
print("right")
"""


@pytest.mark.thorough
def test_an_optimiser_needs_no_dynamo_and_others_get_it():
    words = [sys.executable, "-c", CODE]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("right\n"), done.stderr
