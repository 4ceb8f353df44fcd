"""Code that does not run as handed in is accused of that, with its line, and of nothing else."""

import sys

import pytest

from gencheck.outcomes import NOTE, PASS
from grading.grader import judge_file
from grading.loading import Submission
from tests.grading.conftest import METHODS_VAE

PLAIN = METHODS_VAE.replace("from __future__ import annotations\n", "").replace(
    " -> tuple[Tensor, Tensor]", ""
)
FAULTS = [  # lines, which of them, what is said
    ("raise ValueError('first')", 1, "ValueError: first"),
    ("import helper_of_mine", 1, "there is no module helper_of_mine"),
    (
        "from torch.nn import functional\nfrom own_help import a, b",
        2,
        "there is no module own_help",
    ),
    ("x = open('notes.txt').read()", 1, "the file notes.txt is not there"),
    ("import torch\nw = torch.load('weights.pt')", 2, "the file weights.pt is not there"),
    ("x = undefined_name + 1", 1, "NameError: name 'undefined_name'"),
    ("setup_everything()", 1, "NameError: name 'setup_everything'"),
    ("def main():\n    return missing_name\n", 2, "NameError: name 'missing_name'"),
]
RIGHT = [
    "try:\n    import helper_of_mine\nexcept ImportError:\n    helper_of_mine = None",
    "import wandb, tensorboardX, scipy.io, tqdm, matplotlib.pyplot as plt",
    "import numpy as np\ntry:\n    x = open('notes.txt')\nexcept OSError:\n    x = 1",
    "from tqdm.notebook import tqdm, trange\nx = [*tqdm([1])][0] + sum(trange(3))",
    "from tqdm.auto import tqdm as bar\nfor i in bar([1]):\n    pass",
    "import tqdm.autonotebook as bars\nwith bars.tqdm(total=3) as b:\n    b.update(1)",
    "from tqdm import tqdm_notebook\nx = [*tqdm_notebook([1], desc='a')][0] + 1",
    "import ipywidgets as widgets\nslider = widgets.IntSlider(min=0)",
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nwidth = 3 + ax.x",
    "import torch\ntrain = torch.load('data/mnist.pt')",
    "for i in range(3):\n    seen = i\ndef main():\n    return seen, ARGS.lr",
    "if __name__ == '__main__':\n    ARGS = None",
]
OWN_PATHS = [  # what is said of a line, where anything is
    (
        "import numpy as np\nx = np.load('/home/ann/dl/mnist_train.npy')",
        "line 2: '/home/ann/dl/mnist_train.npy'",
    ),
    ("import sys\nsys.path.append('/Users/ann/dl')", "line 2: '/Users/ann/dl'"),
    (
        "def main():\n    plt.savefig(r'C:\\Users\\ann\\elbo.pdf')",
        r"line 2: 'C:\\Users\\ann\\elbo.pdf'",
    ),
    (
        "def main():\n    torch.save(1, f'/content/drive/MyDrive/{2}.pt')",
        "line 2: '/content/drive/MyDrive/'",
    ),
    ("import numpy as np\nx = np.load('/scratch/mnist.npy')", "line 2: '/scratch/mnist.npy'"),
    ("import torch\nx = torch.load('data/mnist.pt')", ""),
    ("import os, numpy as np\nx = np.load(os.path.expanduser('~/data/mnist.npy'))", ""),
    ("'From /home/ann/a.'\ndef main():\n    '/home/ann/b'  # /home/ann/c", ""),
    ("print('saved in /home/ann/elbo.pdf')\nURL = 'https://a.b/home/c'", ""),
]
OLD = ["from torch._six import string_classes", "import cPickle"]
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


# The generator's gradient goes back through the discriminator's new weights.
LATE = GAN.format(name="train", last=99).replace(
    "(loss(discriminator(x), one) + loss(discriminator(fake.detach()), zero)).backward()",
    "of_fake = discriminator(fake)\n"
    "        (loss(discriminator(x), one) + loss(of_fake, zero)).backward(retain_graph=True)",
)
LATE = LATE.replace("loss(discriminator(fake), one).backward()", "loss(of_fake, one).backward()")
LATE += """

def main():
    g, d = Generator(), Discriminator()
    data = [(2 * torch.rand(32, 784) - 1, 0) for _ in range(20)]
    train(data, d, g, *(torch.optim.Adam(net.parameters(), 0.02) for net in (g, d)))
"""


def judged(sandbox, folder, model, source):
    path = folder / f"{model}.py"
    path.write_text(source)
    result = judge_file(sandbox, model, path, training=False)
    return result, {found.check: found for found in result.findings}


@pytest.mark.parametrize("faults", [FAULTS[i::3] for i in range(3)], ids=str)
def test_what_does_not_run_is_said_with_its_line(sandbox, tmp_path, faults):
    """Three faults in a file: so many are named."""
    lines = "\n".join(text for text, _, _ in faults)
    result, found = judged(sandbox, tmp_path, "vae", f"{lines}\n{PLAIN}")
    assert (found["runs"].status, found["kl"].status) == ("wrong", "pass")
    assert [f.check for f in result.findings if f.status == "wrong"] == ["runs"]
    assert "stand-in" in found["runs"].measured
    before = 0
    for text, line, words in faults:
        assert f"line {before + line}: {words}" in found["runs"].measured
        before += text.count("\n") + 1


@pytest.mark.parametrize("text, words", OWN_PATHS)
def test_paths_of_ones_own_machine_are_noted(monkeypatch, tmp_path, text, words):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setitem(sys.modules, "paths_of_a_test", None)  # is put back
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "paths_of_a_test.py"
    path.write_text(f"{text}\n")
    submission = Submission(path, lambda function, *args: function(*args))
    outcome = submission.running.outcome()
    assert outcome.status == (NOTE if words else PASS), outcome.measured
    assert words in outcome.measured


@pytest.mark.parametrize("lines, status", [(RIGHT, "pass"), (OLD[:1], "old"), (OLD[1:], "old")])
def test_what_runs_elsewhere_is_not_accused(sandbox, tmp_path, lines, status):
    text = "\n".join(lines)
    _, found = judged(sandbox, tmp_path, "vae", f"{text}\n{PLAIN}")
    assert found["runs"].status == status, found["runs"].measured


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
        (LATE, "pass"),
    ],
    ids=["train", "few steps", "top level", "absent weights", "backward through new weights"],
)
def test_gans_are_judged_however_they_start(sandbox, tmp_path, source, runs):
    result, found = judged(sandbox, tmp_path, "gan", source)
    assert result.is_judged, result.reason
    assert (found["runs"].status, found["generator_loss"].status) == (runs, "pass")
    assert {f.check for f in result.findings if f.status == "wrong"} <= {"runs"}
