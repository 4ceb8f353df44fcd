"""Sample-quality metrics: Fréchet distance, precision and recall, classes, Parzen windows.

Each metric comes with its floor: the value that real images get. Images are rows of 784 pixels in
[0, 1]. Features and classes are those of the classifier in `harness.judge`.
"""

import math

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh

from datasets import mnist
from harness import judge
from harness.devices import to_host

N_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, Section 3
BANDWIDTHS = np.logspace(-1, 0, 10)  # the range of Goodfellow et al. 2014
ROWS = 1000  # rows of a distance matrix that are computed at once


def grey_digits(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(validation images, test images) of MNIST, [10000, 784] in [0, 1] each."""
    _, val, test = mnist(device=device)
    return val.images.float() / 255, test.images.float() / 255


def sample_quality(
    images: torch.Tensor, real: torch.Tensor, other_real: torch.Tensor
) -> dict[str, float]:
    """All metrics of generated images, and the floor of each: the metric of `other_real`.

    The floor is what a perfect model would reach. The Parzen bandwidth is chosen on `other_real`;
    for the floor, half of `other_real` are the windows and the other half chooses the bandwidth.

    Args:
        images: generated, [n, 784].
        real: the test images, [m, 784].
        other_real: the validation images, [k, 784].

    Returns:
        A dict of numbers: in nats where the name says so, otherwise dimensionless.
    """
    classifier, accuracy = judge.load_classifier(images.device)
    features, classes = judge.features_and_classes(classifier, images)
    real_features, _ = judge.features_and_classes(classifier, real)
    other_features, _ = judge.features_and_classes(classifier, other_real)
    precision, recall = precision_recall(real_features, features)
    precision_floor, recall_floor = precision_recall(real_features, other_features)
    parzen_nats, parzen_error = parzen(images, other_real, real)
    half = len(other_real) // 2
    parzen_floor, _ = parzen(other_real[half:], other_real[:half], real)
    return {
        "frechet_distance": frechet_distance(features, real_features),
        "frechet_floor": frechet_distance(other_features, real_features),
        "precision": precision,
        "precision_floor": precision_floor,
        "recall": recall,
        "recall_floor": recall_floor,
        **class_shares(classes),
        "parzen_nats": parzen_nats,
        "parzen_standard_error": parzen_error,
        "parzen_floor_nats": parzen_floor,
        "n_samples": len(images),
        "classifier_accuracy": accuracy,
    }


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to the rows of a and of b, [n, d] each.

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2)

    (Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, Equation 6, there
    on Inception features).
    """
    a, b = (to_host(rows).numpy() for rows in (a, b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The symmetric C_a^1/2 C_b C_a^1/2 has the eigenvalues of C_a C_b, and a stable root even
    # where features depend on each other.
    root = _square_root(covariance_a)
    cross = np.sqrt(eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric positive semidefinite matrix."""
    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def precision_recall(
    real: torch.Tensor, generated: torch.Tensor, k: int = N_NEIGHBOURS
) -> tuple[float, float]:
    """(precision, recall) of generated features among real ones, rows of [n, d] each.

    Precision is the share of generated rows that lie within the distance of some real row to its
    k-th nearest real neighbour. Recall is the same with the two sets exchanged (Kynkäänniemi et
    al., "Improved precision and recall metric for assessing generative models", NeurIPS 2019,
    Equations 1 and 2).
    """
    return _share_within(generated, real, k), _share_within(real, generated, k)


def _share_within(queries: torch.Tensor, points: torch.Tensor, k: int) -> float:
    def radii_of(rows):
        # The smallest distance is that of a point to itself.
        return torch.cdist(rows, points).topk(k + 1, largest=False).values[:, k]

    radii = torch.cat([radii_of(rows) for rows in points.split(ROWS)])
    within = [(torch.cdist(rows, points) <= radii).any(dim=1) for rows in queries.split(ROWS)]
    return torch.cat(within).float().mean().item()


def class_shares(classes: torch.Tensor) -> dict[str, float]:
    """Shares of the rarest and the commonest of ten classes, and their entropy (at most log 10)."""
    shares = torch.bincount(classes.cpu(), minlength=10).double() / len(classes)
    return {
        "smallest_class": shares.min().item(),
        "largest_class": shares.max().item(),
        "class_entropy_nats": -torch.special.xlogy(shares, shares).sum().item(),
    }


def parzen_log_likelihood(
    samples: torch.Tensor, images: torch.Tensor, bandwidth: float
) -> torch.Tensor:
    """Log of the mean over the samples of N(image; sample, bandwidth^2 I) in nats: [n].

    Goodfellow et al., "Generative adversarial nets" (NeurIPS 2014), Section 5.
    """
    n, d = samples.shape
    log_normalizer = math.log(n) + d / 2 * math.log(2 * math.pi * bandwidth**2)

    def log_sum(rows):
        squares = torch.cdist(rows, samples).square()
        return torch.logsumexp(-squares / (2 * bandwidth**2), dim=1)

    return torch.cat([log_sum(rows) for rows in images.split(ROWS)]) - log_normalizer


def parzen(
    samples: torch.Tensor, validation: torch.Tensor, test: torch.Tensor
) -> tuple[float, float]:
    """Mean Parzen log-likelihood of the test images in nats, and its standard error.

    The bandwidth is the best one on the first 1,000 validation images.
    """

    def score(bandwidth):
        return parzen_log_likelihood(samples, validation[:1000], bandwidth).mean().item()

    best = max(BANDWIDTHS, key=score)
    log_likelihoods = to_host(parzen_log_likelihood(samples, test, best))
    standard_error = log_likelihoods.std() / math.sqrt(len(test))
    return log_likelihoods.mean().item(), standard_error.item()


def diversity(images: torch.Tensor) -> tuple[float, int]:
    """Mean Euclidean distance of two images, and how many images repeat an earlier one.

    Args:
        images: [n, 784]; two are the same if they are the same in 8 bits per pixel.
    """
    n = len(images)
    total = sum(torch.cdist(rows, images).sum().item() for rows in images.split(ROWS))
    in_8_bits = (images * 255).round().cpu()  # not every device can find repeated rows
    return total / (n * (n - 1)), n - len(in_8_bits.unique(dim=0))
