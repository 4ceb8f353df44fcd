"""Records of a GAN's two networks: calls that can be repeated, steps, gradients."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn as nn

from gencheck.gan_step import Step


class Call(NamedTuple):
    """A call of a network, to be repeated: its arguments, and z or the images among them."""

    args: tuple
    options: dict
    key: int | str  # which argument is z or the images: the first of floating point
    main: torch.Tensor  # a copy of it
    sums: list[float]  # of its rows, to know them again

    @classmethod
    def of(cls, args, options):
        """The record of a call."""
        named = [*enumerate(args), *options.items()]
        key, main = next(
            (pair for pair in named if torch.is_tensor(pair[1]) and pair[1].is_floating_point()),
            named[0],
        )
        main = main.detach().clone()
        return cls(args, options, key, main, row_sums(main))

    def again(self, module: nn.Module, main: torch.Tensor | None = None):
        """What the module returns for these arguments, with another z or other images if given."""
        main = self.main if main is None else main
        args = [main if i == self.key else arg for i, arg in enumerate(self.args)]
        options = {k: main if k == self.key else arg for k, arg in self.options.items()}
        return module(*args, **options)


@dataclass
class Watched:
    """A network: its module, its calls and steps."""

    module: nn.Module
    calls: list = field(default_factory=list)
    mark: int = 0  # calls before the last step of any network
    steps: list[Step] = field(default_factory=list)
    # Gradients, by parameter, before the first backward pass after a step of any network, or
    # after gradients were set to zero.
    leftover: dict[int, torch.Tensor] = field(default_factory=dict)
    start: list = field(default_factory=list)
    previous: list = field(default_factory=list)  # weights before its last step
    older: list = field(default_factory=list)  # calls before that step

    @property
    def parameters(self) -> list:
        """Its trainable parameters."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def moved(self) -> float:
        """Norm of the change of its weights since the start."""
        changes = [(p.detach() - s).norm() for p, s in zip(self.module.parameters(), self.start)]
        return torch.stack(changes).norm().item()


def gradient_of(parameters) -> torch.Tensor:
    """What is in `.grad`, flat; zeros where there is nothing."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.flatten() for part in parts])


def gradients_of(value, parameters) -> torch.Tensor:
    """The gradient of a number, flat; zeros where it doesn't depend on a parameter."""
    parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts)]
    return torch.cat([part.flatten() for part in parts])


def row_sums(images) -> list[float]:
    """The sum of each image, by which it is known again."""
    return images.detach().flatten(1).double().sum(dim=1).tolist()
