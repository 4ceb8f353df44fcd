import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import a3_nf_template as nf
from datasets import Source, bmnist, mnist
from harness import classifier, sample_quality
from harness.sample_quality import (
    BANDWIDTHS,
    class_shares,
    diversity,
    frechet_distance,
    parzen,
    parzen_log_likelihoods,
    precision_recall,
)

KEYS = [
    "frechet_distance",
    "frechet_floor",
    "precision",
    "precision_floor",
    "recall",
    "recall_floor",
    "smallest_class",
    "largest_class",
    "class_entropy_nats",
    "classifier_accuracy",
    "parzen_nats",
    "parzen_standard_error",
    "parzen_floor_nats",
    "n_samples",
]


@pytest.fixture(scope="module")
def grey():
    """(validation images, test images)."""
    return sample_quality.real_images("grey")


@pytest.fixture(params=[1000, 7], ids=["one chunk", "chunks"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(sample_quality, "ROWS", request.param)


def test_frechet_distance_by_hand():
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.normal(size=(4000, 3)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    shifted = a + torch.tensor([3.0, 0.0, 4.0])
    assert frechet_distance(a, shifted) == pytest.approx(25, rel=1e-6)
    # Where both covariances are diagonal, (s_a - s_b)^2 in each dimension.
    root = np.linalg.cholesky(np.cov(a.numpy(), rowvar=False))
    white = (a - a.mean(dim=0)).numpy() @ np.linalg.inv(root).T
    scaled = torch.from_numpy(white * np.array([1.0, 2.0, 5.0]))
    assert frechet_distance(torch.from_numpy(white), scaled) == pytest.approx(1 + 16, rel=1e-6)


def test_precision_and_recall_by_brute_force(chunks):
    torch.manual_seed(0)
    real, generated = torch.randn(60, 2), 0.5 * torch.randn(40, 2) + 0.5

    def share(queries, points, k):
        radii = [sorted((point - other).norm().item() for other in points)[k] for point in points]
        within = [
            any((query - point).norm().item() <= radius for point, radius in zip(points, radii))
            for query in queries
        ]
        return sum(within) / len(queries)

    for k in (1, 3):
        precision, recall = precision_recall(real, generated, k)
        assert precision == pytest.approx(share(generated, real, k))
        assert recall == pytest.approx(share(real, generated, k))
    assert 1 > precision > recall > 0  # the generated points cover a part of the real ones
    assert precision_recall(real, real + 100) == (0, 0)


def test_class_shares_by_hand():
    shares = class_shares(torch.tensor([0, 0, 1, 9]))
    assert shares["smallest_class"] == 0 and shares["largest_class"] == 0.5
    by_hand = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert shares["class_entropy_nats"] == pytest.approx(by_hand)
    even = class_shares(torch.arange(10))
    assert even["class_entropy_nats"] == pytest.approx(math.log(10))


def test_parzen_is_a_mixture_of_gaussians_for_each_bandwidth(chunks):
    torch.manual_seed(0)
    samples, images = torch.rand(20, 5, dtype=torch.float64), torch.rand(9, 5, dtype=torch.float64)
    widths = [0.3, 0.1, 1.0]
    computed = parzen_log_likelihoods(samples, images, widths)
    assert computed.shape == (3, 9)
    for log_likelihoods, width in zip(computed, widths):
        expected = [
            logsumexp([multivariate_normal.logpdf(image, sample, width**2) for sample in samples])
            - math.log(20)
            for image in images
        ]
        assert np.allclose(log_likelihoods, expected)


def test_the_parzen_bandwidth_is_the_best_on_validation_images():
    torch.manual_seed(0)
    samples, validation, test = (0.3 * torch.randn(n, 4) for n in (300, 500, 200))

    def log_likelihoods(images, width):
        distances = (images[:, None] - samples).double().square().sum(dim=2)
        mixture = torch.logsumexp(-distances / (2 * width**2), dim=1) - math.log(300)
        return mixture - 2 * math.log(2 * math.pi * width**2)

    best = max(BANDWIDTHS, key=lambda width: log_likelihoods(validation, width).mean().item())
    expected = log_likelihoods(test, best)
    mean, error = parzen(samples, validation, test)
    assert BANDWIDTHS[0] < best < BANDWIDTHS[-1]
    assert mean == pytest.approx(expected.mean().item(), abs=1e-5)
    assert error == pytest.approx(expected.std().item() / 200**0.5, abs=1e-5)


def test_diversity_by_hand(chunks):
    torch.manual_seed(0)
    images = torch.rand(30, 784)
    images[3] = (images[3] * 255).round() / 255
    images[7] = images[3]
    images[9] = images[3] + 1e-4  # the same in 8 bits
    distances = [(a - b).norm().item() for a, b in itertools.combinations(images, 2)]
    measured = diversity(images)
    assert measured["mean_distance"] == pytest.approx(sum(distances) / len(distances), rel=1e-3)
    assert measured["repeats"] == 2
    assert 10 < measured["mean_distance_real"] < 11


def test_real_images_are_validation_and_test_images_of_the_pixels_asked_for(grey):
    _, val, test = mnist()
    assert torch.equal(grey[0] * 255, val.images.float())
    assert torch.equal(grey[1] * 255, test.images.float())
    for pixels in ("static", "threshold"):
        _, val, test = bmnist(binarize=pixels)
        binary_val, binary_test = sample_quality.real_images(pixels)
        assert torch.equal(binary_val, val.images.float())
        assert torch.equal(binary_test, test.images.float())


def test_shifted_validation_images_are_moved_as_far_as_the_flows_training_images(grey):
    shifted, test = sample_quality.real_images("shifted")
    assert torch.equal(test, grey[1])
    steps = list(itertools.product(range(-nf.MAX_SHIFT, nf.MAX_SHIFT + 1), repeat=2))
    edge = nf.MAX_SHIFT
    padded = torch.nn.functional.pad(grey[0].view(-1, 28, 28), 4 * [edge])
    moves = torch.stack(
        [
            padded[:, edge + rows :, edge + columns :][:, :28, :28].flatten(1).eq(shifted).all(1)
            for rows, columns in steps
        ]
    )
    assert moves.any(dim=0).all()  # each image is one of the nine shifts
    assert torch.allclose(moves.double().mean(dim=1), torch.tensor(1 / 9).double(), atol=0.01)


def test_bernoulli_draws_are_compared_with_static_bits():
    pixels = [sample_quality.pixels_of(name) for name in (None, "static", "dynamic", "larochelle")]
    assert pixels == ["grey", "static", "static", "static"]
    assert sample_quality.pixels_of("threshold") == "threshold"


def test_sample_quality_of_real_images_and_of_noise(grey, monkeypatch):
    few = {"grey": [images[:400] for images in grey]}
    few["static"] = [(images > 0.5).float() for images in few["grey"]]
    asked = []
    monkeypatch.setattr(
        sample_quality,
        "real_images",
        lambda pixels, device, source: asked.append(pixels) or few[pixels],
    )
    validation, test = few["grey"]
    record = classifier.read_record()
    quality = sample_quality.measure(validation)
    assert list(quality) == KEYS
    by_hand = sample_quality.floors(classifier.load_classifier(), validation, test)
    for measure in ("precision", "recall"):
        assert quality[measure] == by_hand[f"{measure}_floor"] > 0.5
    assert quality["frechet_distance"] == by_hand["frechet_floor"] > 0
    assert quality["n_samples"] == 400
    assert quality["classifier_accuracy"] == record["test_accuracy"]
    assert quality.items() >= record["floors"]["grey"].items()

    torch.manual_seed(0)
    noise = sample_quality.measure(torch.rand(400, 784), binarize="dynamic")
    assert asked == ["grey", "static"] and noise.items() >= record["floors"]["static"].items()
    assert noise["frechet_distance"] > 3 * quality["frechet_distance"]
    assert noise["precision"] < quality["precision"] / 2
    assert noise["parzen_nats"] < noise["parzen_floor_nats"]
    assert all(math.isfinite(value) for value in noise.values())


@pytest.fixture
def other_set(grey, monkeypatch):
    """MNIST's images shuffled, as those of another data set, which no classifier knows."""
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    images = [images[:300, order] for images in grey]
    asked, source = [], Source("fashion", "a folder")

    def real_images(*arguments):
        asked.append(arguments)
        return images

    monkeypatch.setattr(sample_quality, "real_images", real_images)
    monkeypatch.setattr(sample_quality, "load_classifier", None)
    monkeypatch.setattr(sample_quality, "read_record", None)
    return source, images, asked


def test_samples_of_another_set_are_compared_with_its_pixels_alone(other_set, capsys):
    source, (validation, test), asked = other_set
    sample_quality._say_what_is_left_out.cache_clear()
    samples = torch.rand(200, 784)
    quality = sample_quality.measure(samples, source, "dynamic")
    assert asked == [("static", samples.device, source)]
    nats, error = parzen(samples, validation, test)
    floor, _ = parzen(validation[150:], validation[:150], test)
    assert quality == {
        "parzen_nats": nats,
        "parzen_standard_error": error,
        "parzen_floor_nats": floor,
        "n_samples": 200,
    }
    sample_quality.measure(samples, source)
    words = capsys.readouterr().out
    assert words.count(": Fréchet distance, precision, recall and classes of samples") == 1
    assert "left out for FashionMNIST" in words


def test_the_diversity_of_another_set_is_compared_with_its_own(other_set):
    source, (_, test), asked = other_set
    measured = diversity(torch.rand(30, 784), source)
    assert asked == [("grey", torch.device("cpu"), source)]
    distances = torch.pdist(test)
    assert measured["mean_distance_real"] == pytest.approx(distances.mean().item(), rel=1e-3)


def test_the_classifier_tells_shuffled_pixels_and_noise_from_digits(grey):
    validation, test = (images[:1000] for images in grey)
    torch.manual_seed(0)
    model = classifier.load_classifier()
    real, digits, shuffled, noise = (
        classifier.features_and_classes(model, images)[0]
        for images in (test, validation, validation[:, torch.randperm(784)], torch.rand(1000, 784))
    )
    assert precision_recall(real, digits)[0] > 0.7
    assert precision_recall(real, noise)[0] < 0.1
    assert precision_recall(real, shuffled)[1] < 0.1  # recall; its precision is not reliable
    for other in (shuffled, noise):
        assert frechet_distance(real, other) > 20 * frechet_distance(real, digits)


def test_half_of_the_validation_images_are_the_samples_of_the_parzen_floor(grey):
    validation, test = (images[:200] for images in grey)
    floors = sample_quality.floors(classifier.load_classifier(), validation, test)
    expected, _ = parzen(validation[100:], validation[:100], test)
    assert floors["parzen_floor_nats"] == expected


@pytest.mark.thorough
@pytest.mark.parametrize("pixels", ["grey", "shifted"])
def test_the_recorded_frechet_floor_is_that_of_real_images(pixels):
    model = classifier.load_classifier()
    images = sample_quality.real_images(pixels)
    validation, test = (classifier.features_and_classes(model, rows)[0] for rows in images)
    recorded = classifier.read_record()["floors"][pixels]["frechet_floor"]
    assert frechet_distance(validation, test) == pytest.approx(recorded, rel=1e-3)


def test_the_record_has_the_floors_of_all_pixels():
    record = classifier.read_record()
    assert set(record["floors"]) == set(sample_quality.PIXELS)
    for pixels, floors in record["floors"].items():
        assert list(floors) == [key for key in KEYS if "floor" in key], pixels
        assert all(math.isfinite(value) for value in floors.values())


@pytest.mark.slow
@pytest.mark.parametrize("pixels", sample_quality.PIXELS)
def test_every_recorded_floor_is_that_of_real_images(pixels):
    images = sample_quality.real_images(pixels)
    record = classifier.read_record()
    expected = sample_quality.floors(classifier.load_classifier(), *images)
    assert record["floors"][pixels] == pytest.approx(expected, rel=1e-3)
    if pixels == "grey":
        mean_distance = sample_quality.mean_distance(images[1])
        assert record["mean_distance_real"] == pytest.approx(mean_distance, rel=1e-4)
