"""Code that does not run as handed in is accused of that, with its line, and of nothing else."""

import pytest

from grading.grader import judge_file
from tests.grading.conftest import METHODS_VAE

PLAIN = METHODS_VAE.replace("from __future__ import annotations\n", "").replace(
    " -> tuple[Tensor, Tensor]", ""
)
FAULTS = {
    "raise ValueError('first')": "line 1: ValueError: first",
    "import helper_of_mine": "line 1: there is no module helper_of_mine",
    "from torch.nn import functional\nfrom own_help import a, b": "line 2: there is no module",
    "x = open('notes.txt').read()": "line 1: the file notes.txt is not there",
    "import torch\nw = torch.load('weights.pt')": "line 2: the file weights.pt is not there",
    "x = undefined_name + 1": "line 1: NameError: name 'undefined_name'",
    "setup_everything()": "line 1: NameError: name 'setup_everything'",
    "def main():\n    return undefined_name\n": "line 2: NameError: name 'undefined_name'",
}
RIGHT = {
    "try:\n    import helper_of_mine\nexcept ImportError:\n    helper_of_mine = None": "pass",
    "import wandb, tensorboardX, scipy.io, tqdm, matplotlib.pyplot as plt": "pass",
    "import numpy as np\ntry:\n    x = open('notes.txt')\nexcept OSError:\n    x = 1": "pass",
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nwidth = 3 + ax.x": "pass",
    "import torch\ntrain = torch.load('data/mnist.pt')": "pass",
    "def main():\n    return ARGS.lr\nif __name__ == '__main__':\n    ARGS = None": "pass",
    "for i in range(3):\n    seen = i\ndef main():\n    return seen": "pass",
    "from torch._six import string_classes": "old",
    "import cPickle": "old",
}
GAN = """
import torch
import torch.nn as nn


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 784), nn.Tanh())

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, x):
        return torch.sigmoid(self.layers(x))


def {name}(dataloader, discriminator, generator, optimizer_G, optimizer_D):
    loss = nn.BCELoss()
    for i, (x, _) in enumerate(dataloader):
        x, one, zero = x.flatten(1), torch.ones(len(x), 1), torch.zeros(len(x), 1)
        fake = generator(torch.randn(len(x), 100))
        optimizer_D.zero_grad()
        (loss(discriminator(x), one) + loss(discriminator(fake.detach()), zero)).backward()
        optimizer_D.step()
        optimizer_G.zero_grad()
        loss(discriminator(fake), one).backward()
        optimizer_G.step()
        if i == {last}:
            raise ValueError("late")
"""
TOP = """
g, d = Generator(), Discriminator()
optimizers = [torch.optim.Adam(net.parameters()) for net in (g, d)]
data = [(2 * torch.rand(32, 784) - 1, 0) for _ in range(20)]
for epoch in range(2):
    step(data, d, g, *optimizers)
"""
ABSENT = """
def main():
    g, d = Generator(), Discriminator()
    g.load_state_dict(torch.load("generator.pt"))
    data = [(2 * torch.rand(32, 784) - 1, 0) for _ in range(20)]
    train(data, d, g, *(torch.optim.Adam(net.parameters()) for net in (g, d)))
"""


def judged(sandbox, folder, model, source):
    path = folder / f"{model}.py"
    path.write_text(source)
    result = judge_file(sandbox, model, path, training=False)
    return result, {found.check: found for found in result.findings}


@pytest.mark.parametrize("lines", FAULTS)
def test_what_does_not_run_is_said_with_its_line(sandbox, tmp_path, lines):
    result, found = judged(sandbox, tmp_path, "vae", f"{lines}\n{PLAIN}")
    assert (found["runs"].status, found["kl"].status) == ("wrong", "pass")
    assert FAULTS[lines] in found["runs"].measured and "stand-in" in found["runs"].measured
    assert [f.check for f in result.findings if f.status == "wrong"] == ["runs"]


@pytest.mark.parametrize("lines", RIGHT)
def test_what_runs_elsewhere_is_not_accused(sandbox, tmp_path, lines):
    _, found = judged(sandbox, tmp_path, "vae", f"{lines}\n{PLAIN}")
    assert found["runs"].status == RIGHT[lines], found["runs"].measured


def test_a_syntax_error_is_one_line_and_earns_nothing(sandbox, tmp_path):
    result, found = judged(sandbox, tmp_path, "vae", f"{PLAIN}\nif x\n    pass\n")
    line = f"{PLAIN}\nif x".count("\n") + 1
    assert result.reason == f"no Python 3: SyntaxError: expected ':', in line {line}"
    assert found.keys() == {"runs"} and found["runs"].status == "wrong"


@pytest.mark.parametrize(
    "source, runs",
    [
        (GAN.format(name="train", last=99), "pass"),
        (GAN.format(name="train", last=1), "pass"),
        (GAN.format(name="step", last=99) + TOP, "pass"),
        (GAN.format(name="train", last=99) + ABSENT, "wrong"),
    ],
    ids=["train", "few steps", "top level", "absent weights"],
)
def test_gans_are_judged_however_they_start(sandbox, tmp_path, source, runs):
    result, found = judged(sandbox, tmp_path, "gan", source)
    assert result.is_judged, result.reason
    assert found["runs"].status == runs
    assert {f.check for f in result.findings if f.status == "wrong"} <= {"runs"}
