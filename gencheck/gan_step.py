"""An optimiser step of a GAN, as gradients of log D and log(1 - D) explain its gradient."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

EXPLAINED = 0.05  # of a gradient's norm may stay unexplained, for labels to be read off exactly
SMALL = 0.2  # part of a weight that noisy labels may feign


class Pulls(NamedTuple):
    """How strongly a loss, whose labels may differ between images, pulls at each of them, [n] each.

    The gradient of the cross-entropy with respect to an image's logit is D - label, times a scale.
    """

    strengths: torch.Tensor  # coefficient of the gradient of the logit
    d: torch.Tensor  # D of the image
    fake: torch.Tensor  # whether it is generated
    is_random: bool  # whether D of an image doesn't determine it

    @classmethod
    def of_steps(cls, steps: list["Step"]) -> "Pulls | None":
        """Those of all steps, whose scale is the same; None where none is random."""
        pulls = [step.pulls for step in steps if step.pulls is not None]
        if not any(part.is_random for part in pulls):
            return None
        return cls(*(torch.cat([part[i] for part in pulls]) for i in range(3)), True)

    def labels(self) -> tuple[list[float], list[float]]:
        """Average labels of real and of generated images, and their standard errors.

        The strengths fall on a line over D whose slope is the scale: the same for both, by least
        squares. Without images of one kind its label is NaN.
        """
        sides, n, products, squares, rest = [], 0, 0.0, 0.0, 0.0
        for rows in (~self.fake, self.fake):
            strengths, d = self.strengths[rows].double(), self.d[rows].double()
            sides.append((strengths, d))
            n += len(d)
            products += ((strengths - strengths.mean()) * (d - d.mean())).nansum()
            squares += (d - d.mean()).square().nansum()
        slope = products / squares
        for strengths, d in sides:
            rest += (strengths - strengths.mean() - slope * (d - d.mean())).square().nansum()
        variance = rest / (n - 3)
        labels = [(d.mean() - strengths.mean() / slope).item() for strengths, d in sides]
        errors = [
            ((variance / len(d) + (strengths.mean() / slope).square() * variance / squares).sqrt()
             / slope.abs()).item()
            for strengths, d in sides
        ]  # fmt: skip
        return labels, errors


@dataclass
class Step:
    """One optimiser step of a network.

    Args:
        coefficients: of the gradients of mean log D and mean log(1 - D), for real images and for
            generated ones; [4] for the discriminator, [2] for the generator (generated only). Of a
            stated loss: of its terms, then of gradient penalties.
        residual: part of the gradient's norm that no such combination explains.
        leftover: whether the backward pass before the step added to gradients of an earlier one.
        of_probabilities: whether a loss that takes the discriminator's probabilities for logits
            explains the gradient instead.
        other_moved: whether the step changed the other network's weights.
        n_terms: of a stated loss; 0 if none is stated.
        looks_like: the name of a loss that explains the gradient where no cross-entropy does.
        pulls: at each image, where labels may differ between images.
    """

    coefficients: list[float]
    residual: float
    leftover: bool
    of_probabilities: bool = False
    other_moved: bool = False
    n_terms: int = 0
    looks_like: str = ""
    pulls: Pulls | None = None

    @property
    def labels(self) -> tuple[float | None, float | None]:
        """The labels of real and generated images; None for those that are in no cross-entropy."""
        return tuple(
            -up / weight if weight else None
            for up, weight in zip(self.coefficients[::2], self.weights)
        )

    @property
    def sides(self) -> list[bool]:
        """Whether real and whether generated images enter the discriminator's loss."""
        if self.n_terms:
            return [True, True]
        sizes = [max(map(abs, half)) for half in (self.coefficients[:2], self.coefficients[2:])]
        return [size > SMALL * max(sizes) for size in sizes]

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of real and generated images in the discriminator's loss; 0 for small ones.

        Both are 0 for D itself, the logit log D - log(1 - D), as in the Wasserstein loss.
        """
        weights = [-sum(self.coefficients[:2]), -sum(self.coefficients[2:])]
        size = max(*map(abs, weights), SMALL * max(map(abs, self.coefficients)))
        return tuple(weight if abs(weight) > SMALL * size else 0.0 for weight in weights)


def fit_with_penalties(
    columns: list[torch.Tensor], n_terms: int, gradient: torch.Tensor
) -> tuple[list[float], float]:
    """As `fit`, with coefficients of the columns after the first n that are not negative.

    Penalties only add to a loss. Those that would be subtracted are left out, and another target
    of a norm, which is a difference of penalties, is explained by none.
    """
    used = list(range(len(columns)))
    while True:
        coefficients, residual = fit([columns[i] for i in used], gradient)
        sizes = {i: c * columns[i].norm() for i, c in zip(used, coefficients) if i >= n_terms}
        lowest = min(sizes, key=sizes.get, default=None)
        if lowest is None or sizes[lowest] >= 0:
            return coefficients, residual
        used.remove(lowest)


def fit(columns: list[torch.Tensor], gradient: torch.Tensor) -> tuple[list[float], float]:
    """Least squares: coefficients of the columns, and the unexplained part of the norm."""
    # Normal equations: there are millions of entries and a few columns.
    rows, gradient = torch.stack(columns).double(), gradient.double()
    products, targets = rows @ rows.T, rows @ gradient
    scale = products.diagonal().sqrt()
    used = scale > 0
    sizes = scale[used]
    products = products[used][:, used] / sizes / sizes[:, None]
    coefficients = torch.zeros(len(scale), dtype=torch.float64)
    coefficients[used] = torch.linalg.lstsq(products, targets[used] / sizes).solution / sizes
    residual = (gradient - coefficients @ rows).norm() / gradient.norm().clamp(min=1e-30)
    return coefficients.tolist(), residual.item()
