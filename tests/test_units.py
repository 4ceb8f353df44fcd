"""The share of dead units, against a count by hand."""

import torch
import torch.nn as nn

import a3_nf_template as nf
import a3_vae_template as vae
from datasets import Batches
from harness.units import N_IMAGES, dead_share

IMAGES = torch.arange(1, 1 + 2 * N_IMAGES, dtype=torch.float64).view(-1, 1)


class Net(nn.Module):
    """Two layers: of the first, `n_dead` of five units never fire, of the second none of two."""

    def __init__(self, n_dead):
        super().__init__()
        self.first, self.second = nn.Linear(1, 5).double(), nn.Linear(5, 2).double()
        nn.init.ones_(self.first.weight)
        nn.init.zeros_(self.first.bias)
        nn.init.ones_(self.second.weight)
        with torch.no_grad():
            self.first.weight[:n_dead] = -1.0

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x)))) + torch.rand(())


def test_a_unit_that_fires_for_no_image_is_dead():
    data = Batches(IMAGES, 10, lambda rows: rows)
    for n_dead in range(5):
        net = Net(n_dead)
        assert dead_share(net, [net.first, net.second], data) == torch.tensor(n_dead / 5)


def test_one_of_the_first_thousand_images_is_enough():
    net = Net(0)
    for threshold, expected in ((N_IMAGES - 1, 0.0), (N_IMAGES, 1.0)):
        nn.init.constant_(net.first.bias, -threshold)
        assert dead_share(net, [net.first], Batches(IMAGES, 10, lambda rows: rows)) == expected


def test_without_relus_no_unit_is_dead():
    assert dead_share(Net(1), [], Batches(IMAGES, 10, lambda rows: rows)) == 0


def test_neither_hooks_nor_random_numbers_are_left():
    net = Net(1)
    before = torch.get_rng_state()
    dead_share(net, [net.first], Batches(IMAGES, 10, lambda rows: rows))
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.first._forward_hooks


def test_the_hidden_layers_are_those_before_relus():
    flow = nf.Model([784], n_flows=2, n_hidden=6)
    assert [layer.in_features for layer in flow.hidden_layers()] == [392, 6] * 4
    assert all(layer.out_features == 6 for layer in flow.hidden_layers())
    for coupling in flow.flow.layers:
        coupling.nn.insert(1, nn.BatchNorm1d(6))
        coupling.nn[-2] = nn.Tanh()
    assert [type(layer) for layer in flow.hidden_layers()] == [nn.BatchNorm1d] * 4
    model = vae.VAE(7, 3)
    assert [layer.out_features for layer in model.hidden_layers()] == [7, 7]
