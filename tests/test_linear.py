"""The linear layer gives what `nn.Linear` gives, whichever product it uses."""

import pytest
import torch
import torch.nn as nn

from harness import linear
from harness.linear import OneDnnLinear, fast_on_cpu

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


needs_onednn = pytest.mark.skipif(not ONEDNN, reason="PyTorch has no oneDNN here")


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)], ids=["pytorch", "onednn"])
def pair(request, monkeypatch):
    """(a layer after `fast_on_cpu`, the same nn.Linear), with either product."""
    monkeypatch.setattr(linear, "PREFERS_ONEDNN", request.param)
    torch.manual_seed(0)
    ours, reference = nn.Linear(40, 30), nn.Linear(40, 30)
    reference.load_state_dict(ours.state_dict())
    assert fast_on_cpu(ours) is ours and isinstance(ours, OneDnnLinear) == request.param
    return ours, reference


@pytest.mark.parametrize("shape", [(40,), (1, 40), (7, 40), (3, 5, 40)])
def test_outputs_and_gradients_are_those_of_nn_linear(pair, shape):
    results = []
    for layer in pair:
        torch.manual_seed(1)
        input = torch.randn(shape, requires_grad=True)
        output = layer(input)
        output.backward(torch.randn_like(output))
        results.append((output, input.grad, layer.weight.grad, layer.bias.grad))
    for ours, expected in zip(*results):
        assert ours.shape == expected.shape and torch.allclose(ours, expected, atol=1e-5)


def test_views_are_multiplied_right(pair):
    ours, reference = pair
    x = torch.randn(40, 6).T
    assert torch.allclose(ours(x), reference(x), atol=1e-5)
    assert torch.allclose(ours(x[::2, :]), reference(x[::2, :]), atol=1e-5)


def test_frozen_weights_get_no_gradient(pair):
    for layer in pair:
        layer.requires_grad_(False)
        input = torch.randn(4, 40, requires_grad=True)
        layer(input).sum().backward()
        assert input.grad is not None and layer.weight.grad is layer.bias.grad is None


def test_gradients_of_gradients(pair):
    results = []
    for layer in pair:
        torch.manual_seed(1)
        input = torch.randn(4, 40, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(input).tanh().sum(), input, create_graph=True)
        gradient.square().sum().backward()
        results.append((input.grad, layer.weight.grad))
    for ours, expected in zip(*results):
        assert torch.allclose(ours, expected, atol=1e-5)


def test_float64_and_torch_func_work(pair):
    ours, reference = pair
    x = torch.randn(4, 40)
    jacobians = [torch.func.vmap(torch.func.jacrev(layer))(x) for layer in pair]
    assert torch.allclose(*jacobians, atol=1e-6)
    assert torch.allclose(ours.double()(x.double()), reference.double()(x.double()), rtol=1e-12)


def test_weights_names_and_other_layers_stay_as_they_are(monkeypatch):
    class Mine(nn.Linear):
        pass

    monkeypatch.setattr(linear, "PREFERS_ONEDNN", True)
    layers = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3, bias=False), Mine(3, 2)
    model = nn.Sequential(*layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast_on_cpu(model)
    assert [type(layer) for layer in model] == [OneDnnLinear, nn.ReLU, nn.Linear, Mine]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_onednn
def test_the_choice_is_by_processor(monkeypatch, tmp_path):
    for vendor, family, flags, expected in (
        ("AuthenticAMD", 26, "avx2 avx512f", True),
        ("AuthenticAMD", 25, "avx2 avx512f", False),
        ("AuthenticAMD", 26, "avx2", False),
        ("GenuineIntel", 26, "avx512f", False),
    ):
        cpuinfo = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\n"
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "cpuinfo")
        assert linear._prefers_onednn() == expected
    monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "absent")
    assert not linear._prefers_onednn()
