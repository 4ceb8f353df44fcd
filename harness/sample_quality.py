"""Sample-quality metrics: Fréchet distance, precision and recall, classes, Parzen windows.

Each metric comes with its "floor", the value for real images: 10,000 validation images (5,000 as
Parzen windows). So compare at 10,000 samples. Parzen windows can rank generated images above
real ones (Theis, van den Oord & Bethge, ICLR 2016, Section 4), as they do a GAN's here: they are
for comparisons with Goodfellow's table alone. Images are rows of pixels in [0, 1]. Features and
classes are those of `harness.classifier`, which knows MNIST only; images of another data set get
the metrics that need no classifier.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh

from datasets import MNIST, Source, bmnist, image_shape, mnist, random_shift
from harness.classifier import Classifier, features_and_classes, load_classifier, read_record
from harness.devices import separate_random_numbers, to_host

N_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, Section 3
BANDWIDTHS = np.logspace(-1, 0, 10)  # the range of Goodfellow et al. 2014
ROWS = 1000  # rows of a distance matrix that are computed at once

# Of real images; the classifier's record has floors of each. "shifted" are grey validation images
# moved by up to one pixel at random, like the images that the flow is trained on.
PIXELS = ("grey", "shifted", "static", "threshold")


def pixels_of(binarize: str | None) -> str:
    """The pixels of the real images that models of a binarisation compare with, one of PIXELS.

    None is grey. 'static', 'dynamic' and 'larochelle' all draw bits with the pixels' intensities
    as probabilities, so the static bits stand for all three.
    """
    if binarize is None:
        return "grey"
    return "threshold" if binarize == "threshold" else "static"


def real_images(
    pixels: str, device: torch.device | str = "cpu", source: Source = MNIST
) -> tuple[torch.Tensor, torch.Tensor]:
    """(validation images, test images) of a data set, [n, n_pixels] in [0, 1] each."""
    if pixels in ("grey", "shifted"):
        _, val, test = mnist(source, device=device)
        validation = val.images.float() / 255
        if pixels == "shifted":
            with separate_random_numbers(0):
                validation = random_shift(validation, 1, image_shape(source))
        return validation, test.images.float() / 255
    _, val, test = bmnist(source, device=device, binarize=pixels)
    return val.images.float(), test.images.float()


def measure(
    images: torch.Tensor, source: Source = MNIST, binarize: str | None = None
) -> dict[str, float]:
    """All metrics of generated images against the test images, and the floor of each.

    The floor is the metric of the validation images (`floors`): a good model comes near it. The
    Parzen bandwidth is chosen on the validation images.

    Args:
        images: generated, [n, n_pixels].
        source: the data set that they imitate. If it isn't MNIST, there are only Parzen windows,
            and a line says so.
        binarize: None compares with grey images; 'static', ... with binary ones (`pixels_of`).

    Returns:
        A dict of numbers: in nats where the name says so, otherwise dimensionless.
    """
    pixels = pixels_of(binarize)
    validation, test = real_images(pixels, images.device, source)
    if source.dataset == "mnist":
        classified = _classified(images, test, pixels)
        floor = read_record()["floors"][pixels]["parzen_floor_nats"]
    else:
        _say_what_is_left_out(source.title)
        classified, floor = {}, parzen_floor(validation, test)
    parzen_nats, parzen_error = parzen(images, validation, test)
    return {
        **classified,
        "parzen_nats": parzen_nats,
        "parzen_standard_error": parzen_error,
        "parzen_floor_nats": floor,
        "n_samples": len(images),
    }


def _classified(images: torch.Tensor, test: torch.Tensor, pixels: str) -> dict[str, float]:
    """The metrics that need the classifier, with floors from its record."""
    record, classifier = read_record(), load_classifier(images.device)
    features, classes = features_and_classes(classifier, images)
    test_features, _ = features_and_classes(classifier, test)
    precision, recall = precision_recall(test_features, features)
    floor = record["floors"][pixels]
    return {
        "frechet_distance": frechet_distance(features, test_features),
        "frechet_floor": floor["frechet_floor"],
        "precision": precision,
        "precision_floor": floor["precision_floor"],
        "recall": recall,
        "recall_floor": floor["recall_floor"],
        **class_shares(classes),
        "classifier_accuracy": record["test_accuracy"],
    }


@functools.cache  # once, although the VAE has two kinds of samples
def _say_what_is_left_out(title: str) -> None:
    print(
        f"\nleft out for {title}: Fréchet distance, precision, recall and classes of samples; the "
        "classifier they need was trained on MNIST"
    )


def floors(
    classifier: Classifier, validation: torch.Tensor, test: torch.Tensor
) -> dict[str, float]:
    """The metrics of real images: of the validation images against the test images."""
    features, _ = features_and_classes(classifier, validation)
    test_features, _ = features_and_classes(classifier, test)
    precision, recall = precision_recall(test_features, features)
    return {
        "frechet_floor": frechet_distance(features, test_features),
        "precision_floor": precision,
        "recall_floor": recall,
        "parzen_floor_nats": parzen_floor(validation, test),
    }


def parzen_floor(validation: torch.Tensor, test: torch.Tensor) -> float:
    """Parzen log-likelihood in nats with real images as samples.

    They are the second half of the validation images; the first half chooses the bandwidth.
    """
    half = len(validation) // 2
    return parzen(validation[half:], validation[:half], test)[0]


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
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, radii in zip(generated.split(ROWS), generated_radii.split(ROWS)):
        distances = torch.cdist(rows, real)
        precise.append((distances <= real_radii).any(dim=1))
        recalled |= (distances <= radii[:, None]).any(dim=0)
    return _share(torch.cat(precise)), _share(recalled)


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """The distance of each point to its k-th nearest neighbour, [n]."""
    # The smallest distance is that of a point to itself.
    nearest = [torch.cdist(rows, points).topk(k + 1, largest=False) for rows in points.split(ROWS)]
    return torch.cat([distances[:, k] for distances, _ in nearest])


def _share(true: torch.Tensor) -> float:
    return to_host(true).mean().item()


def class_shares(classes: torch.Tensor) -> dict[str, float]:
    """Shares of the rarest and the commonest of ten classes, and their entropy (at most log 10)."""
    shares = torch.bincount(classes.cpu(), minlength=10).double() / len(classes)
    return {
        "smallest_class": shares.min().item(),
        "largest_class": shares.max().item(),
        "class_entropy_nats": -torch.special.xlogy(shares, shares).sum().item(),
    }


def parzen_log_likelihoods(
    samples: torch.Tensor, images: torch.Tensor, bandwidths: Sequence[float]
) -> torch.Tensor:
    """Log of the mean over the samples of N(image; sample, bandwidth^2 I) in nats: [bandwidths, n].

    Goodfellow et al., "Generative adversarial nets" (NeurIPS 2014), Section 5.
    """
    n_samples, d = samples.shape

    def log_sums(rows):
        squares = torch.cdist(rows, samples).square_()
        return torch.stack([torch.logsumexp(squares * (-0.5 / s**2), dim=1) for s in bandwidths])

    log_normalizers = [
        math.log(n_samples) + d / 2 * math.log(2 * math.pi * s**2) for s in bandwidths
    ]
    sums = torch.cat([log_sums(rows) for rows in images.split(ROWS)], dim=1)
    return sums - sums.new_tensor(log_normalizers)[:, None]


def parzen(
    samples: torch.Tensor, validation: torch.Tensor, test: torch.Tensor
) -> tuple[float, float]:
    """Mean Parzen log-likelihood of the test images in nats, and its standard error.

    The bandwidth is the best one on the first 1,000 validation images.
    """
    scores = parzen_log_likelihoods(samples, validation[:1000], BANDWIDTHS).mean(dim=1)
    best = BANDWIDTHS[scores.argmax().item()]
    (log_likelihoods,) = to_host(parzen_log_likelihoods(samples, test, [best]))
    standard_error = log_likelihoods.std() / math.sqrt(len(test))
    return log_likelihoods.mean().item(), standard_error.item()


def diversity(images: torch.Tensor, source: Source = MNIST) -> dict[str, float]:
    """How different generated images [n, n_pixels] are from each other.

    Returns:
        `mean_distance`, the mean Euclidean distance of two images; `mean_distance_real`, that of
        the test images; `spread`, their ratio; and `repeats`, how many images repeat an earlier one
        in 8 bits per pixel.
    """
    rounded = (images * 255).round().byte().cpu()  # not every device can find repeated rows
    if source.dataset == "mnist":
        real = read_record()["mean_distance_real"]
    else:
        real = mean_distance(real_images("grey", images.device, source)[1])
    distance = mean_distance(images)
    return {
        "mean_distance": distance,
        "mean_distance_real": real,
        "spread": distance / real,
        "repeats": len(images) - len(rounded.unique(dim=0)),
    }


def mean_distance(images: torch.Tensor) -> float:
    """The mean Euclidean distance of two different rows of [n, d]."""
    total = 0.0
    for start in range(0, len(images), ROWS):
        rows, later = images[start : start + ROWS], images[start + ROWS :]
        # Each pair counts twice: within the rows they are both there.
        total += torch.cdist(rows, rows).sum().item() + 2 * torch.cdist(rows, later).sum().item()
    return total / (len(images) * (len(images) - 1))
