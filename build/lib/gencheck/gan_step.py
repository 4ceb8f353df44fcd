"""An optimiser step of a GAN, as gradients of log D and log(1 - D) explain its gradient."""

from dataclasses import dataclass

import torch

EXPLAINED = 0.05  # of a gradient's norm may stay unexplained, for labels to be read off exactly
SMALL = 0.2  # part of a weight that noisy labels may feign


@dataclass
class Step:
    """One optimiser step of a network.

    Args:
        coefficients: of the gradients of mean log D and mean log(1 - D), for real images and for
            generated ones; [4] for the discriminator, [2] for the generator (generated only). Of a
            stated loss: of its terms, then of gradient penalties.
        d_fake: the average of D(G(z)); NaN without generated images.
        residual: part of the gradient's norm that no such combination explains.
        leftover: whether the backward pass before the step added to gradients of an earlier one.
        of_probabilities: whether a loss that takes the discriminator's probabilities for logits
            explains the gradient instead.
        other_moved: whether the step changed the other network's weights.
        n_terms: of a stated loss; 0 if none is stated.
        looks_like: the name of a loss that explains the gradient where no cross-entropy does.
        random_labels: whether labels that differ between images explain it.
    """

    coefficients: list[float]
    d_fake: float
    residual: float
    leftover: bool
    of_probabilities: bool = False
    other_moved: bool = False
    n_terms: int = 0
    looks_like: str = ""
    random_labels: bool = False

    @property
    def labels(self) -> tuple[float | None, float | None]:
        """The labels of real and generated images; None where they don't enter as a cross-entropy.

        New generators make nearly the same image each time, so that the gradients of log D and
        log(1 - D) are nearly parallel there. Then labels that differ between images leave only
        w (D - label) certain, and w is taken from the real images.
        """
        real, fake = self.weights
        up, down = self.coefficients[2:]
        real_label = -self.coefficients[0] / real if real else None
        fake_label = -up / fake if fake else None
        if self.residual > EXPLAINED and real and fake:
            pull = up * (1 - self.d_fake) - down * self.d_fake
            fake_label = self.d_fake - pull / real
        return real_label, fake_label

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
    matrix, gradient = torch.stack(columns, dim=1).double(), gradient.double()
    scale = matrix.norm(dim=0)
    used = scale > 0
    matrix = matrix[:, used] / scale[used]
    # Normal equations: the matrix has half a million rows and a few columns.
    solution = torch.linalg.lstsq(matrix.T @ matrix, matrix.T @ gradient).solution
    residual = (gradient - matrix @ solution).norm() / gradient.norm().clamp(min=1e-30)
    coefficients = torch.zeros(len(scale), dtype=torch.float64)
    coefficients[used] = solution / scale[used]
    return coefficients.tolist(), residual.item()
