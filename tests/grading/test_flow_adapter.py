"""Right flows that are built another way than ours are found, measured and accused of nothing."""

import re

import pytest
import torch.nn as nn

from gencheck.outcomes import PASS
from grading import flow_adapter
from grading.grader import judge_file
from grading.loading import CannotLoad
from tests.conftest import ROOT
from tests.grading.conftest import statuses

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


@pytest.mark.thorough
def test_log_px_is_judged_whatever_the_flows_attribute_is_called(sandbox, project):
    source = (ROOT / "a3_nf_template.py").read_text()
    path = project / "a3_nf_template.py"
    path.write_text(re.sub(r"\.flow\b", ".bijection", source))
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
    assert flow_adapter._flow_of(Whole(**{name: chain, "head": nn.Linear(2, 2)})) is chain
    assert flow_adapter._flow_of(chain) is chain
    with pytest.raises(CannotLoad, match="has no flow"):
        flow_adapter._flow_of(Whole(parts=nn.ModuleList([Layer(), Layer()])))


@pytest.mark.parametrize("base, is_one", [("Coupling", True), ("AffineCouplingLayer", True),
                                          ("Permutation", False)])  # fmt: skip
def test_a_coupling_is_known_by_what_it_is_derived_from(base, is_one):
    kind = type("Last", (type(base, (Layer,), {}),), {})
    assert flow_adapter._is_coupling(kind) == is_one
