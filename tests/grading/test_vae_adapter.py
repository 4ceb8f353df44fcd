"""Right VAEs that are built another way than ours are found, measured and accused of nothing."""

import pytest

from gencheck.outcomes import PASS
from grading.grader import judge_file
from tests.grading.conftest import METHODS_VAE, statuses

IN_FORWARD = METHODS_VAE[
    METHODS_VAE.index("        recon = F.binary") : METHODS_VAE.index("    def sample")
]
RETURNED = METHODS_VAE.replace(IN_FORWARD, "        return p, mean, log_std\n\n")
OUTSIDE = {
    "a function": """

def vae_loss(means, x, mean, log_std):
    recon = F.binary_cross_entropy(means, x, reduction="none").sum(1)
    kl = 0.5 * ((2 * log_std).exp() + mean.square() - 2 * log_std - 1).sum(1)
    return (recon + kl).mean()
""",
    "in an epoch, with its arguments in another order": """

def epoch_iter(optimizer, data, model):
    total, n = 0.0, 0
    for images in data:
        x = images.view(-1, 784)
        means, mean, log_std = model(x)
        kl = 0.5 * ((2 * log_std).exp() + mean.square() - 2 * log_std - 1).sum(1)
        nats = F.binary_cross_entropy(means, x, reduction="none").sum(1) + kl
        if model.training:
            optimizer.zero_grad()
            nats.mean().backward()
            optimizer.step()
        total, n = total + nats.sum().item(), n + len(x)
    return total / n
""",
}


@pytest.mark.thorough
@pytest.mark.parametrize("where", OUTSIDE)
def test_a_loss_outside_forward_is_found_and_judged(sandbox, tmp_path, where):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(RETURNED + OUTSIDE[where])
    found = statuses(judge_file(sandbox, "vae", path, training=False))
    assert {found[check] for check in ("loss", "kl", "gradient", "likelihood")} == {PASS}
    if "order" in where:
        assert (found["epoch_average"], found["validation"]) == (PASS, PASS)
    path.write_text(RETURNED + OUTSIDE[where].replace("(2 * log_std).exp()", "log_std.exp()"))
    result = judge_file(sandbox, "vae", path, training=False)
    assert {f.check for f in result.findings if f.status == "wrong"} == {"kl"}


def test_vae_with_methods_for_parts(sandbox, tmp_path):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(METHODS_VAE)
    found = statuses(judge_file(sandbox, "vae", path, training=False))
    expected = ("shapes", "kl", "gradient", "moments", "likelihood", "decoder_blind", "sample")
    assert {found[check] for check in expected} == {PASS}


ROLES_BY_STRUCTURE = """
import torch
import torch.nn as nn
import torch.nn.functional as F


class InferenceNet(nn.Module):
    def __init__(self, z_dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 64), nn.ReLU())
        self.mean, self.log_var = nn.Linear(64, z_dim), nn.Linear(64, z_dim)

    def forward(self, x):
        h = self.net(x)
        return self.mean(h), self.log_var(h)


class VAE(nn.Module):
    def __init__(self, z_dim=6):
        super().__init__()
        self.z_dim = z_dim
        self.p = nn.Sequential(nn.Linear(z_dim, 64), nn.ReLU(), nn.Linear(64, 784))
        self.q = InferenceNet(z_dim)

    def forward(self, x):
        mean, log_var = self.q(x)
        logits = self.p(mean + (log_var / 2).exp() * torch.randn_like(mean))
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return (recon + 0.5 * (log_var.exp() + mean ** 2 - 1 - log_var).sum(1)).mean()

    def sample(self, n):
        with torch.no_grad():
            means = self.p(torch.randn(n, self.z_dim)).sigmoid()
        return torch.bernoulli(means), means


def run_epoch(model, data, optimizer):
    values = []
    for is_training, loader in zip((True, False), data):
        model.train(is_training)
        total, n = 0, 0
        for x in loader:
            x = x.view(-1, 784)
            loss = model(x)
            if is_training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            total, n = total + float(loss.detach()) * len(x), n + len(x)
        values.append(total / n)
    return values
"""


def test_a_vaes_parts_of_any_name_and_an_epoch_without_epoch_iter(sandbox, tmp_path):
    path = tmp_path / "a3_vae_template.py"
    path.write_text(ROLES_BY_STRUCTURE)
    found = statuses(judge_file(sandbox, "vae", path, training=False))
    expected = ("loss", "kl", "likelihood", "sample", "epoch_average", "validation")
    assert {found[check] for check in (*expected, "validation_memory")} == {PASS}
    summed = ROLES_BY_STRUCTURE.replace("total / n", "total")
    path.write_text(summed)
    result = judge_file(sandbox, "vae", path, training=False)
    assert {f.check for f in result.findings if f.status == "wrong"} == {"epoch_average"}


WITH_EPSILON = [  # with two latents it is seen where deviations are large and the decoder saturates
    ('F.binary_cross_entropy(p, x, reduction="none")',
     "-(x * (p + 1e-5).log() + (1 - x) * (1 - p).log())"),
    ("2 * log_std", "log_std"),
    ("log_std.exp() *", "(log_std / 2).exp() *"),
    ("hidden_dim=64, z_dim=6", "hidden_dim=500, z_dim=2"),
    ("torch.tanh(self.hidden", "torch.relu(self.hidden"),
]  # fmt: skip


def test_an_epsilon_in_a_logarithm_is_no_other_kl(sandbox, tmp_path):
    source = METHODS_VAE
    for old, new in WITH_EPSILON:
        assert old in source
        source = source.replace(old, new)
    path = tmp_path / "a3_vae_template.py"
    path.write_text(source)
    result = judge_file(sandbox, "vae", path, training=False)
    found = {f.check: f.status for f in result.findings}
    assert (found["kl"], found["gradient"]) == (PASS, PASS)
