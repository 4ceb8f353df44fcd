"""How good generated digits are, whatever generated them: distances to real ones, with the same distances between real ones.

Fréchet distance, precision and recall and the histogram of classes are taken on features of a small classifier of MNIST that is
trained here once; the Parzen-window log-likelihood is taken on pixels. Images are rows of 784 pixels in [0, 1] throughout.
"""

import contextlib
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.linalg import eigh, eigvalsh

import runs
import training
from datasets import mnist, random_shift, read_mnist

CACHE = Path(__file__).parent / '.cache' / 'classifier.pt'
N_EPOCHS = 4  # of the classifier
N_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, Section 3
BANDWIDTHS = np.logspace(-1, 0, 10)  # in which Goodfellow et al. search
ROWS = 1000  # of a distance matrix at a time


class Classifier(nn.Module):
    """Images [batch, 784] in [0, 1] -> logits of the ten classes, [batch, 10]."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU())
        self.output = nn.Linear(128, 10)

    def forward(self, images):
        return self.output(self.features(images))


def train_classifier(device, n_epochs=N_EPOCHS):
    """(Classifier, its accuracy on the test split), trained on the 50,000 training images, shifted at random."""
    arrays = read_mnist()
    images, labels, test_images, test_labels = (torch.from_numpy(arrays[key]).to(device)
                                                for key in ('x_train', 'y_train', 'x_test', 'y_test'))
    images, labels = images[:50_000].flatten(1), labels[:50_000].long()
    with training.separate_random_numbers(0, device):
        model = Classifier().to(device)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        n_steps = n_epochs * math.ceil(len(images) / 256)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=n_steps)
        for _ in range(n_epochs):
            for rows in torch.randperm(len(images), device=device).split(256):
                loss = F.cross_entropy(model(random_shift(images[rows], 2).float() / 255), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    _, predicted = features_and_classes(model.eval(), test_images.flatten(1).float() / 255)
    return model, (predicted == test_labels).float().mean().item()


def load_classifier(device, cache=CACHE):
    """(Classifier in evaluation mode, its test accuracy) from the cache, or trained and put there.

    The cached weights count only with the SHA-256 beside them. Of several processes one trains, and the others wait for it.
    """
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
    with runs.one_at_a_time(cache.parent) if cache.parent.is_dir() else contextlib.nullcontext():
        return _load_or_train_classifier(device, cache, cache.with_suffix('.json'))


def _load_or_train_classifier(device, cache, checksum):
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(checksum.read_text())
        if record['sha256'] == hashlib.sha256(cache.read_bytes()).hexdigest():
            model = Classifier().to(device).eval()
            model.load_state_dict(torch.load(cache, map_location=device, weights_only=True))
            return model, record['test_accuracy']
    print('training the classifier that samples are judged by (once, about two minutes on a CPU)', file=sys.stderr)
    model, accuracy = train_classifier(device)
    with contextlib.suppress(OSError):  # where nothing can be kept, it is trained again the next time
        runs.write_whole(cache, lambda file: torch.save(model.state_dict(), file))
        record = {'sha256': hashlib.sha256(cache.read_bytes()).hexdigest(), 'test_accuracy': accuracy}
        runs.write_whole(checksum, lambda file: file.write(json.dumps(record).encode()))
    return model, accuracy


@torch.no_grad()
def features_and_classes(model, images):
    """The features [n, 128] that the classifier's last layer sees, and its most probable classes [n]."""
    features = torch.cat([model.features(rows) for rows in images.split(ROWS)])
    return features, model.output(features).argmax(dim=1)


