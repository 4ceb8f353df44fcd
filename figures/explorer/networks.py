"""The models' linear layers with 8-bit weights, as bytes that the page's JavaScript reads."""

import copy

import numpy as np
import torch
import torch.nn as nn

from a3_gan_template import Discriminator, Generator
from a3_nf_template import Model
from a3_vae_template import VAE

# A layer and the slope of its activation below zero: 0 for ReLU, 1 for no activation.
Network = list[tuple[nn.Linear, float]]


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix [n_out, n_in] to int8 of the same shape times a scale per row, [n_out]."""
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight / scale[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def quantised(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with batch norm folded into the layers before and 8-bit weights.

    The page computes with the same weights, so the copy's outputs are the page's.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batch_norm(module)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            integers, scale = quantise_rows(module.weight)
            module.weight.copy_(integers * scale[:, None])
    return model


def _fold_batch_norm(layers: nn.Sequential) -> None:
    """Replace each batch norm by a change of the linear layer before it: the same function."""
    for n, norm in enumerate(layers):
        if isinstance(norm, nn.BatchNorm1d):
            linear = layers[n - 1]
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            linear.weight.mul_(factor[:, None])
            linear.bias.copy_((linear.bias - norm.running_mean) * factor + norm.bias)
            layers[n] = nn.Identity()


def vae_networks(vae: VAE) -> dict[str, Network]:
    """The encoder, whose output is the mean and then the log standard deviation; the decoder."""
    encoder, decoder = vae.encoder, vae.decoder
    heads = nn.Linear(encoder.mean.in_features, 2 * encoder.mean.out_features)
    heads.weight.data = torch.cat([encoder.mean.weight, encoder.log_std.weight])
    heads.bias.data = torch.cat([encoder.mean.bias, encoder.log_std.bias])
    return {
        "encoder": [(encoder.hidden, 0.0), (heads, 1.0)],
        "decoder": [(decoder.hidden, 0.0), (decoder.output, 1.0)],
    }


def gan_networks(generator: Generator, discriminator: Discriminator) -> dict[str, Network]:
    """The generator up to its last tanh; the discriminator up to its log odds."""
    return {
        "generator": network_of(generator.layers),
        "discriminator": network_of(discriminator.layers),
    }


def flow_networks(model: Model) -> dict[str, Network]:
    """The network of each coupling, in the order from image to noise."""
    return {f"coupling {n}": network_of(layer.nn) for n, layer in enumerate(model.flow.layers)}


def network_of(layers: nn.Sequential) -> Network:
    """The linear layers with their activations; a tanh may only be the last module."""
    modules = [module for module in layers if not isinstance(module, nn.Identity)]
    if isinstance(modules[-1], nn.Tanh):
        modules.pop()
    network = []
    for module in modules:
        if isinstance(module, nn.Linear):
            network.append((module, 1.0))
        elif isinstance(module, nn.ReLU | nn.LeakyReLU):
            network[-1] = network[-1][0], getattr(module, "negative_slope", 0.0)
        else:
            raise TypeError(f"the page cannot compute {module}")
    return network


def pack(networks: dict[str, Network]) -> tuple[dict[str, list[dict]], bytes]:
    """(a description of the layers, their weights as bytes in the same order).

    A layer is its scales and biases, float32 [n_out] each, then its weights, int8 [n_out, n_in],
    padded with zeros to a multiple of 4 bytes. All numbers are little-endian.
    """
    description, chunks = {}, []
    for name, network in networks.items():
        description[name] = []
        for linear, slope in network:
            integers, scale = quantise_rows(linear.weight.detach())
            n_out, n_in = integers.shape
            description[name].append({"nIn": n_in, "nOut": n_out, "slope": slope})
            chunks += [floats(scale), floats(linear.bias.detach()), padded(integers.numpy())]
    return description, b"".join(chunks)


def floats(values: torch.Tensor) -> bytes:
    """The values as little-endian float32."""
    return values.cpu().numpy().astype("<f4").tobytes()


def padded(values: np.ndarray) -> bytes:
    """The values' bytes, with zeros up to a multiple of 4 bytes."""
    content = values.tobytes()
    return content + bytes(-len(content) % 4)
