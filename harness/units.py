"""Hidden units that have died."""

from collections.abc import Iterable

import torch
import torch.nn as nn

from datasets import Batches
from harness.devices import separate_random_numbers

N_IMAGES = 1000


@torch.no_grad()
def dead_share(model: nn.Module, layers: Iterable[nn.Module], data: Batches) -> float:
    """The share of units that fire for none of 1,000 images, in the layer where it is largest.

    A ReLU whose input is never positive has no gradient, so its unit learns no more: it is dead
    (Lu et al., "Dying ReLU and initialization", 2019). Random numbers are as if nothing was run.

    Args:
        model: what is called on the batch.
        layers: of the model; they compute what the ReLUs are applied to, [batch, n_units]. Of none
            the share is 0.
        data: the split whose first images are used.
    """
    shares = []

    def record(layer, inputs, output):
        shares.append((output <= 0).all(dim=0).float().mean())

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        with separate_random_numbers(0):
            model(data.to_input(data.images[:N_IMAGES]))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(shares).max().item() if shares else 0.0