def frechet_distance(a, b):
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of Gaussians with the means and covariances of two sets of rows.

    Heusel et al., "GANs trained by a two time-scale update rule" (NeurIPS 2017), Equation 6, there on other features.
    """
    a, b = (np.asarray(rows.cpu(), np.float64) for rows in (a, b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (C_a C_b)^1/2 through the symmetric C_a^1/2 C_b C_a^1/2, which has the same eigenvalues: features may be
    # dependent, and a singular product has no stable root of its own.
    root = sqrtm_psd(covariance_a)
    cross = np.sqrt(eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def sqrtm_psd(matrix):
    """The square root of a symmetric positive semidefinite matrix."""
    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def precision_recall(real, generated, k=N_NEIGHBOURS):
    """(precision, recall) of generated features among real ones, rows of [n, d] each.

    Precision is the share of generated rows that lie within the distance of some real row to its k-th nearest real neighbour,
    recall the same with the two sets exchanged (Kynkäänniemi et al., "Improved precision and recall metric for
    assessing generative models", NeurIPS 2019, Equations 1 and 2).
    """
    return _share_within(generated, real, k), _share_within(real, generated, k)


def _share_within(queries, points, k):
    # The smallest distance of a point is the one to itself.
    radii = torch.cat([torch.cdist(rows, points).kthvalue(k + 1, dim=1).values for rows in points.split(ROWS)])
    return torch.cat([(torch.cdist(rows, points) <= radii).any(dim=1) for rows in queries.split(ROWS)]).float().mean().item()


def class_shares(classes):
    """{'smallest_class', 'largest_class', 'class_entropy_nats'} of the histogram of class labels [n]; log 10 is 2.303."""
    shares = torch.bincount(classes, minlength=10).double() / len(classes)
    return {'smallest_class': shares.min().item(), 'largest_class': shares.max().item(),
            'class_entropy_nats': -torch.special.xlogy(shares, shares).sum().item()}


def parzen_log_likelihood(samples, images, bandwidth):
    """log of the mean over the samples of N(image; sample, bandwidth^2 I), in nats, for images [n, d]: [n].

    Goodfellow et al., "Generative adversarial nets" (NeurIPS 2014), Section 5.
    """
    n, d = samples.shape
    log_normalizer = math.log(n) + d / 2 * math.log(2 * math.pi * bandwidth ** 2)
    return torch.cat([torch.logsumexp(-torch.cdist(rows, samples).square() / (2 * bandwidth ** 2), dim=1)
                      for rows in images.split(ROWS)]) - log_normalizer


def parzen(samples, validation, test):
    """(mean log-likelihood of the test images in nats, its standard error), the bandwidth chosen on 1,000 validation images."""
    best = max(BANDWIDTHS, key=lambda width: parzen_log_likelihood(samples, validation[:1000], width).mean().item())
    log_likelihoods = parzen_log_likelihood(samples, test, best).double()
    return log_likelihoods.mean().item(), (log_likelihoods.std() / math.sqrt(len(test))).item()


def sample_quality(images, real, other_real, classifier, accuracy):
    """All measures of generated images, each with its floor, the same measure of `other_real` images: what a perfect model would
    reach (for precision, recall and the log-likelihood it is a ceiling).

    Args:
        images: generated, [n, 784] in [0, 1].
        real: those to compare with, the test split.
        other_real: others, the validation split; the Parzen bandwidth is chosen on it. For the floor of the Parzen windows
            half of it are the windows, so that the bandwidth is chosen on the other half.
        classifier, accuracy: of `load_classifier`.

    Returns:
        A dict of numbers, all of them dimensionless but for the names that end in nats.
    """
    features, classes = features_and_classes(classifier, images)
    real_features, _ = features_and_classes(classifier, real)
    other_features, _ = features_and_classes(classifier, other_real)
    precision, recall = precision_recall(real_features, features)
    precision_floor, recall_floor = precision_recall(real_features, other_features)
    parzen_nats, parzen_error = parzen(images, other_real, real)
    half = len(other_real) // 2
    parzen_floor, _ = parzen(other_real[half:], other_real[:half], real)
    return {'frechet_distance': frechet_distance(features, real_features),
            'frechet_floor': frechet_distance(other_features, real_features),
            'precision': precision, 'precision_floor': precision_floor, 'recall': recall, 'recall_floor': recall_floor,
            **class_shares(classes), 'parzen_nats': parzen_nats, 'parzen_standard_error': parzen_error,
            'parzen_floor_nats': parzen_floor, 'n_samples': len(images), 'classifier_accuracy': accuracy}


def grey_digits(device):
    """(validation images, test images) of MNIST, [10000, 784] in [0, 1]."""
    _, val, test = mnist(device=device)
    return val.images.float() / 255, test.images.float() / 255
