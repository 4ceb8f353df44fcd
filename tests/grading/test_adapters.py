"""Right code that is built another way than ours is found, measured and accused of nothing."""

import re

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gencheck.outcomes import ACCUSING, PASS
from grading import adapters
from grading.grader import judge_file
from grading.loading import CannotLoad
from grading.shims import SHIMS
from grading.training import _validation_values
from tests.conftest import ROOT
from tests.grading.conftest import METHODS_VAE

NESTED_COUPLINGS = [
    ("class Coupling(nn.Module):", "class CouplingNet(nn.Sequential):\n    pass\n\n\n{}"),
    ("self.nn = nn.Sequential(", "self.nn = CouplingNet("),
]
UNIT_INTERVAL = [
    ("return z + torch.rand_like(z)", "return (z + torch.rand_like(z)) / self.n_bins"),
    ("math.log(1 - ALPHA) - math.log(self.n_bins)", "math.log(1 - ALPHA)"),
    ("/ (1 - ALPHA) * self.n_bins, ldj", "/ (1 - ALPHA), ldj"),
    ("z = z / self.n_bins * (1 - ALPHA)", "z = z * (1 - ALPHA)"),
    ("return log_prior(z) + ldj", "{} - z.shape[1] * math.log(self.n_bins)"),
    ("return z.floor()", "return (self.n_bins * z).floor()"),
]
X, LINEAR = torch.ones(4, 2), nn.Linear(2, 1)


def statuses(result):
    """The statuses by check, of a file that must be judged and not accused."""
    assert result.is_judged, result.reason
    assert not [f.line() for f in result.findings if f.status in ACCUSING]
    return {f.check: f.status for f in result.findings}


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


LEFT_OPEN = """

class Coupling(nn.Module):
    def __init__(self):
        super().__init__()
        self.nn = None
        self.nn[-1].weight.data.zero_()

    def forward(self, z, ldj, reverse=False):
        {}


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.flow = Coupling()
"""


@pytest.mark.parametrize(
    "body, reason",
    [
        (
            "raise NotImplementedError",
            "not implemented: Coupling.forward (a3_nf_template.py, line ",
        ),
        ("return z, ldj", "Model fails: TypeError: 'NoneType' object is not subscriptable"),
    ],
)
def test_a_template_with_none_for_its_layers_is_told_so(sandbox, tmp_path, body, reason):
    path = tmp_path / "a3_nf_template.py"
    path.write_text("import torch.nn as nn" + LEFT_OPEN.format(body))
    assert judge_file(sandbox, "nf", path, training=False).reason.startswith(reason)


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


@pytest.mark.thorough
@pytest.mark.parametrize("patches", [NESTED_COUPLINGS, UNIT_INTERVAL], ids=["nested", "unit"])
def test_flow_built_another_way(sandbox, project, patches):
    source = (ROOT / "a3_nf_template.py").read_text()
    for old, new in patches:
        assert source.count(old) == 1, old
        source = source.replace(old, new.format(old))
    path = project / "a3_nf_template.py"
    path.write_text(source)
    found = statuses(judge_file(sandbox, "nf", path, training=False))
    assert set(found.values()) == {PASS}


FLOW_NAMES = [  # of the layers' chain and of the whole model
    ("RealNVP", "NormalizingFlow"),
    ("NormalizingFlow", "RealNVP"),
    ("Flow", "Density"),
]


@pytest.mark.thorough
@pytest.mark.parametrize("chain, whole", FLOW_NAMES)
def test_the_whole_model_is_what_contains_the_flow(sandbox, project, chain, whole):
    source = (ROOT / "a3_nf_template.py").read_text()
    names = {"Flow": chain, "Model": whole}
    source = re.sub(r"\b(Flow|Model)\b", lambda match: names[match[0]], source)
    assert f"self.flow = {chain}(" in source and f"class {whole}(" in source
    path = project / "a3_nf_template.py"
    path.write_text(source)
    found = statuses(judge_file(sandbox, "nf", path, training=False))
    assert set(found.values()) == {PASS}


class Layer(nn.Module):
    """A flow's layer."""

    def forward(self, z, ldj, reverse=False):
        return z, ldj


class Chain(Layer):
    """Layers one after the other."""

    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(n))


class Whole(nn.Module):
    """A whole model that takes images."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, reverse=False):
        return x


@pytest.mark.parametrize("name", ["flow", "net", "transform"])
def test_a_flow_is_found_whatever_its_attribute(name):
    chain = Chain(2)
    assert adapters._flow_of(Whole(**{name: chain, "head": nn.Linear(2, 2)})) is chain
    assert adapters._flow_of(chain) is chain
    with pytest.raises(CannotLoad, match="has no flow"):
        adapters._flow_of(Whole(parts=nn.ModuleList([Layer(), Layer()])))


@pytest.mark.parametrize("base, is_one", [("Coupling", True), ("AffineCouplingLayer", True),
                                          ("Permutation", False)])  # fmt: skip
def test_a_coupling_is_known_by_what_it_is_derived_from(base, is_one):
    kind = type("Last", (type(base, (Layer,), {}),), {})
    assert adapters._is_coupling(kind) == is_one


@pytest.mark.parametrize(
    "source, batch_size",
    [
        ("@dataclass\nclass Config:\n    batch_size: int = 9", 9),
        ("@dataclass\nclass Config:\n    batch_size: int", None),  # has no default
        ("class Config:\n    batch_size = 9", None),  # no dataclass
        ("def main():\n    parser.add_argument('--batch_size', default=7)\n"
         "@dataclass\nclass Config:\n    batch_size: int = 9", 7),
    ],
)  # fmt: skip
def test_settings_of_a_script_without_a_parser(settings_of, source, batch_size):
    settings = settings_of(f"from dataclasses import dataclass\n{source}\n")
    assert getattr(settings, "batch_size", None) == batch_size


@pytest.mark.parametrize(
    "returned, values",
    [
        ((3.0, 2.0), {2.0}),  # train, validation
        ((3.0, 2.0, 9.0), {2.0}),  # and something else
        ((3.0, 0.5, 2.0, 0.25), {0.5, 2.0, 2.25}),  # either a value more, or terms of both sets
        ((3.0, [4.0, 2.0]), {4.0, 6.0}),  # a value and more, or its terms
        (({"recon": 2.5, "kl": 0.5}, {"recon": 4.0, "kl": 2.0}), {4.0, 6.0}),
        ({"train": 3.0, "val": 2.0}, {2.0}),
    ],
)
def test_where_the_validations_value_may_be(returned, values):
    assert {*_validation_values(returned)} >= values
    assert 3.0 not in _validation_values(returned)


@pytest.mark.parametrize(
    "call, needs_shim",
    [
        (lambda: F.binary_cross_entropy(torch.sigmoid(LINEAR(X)), torch.full((4, 1), 3.0)), True),
        (lambda: F.binary_cross_entropy(LINEAR(X) + 9, torch.ones(4, 1)), False),
    ],
)
def test_a_shim_forgives_the_targets_and_not_the_probabilities(call, needs_shim):
    with pytest.raises(RuntimeError) as error:
        call()
    applies = any(re.search(pattern, str(error.value)) for _, pattern, _ in SHIMS)
    assert applies == needs_shim
