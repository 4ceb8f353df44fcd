"""A class of nine, handed in as classes do: everyone is in every report, with the right verdict."""

import contextlib
import csv
import json
import re
import zipfile

import pytest

from grading import __main__ as command
from grading.results import checks_of
from tests.grading.conftest import METHODS_VAE

pytestmark = pytest.mark.thorough

FLOW = """
import torch
import torch.nn as nn


class Coupling(nn.Module):
    def __init__(self, c_in, mask, n_hidden=32):
        super().__init__()
        self.register_buffer("mask", mask)
        self.nn = nn.Sequential(nn.Linear(c_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 2 * c_in))

    def forward(self, z, ldj, reverse=False):
        log_scale, shift = self.nn(self.mask * z).chunk(2, dim=1)
        log_scale, free = torch.tanh(log_scale), 1 - self.mask
        if reverse:
            z = self.mask * z + free * (z - shift) * torch.exp(-log_scale)
            return z, ldj - (free * log_scale).sum(dim=1)
        z = self.mask * z + free * (z * torch.exp(log_scale) + shift)
        return z, ldj + (free * log_scale).sum(dim=1)


class Flow(nn.Module):
    def __init__(self, shape, n_flows=2):
        super().__init__()
        board = (torch.arange(28)[:, None] + torch.arange(28)).flatten() % 2
        masks = (board.float(), 1 - board.float())
        self.layers = nn.ModuleList(Coupling(784, mask) for _ in range(n_flows) for mask in masks)

    def forward(self, z, ldj, reverse=False):
        for layer in self.layers if not reverse else self.layers[::-1]:
            z, ldj = layer(z, ldj, reverse)
        return z, ldj
"""
HAND_OUT = "import torch.nn as nn\n\n\nclass VAE(nn.Module):\n    raise NotImplementedError()\n"


def replaced(source, old, new):
    assert source.count(old) == 1
    return source.replace(old, new)


def notebook(*cells):
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": 1}
    return json.dumps({
        "cells": [code | {"source": cell.splitlines(keepends=True)} for cell in cells],
        "metadata": {}, "nbformat": 4, "nbformat_minor": 4,
    })  # fmt: skip


WRONG_KL = replaced(METHODS_VAE, "(2 * log_std).exp() +", "log_std.exp() +")
SHARED = replaced(METHODS_VAE, "torch.randn_like(mean)", "torch.randn_like(mean[:1])")
LINE_1 = replaced(METHODS_VAE, "from __future__ import annotations\n", "")
LINE_1 = "1 / 0\n" + replaced(LINE_1, " -> tuple[Tensor, Tensor]", "")
NO_LOGDET = replaced(FLOW, "ldj - (free * log_scale).sum(dim=1)", "torch.zeros_like(ldj)")
HELPER = "import torch.nn as nn\n\nfrom my_layers import scale\n"
FILES = {
    "ann/a3_vae_template.py": METHODS_VAE,
    "bob/part 1/src/a3_vae_template.py": WRONG_KL,
    "cem/vae.py": SHARED,
    "dan/a3_nf_template.py": NO_LOGDET,
    "eve/a3_vae_template.py": replaced(METHODS_VAE, "import torch.nn as nn\n", HELPER),
    "fay/a3_vae_template.py": LINE_1,
    "gil/Assignment 3.ipynb": notebook("%matplotlib inline\n!pip install torch", METHODS_VAE),
    "ivy_LATE_4711_190_a3_vae_template.py": f"from layers import *\n{METHODS_VAE}",
    "ivy_LATE_4711_191_layers.py": "SCALE = 1\n",
    "a3_vae_template.py": HAND_OUT,
    "grades.txt": "",
}
# (checks that accuse, whether it runs as handed in, part of what is said about that)
EXPECTED = {
    "ann": ({}, "pass", ""),
    "bob": ({"kl": "wrong"}, "pass", ""),
    "cem": ({"noise_per_image": "weak"}, "pass", ""),
    "dan": ({"flow_reverse_logdet": "weak"}, "pass", ""),
    "eve": ({"runs": "wrong"}, "wrong", "a3_vae_template.py, line 7: there is no module my_layers"),
    "fay": ({"runs": "wrong"}, "wrong", "a3_vae_template.py, line 1: ZeroDivisionError"),
    "gil": ({}, "pass", ""),
    "hal": ({}, "pass", ""),
    "ivy_4711": ({}, "pass", ""),
}


