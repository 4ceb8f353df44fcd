"""The package by itself: what it imports, what is installed, what a result shows."""

import json
import subprocess
import sys
import tomllib

import pytest
import torch

from gencheck import CheckFailure, check_flow
from tests.conftest import ROOT


def test_nothing_of_ours_and_nothing_but_torch_and_numpy_is_imported():
    code = (
        "import torch, numpy, sys; before = set(sys.modules); import gencheck\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    new = set(done.stdout.split())
    assert new - set(sys.stdlib_module_names) <= {"gencheck", "torch", "numpy"}, done.stderr


def test_the_project_is_gencheck_alone_with_its_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"] == ["gencheck"]
    data = project["tool"]["setuptools"]["package-data"]["gencheck"]
    assert all((ROOT / "gencheck" / name).is_file() for name in data)
    names = {line.split(">")[0] for line in project["project"]["dependencies"]}
    assert names == {"torch", "numpy"}


def double(z, factor=1.0):
    return 2 * z, z.new_full((len(z),), factor * 3 * torch.log(torch.tensor(2.0)).item())


def half(z, factor=1.0):
    return z / 2, -double(z, factor)[1]


def test_a_result_is_a_table_and_plain_data():
    found = check_flow(double, half, shape=3)
    table = str(found).splitlines()
    assert table[0].split()[:2] == ["check", "status"] and len(table) == 1 + len(found)
    assert found["flow_logdet"].status == "pass" and not found.failures
    assert json.loads(json.dumps(found.as_dict()))["findings"]["flow_rows"]["central"]
    with pytest.raises(KeyError):
        found["kl"]


def test_a_failure_carries_its_result_and_the_line_that_repeats_it():
    with pytest.raises(CheckFailure, match=r"check_flow\(\.\.\., seed=12\)") as failure:
        check_flow(lambda z: double(z, 2.0), half, shape=3, seed=12)
    names = [found.check for found in failure.value.result.failures]
    assert "flow_logdet" in names and "flow_inverse" not in names
