"""The linear layer gives what `nn.Linear` gives, whichever product it uses."""

import pytest
import torch
import torch.nn as nn

from harness import linear
from harness.linear import Linear

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(params=[False, True], ids=["pytorch", "onednn"])
def pair(request, monkeypatch):
    """(our layer, the same nn.Linear), with either product."""
    if request.param and not ONEDNN:
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(linear, "USE_ONEDNN", request.param)
    torch.manual_seed(0)
    ours, reference = Linear(40, 30), nn.Linear(40, 30)
    reference.load_state_dict(ours.state_dict())
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


def test_initial_weights_are_those_of_nn_linear():
    layers = []
    for kind in (Linear, nn.Linear):
        torch.manual_seed(0)
        layers.append(kind(40, 30))
    assert all(torch.equal(*pair) for pair in zip(*(layer.parameters() for layer in layers)))
    assert layers[0].state_dict().keys() == layers[1].state_dict().keys()


@pytest.mark.skipif(not ONEDNN, reason="PyTorch has no oneDNN here")
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