class Shared(contextlib.nullcontext):
    """A sandbox that stays open for the next person."""

    def __enter__(self):
        return self

    def ask(self, *args):
        return self.enter_result.ask(*args)

    def close(self):
        pass

    end = close


@pytest.fixture(scope="module")
def reports(sandbox, tmp_path_factory):
    """The folder of all reports on the class, and the terminal's table."""
    folder = tmp_path_factory.mktemp("class")
    for name, text in FILES.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_text(text)
    with zipfile.ZipFile(folder / "in" / "hal.zip", "w") as archive:
        archive.writestr("hal/code/a3_vae_template.py", METHODS_VAE)
        archive.writestr("../ann/a3_vae_template.py", WRONG_KL)
    out = [f"--{kind} {folder / 'out'}.{kind}".split() for kind in ("csv", "json", "gradescope")]
    words = [
        str(folder / "in"),
        "--fresh",
        "--no_training",
        "--jobs",
        "1",
        "--html",
        f"{folder}/pages/",
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        # One sandbox for all of them: they are harmless, and each would take seconds to start.
        patch.setattr("grading.grader.Sandbox", lambda unsafe: Shared(sandbox))
        patch.setattr("grading.sandbox.require", lambda unsafe: Shared(sandbox))
        with open(folder / "terminal.txt", "w") as file, contextlib.redirect_stdout(file):
            command.main(command.parse([*words, *sum(out, [])]))
    return folder


def test_everyone_is_judged_and_rightly(reports):
    people = {person["name"]: person for person in json.loads((reports / "out.json").read_text())}
    assert people.keys() == {*EXPECTED, "(nobody)"}
    for name, (accusations, runs, words) in EXPECTED.items():
        (result,) = people[name]["files"].values()
        found = {f["check"]: f for f in result["findings"]}
        accused = {c: f["status"] for c, f in found.items() if f["status"] in ("wrong", "weak")}
        assert accused == accusations, name
        assert not result["reason"], name
        assert found["runs"]["status"] == runs and words in found["runs"]["measured"]
        central = [check for check in found.values() if check["central"]]
        left_open = {check["check"] for check in central if check["status"] == "unjudged"}
        assert central and left_open == ({"log_px"} if name == "dan" else set())  # it has no Model


def test_everyone_and_every_file_is_in_every_report(reports):
    rows = list(csv.DictReader((reports / "out.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [*EXPECTED, "(nobody)"]
    terminal = (reports / "terminal.txt").read_text()
    index = (reports / "pages" / "index.html").read_text()
    for name in EXPECTED:
        assert f"\n{name}   " in f"\n{terminal}" and name in index
        (page,) = (reports / "pages").glob(f"{name}-*.html")
        assert "viewport" in page.read_text()
        assert ("<figcaption>16 samples" in page.read_text()) == (name != "dan")  # it has no Model
    for text in ((reports / "out.csv").read_text(), (reports / "out.json").read_text(), terminal):
        for name in FILES:
            assert re.sub(r"ivy_LATE_4711_\d+_", "", name.partition("/")[2] or name) in text
        assert "a3_vae_template.py: the hand-out, nobody's submission" in text
        assert "../ann/a3_vae_template.py: a path out of the archive" in text
        assert str(reports) not in text


def test_points_are_of_one_total_and_none_are_full_for_what_does_not_run(reports):
    rows = {r["name"]: r for r in csv.DictReader((reports / "out.csv").read_text().splitlines())}
    people = [rows[name] for name in EXPECTED]
    assert len({row["possible"] for row in people}) == 1
    runs = checks_of("vae")["runs"]["points"]
    assert float(rows["ann"]["points"]) == float(rows["eve"]["points"]) + runs
    assert rows["eve"]["vae.runs"] == rows["fay"]["vae.runs"] == rows["bob"]["vae.kl"] == "0.0"
    assert float(rows["cem"]["vae.noise_per_image"]) == 0.5
    for row in people:
        assert float(row["points"]) + float(row["unjudged"]) <= float(row["possible"])
        percent = 100 * float(row["points"]) / float(row["possible"])
        assert abs(float(row["percent"]) - percent) < 0.06
    content = json.loads((reports / "out.gradescope").read_text())
    earned = sum(float(row["points"]) for row in people)
    assert abs(content["score"] - earned) < 1e-6
    total = sum(test["max_score"] for test in content["tests"])
    assert total == sum(float(row["possible"]) for row in people)
