import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import evaluation
import runs
from evaluation import Classifier

CPU = torch.device('cpu')


def test_frechet_distance_by_hand():
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.normal(size=(4000, 3)))
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(a, a + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, rel=1e-6)
    # Where both covariances are diagonal, (s_a - s_b)^2 in each dimension.
    white = (a - a.mean(dim=0)).numpy() @ np.linalg.inv(np.linalg.cholesky(np.cov(a.numpy(), rowvar=False))).T
    scaled = white * np.array([1.0, 2.0, 5.0])
    assert evaluation.frechet_distance(torch.from_numpy(white), torch.from_numpy(scaled)) == pytest.approx(0 + 1 + 16, rel=1e-6)


def test_precision_and_recall_by_brute_force():
    torch.manual_seed(0)
    real, generated = torch.randn(60, 2), 0.5 * torch.randn(40, 2) + 0.5

    def share(queries, points, k):
        radii = [sorted((point - other).norm().item() for other in points)[k] for point in points]
        return sum(any((query - point).norm().item() <= radius for point, radius in zip(points, radii))
                   for query in queries) / len(queries)

    for k in (1, 3):
        precision, recall = evaluation.precision_recall(real, generated, k)
        assert precision == pytest.approx(share(generated, real, k)) and recall == pytest.approx(share(real, generated, k))
    assert precision > recall  # the generated points cover a part of the real ones
    assert evaluation.precision_recall(real, real + 100) == (0, 0)


def test_class_shares_by_hand():
    shares = evaluation.class_shares(torch.tensor([0, 0, 1, 9]))
    assert shares['smallest_class'] == 0 and shares['largest_class'] == 0.5
    assert shares['class_entropy_nats'] == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert evaluation.class_shares(torch.arange(10))['class_entropy_nats'] == pytest.approx(math.log(10))


def test_parzen_is_a_mixture_of_gaussians():
    torch.manual_seed(0)
    samples, images = torch.rand(20, 5, dtype=torch.float64), torch.rand(7, 5, dtype=torch.float64)
    expected = [logsumexp([multivariate_normal.logpdf(image, sample, 0.3 ** 2) for sample in samples.numpy()]) - math.log(20)
                for image in images.numpy()]
    assert np.allclose(evaluation.parzen_log_likelihood(samples, images, 0.3), expected)


def test_the_parzen_bandwidth_is_the_best_on_validation_images():
    torch.manual_seed(0)
    samples, validation, test = (0.3 * torch.randn(n, 4) for n in (300, 500, 200))
    scores = {width: evaluation.parzen_log_likelihood(samples, validation, width).mean().item()
              for width in evaluation.BANDWIDTHS}
    best = max(scores, key=scores.get)
    expected = evaluation.parzen_log_likelihood(samples, test, best)
    mean, error = evaluation.parzen(samples, validation, test)
    assert evaluation.BANDWIDTHS[0] < best < evaluation.BANDWIDTHS[-1]
    assert mean == pytest.approx(expected.mean().item()) and error == pytest.approx(expected.std().item() / 200 ** 0.5)


def test_real_images_have_the_floors():
    torch.manual_seed(0)
    other_real, real = evaluation.grey_digits(CPU)
    other_real, real = other_real[:400], real[:400]
    classifier = Classifier().eval()
    quality = evaluation.sample_quality(other_real, real, other_real, classifier, 0.5)
    for measure in ('precision', 'recall'):
        assert quality[measure] == quality[f'{measure}_floor']
    assert quality['frechet_distance'] == quality['frechet_floor'] > 0
    noise = evaluation.sample_quality(torch.rand(400, 784), real, other_real, classifier, 0.5)
    assert noise['frechet_distance'] > 3 * noise['frechet_floor'] and noise['precision'] < 0.1
    assert noise['parzen_nats'] < noise['parzen_floor_nats']
    assert all(math.isfinite(value) for value in noise.values())


def test_the_classifier_is_trained_once_and_its_cache_is_checked(tmp_path, monkeypatch, capsys):
    trained = []

    def train(device):
        torch.manual_seed(len(trained))
        trained.append(Classifier())
        return trained[-1].eval(), 0.5 + len(trained) / 100

    monkeypatch.setattr(evaluation, 'train_classifier', train)
    cache = tmp_path / 'new' / 'classifier.pt'
    first, accuracy = evaluation.load_classifier(CPU, cache)
    again, same = evaluation.load_classifier(CPU, cache)
    assert len(trained) == 1 and accuracy == same == 0.51
    assert torch.equal(first.output.weight, again.output.weight) and not again.training
    whole = cache.read_bytes()
    for damaged in (b'', whole[:-1], whole[:1000] + b'\0' + whole[1001:]):
        cache.write_bytes(damaged)
        evaluation.load_classifier(CPU, cache)
    assert len(trained) == 4 and json.loads(cache.with_suffix('.json').read_text())['test_accuracy'] == 0.54
    evaluation.load_classifier(CPU, cache)
    assert len(trained) == 4
    (tmp_path / 'file').write_text('')
    assert evaluation.load_classifier(CPU, tmp_path / 'file' / 'classifier.pt')[1] == 0.55  # nowhere to keep it


@pytest.mark.skipif(runs.fcntl is None, reason='needs locks on folders')
def test_of_several_trainings_that_end_together_one_trains_the_classifier(tmp_path, monkeypatch):
    trained = []

    def train(device):
        trained.append(device)
        time.sleep(0.3)
        return Classifier(), 0.5

    monkeypatch.setattr(evaluation, 'train_classifier', train)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: evaluation.load_classifier(CPU, tmp_path / 'cache' / 'classifier.pt'), range(4)))
    assert len(trained) == 1
    assert all(torch.equal(model.output.weight, loaded[0][0].output.weight) for model, _ in loaded)


def test_the_classifier_learns(monkeypatch):
    """On 2,000 of the images: far above chance; with all of them it is above 99% (README)."""
    arrays = evaluation.read_mnist()
    monkeypatch.setattr(evaluation, 'read_mnist', lambda: arrays | {
        'x_train': arrays['x_train'][:2000], 'y_train': arrays['y_train'][:2000],
        'x_test': arrays['x_test'][:1000], 'y_test': arrays['y_test'][:1000]})
    stream = torch.get_rng_state()
    _, accuracy = evaluation.train_classifier(CPU, n_epochs=3)
    assert accuracy > 0.7 and torch.equal(torch.get_rng_state(), stream)
