import itertools
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

import a3_gan_template as script
import runs
from a3_gan_template import Discriminator, Generator
from datasets import Stream


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Generator(), Discriminator()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return 2 * torch.rand(16, 784) - 1


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shapes_and_ranges(networks):
    generator, discriminator = networks
    images = generator(torch.randn(8, 100))
    assert images.shape == (8, 784) and images.abs().max() <= 1
    probabilities = discriminator(images)
    assert probabilities.shape == (8, 1) and 0 < probabilities.min() and probabilities.max() < 1
    assert torch.allclose(torch.sigmoid(discriminator.logits(images))[:, None], probabilities)


def test_the_report_s_sizes(networks):
    def linear_sizes(model):
        return [(layer.in_features, layer.out_features) for layer in model.layers if isinstance(layer, torch.nn.Linear)]

    generator, discriminator = networks
    assert linear_sizes(generator) == [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert [layer.num_features for layer in generator.layers if isinstance(layer, torch.nn.BatchNorm1d)] == [256, 512, 1024]
    assert linear_sizes(discriminator) == [(784, 512), (512, 256), (256, 1)]
    assert {layer.negative_slope for model in networks for layer in model.layers
            if isinstance(layer, torch.nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize('real_label, fake_label', [(0.9, 0.0), (0.9, 0.1), (1.0, 0.0)])
def test_losses_against_probabilities(real_label, fake_label):
    torch.manual_seed(0)
    real, fake = torch.randn(9, dtype=torch.double), torch.randn(9, dtype=torch.double)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    expected = (-real_label * d_real.log() - (1 - real_label) * (1 - d_real).log()
                - fake_label * d_fake.log() - (1 - fake_label) * (1 - d_fake).log())
    assert torch.allclose(script.discriminator_loss(real, fake, real_label, fake_label), expected)
    assert torch.allclose(script.generator_loss(fake), F.binary_cross_entropy(d_fake, torch.ones_like(fake), reduction='none'))


def test_losses_of_saturated_logits():
    assert script.generator_loss(torch.tensor([-300.0])).item() == 300.0
    assert script.discriminator_loss(torch.tensor([300.0]), torch.tensor([300.0]), 1.0, 0.0).item() == 300.0


@pytest.mark.parametrize('real_label, fake_label, expected', [
    (0.9, 0.0, (0.45, 0.80, 1.38)), (0.9, 0.1, (0.50, 0.69, 1.39)), (1.0, 0.0, (0.50, 0.69, math.log(4)))])
def test_equilibrium_is_the_best_discriminator_of_equal_densities(real_label, fake_label, expected):
    def loss(logit):
        logits = torch.tensor([logit], dtype=torch.double)
        return script.discriminator_loss(logits, logits, real_label, fake_label).item()

    best = minimize_scalar(loss, bounds=(-5, 5), method='bounded', options={'xatol': 1e-9})
    d, g_loss, d_loss = script.equilibrium(real_label, fake_label)
    assert d == pytest.approx(1 / (1 + math.exp(-best.x)), abs=1e-6)
    assert d_loss == pytest.approx(best.fun, abs=1e-9)
    assert g_loss == pytest.approx(script.generator_loss(torch.tensor([best.x], dtype=torch.double)).item(), abs=1e-6)
    assert (d, g_loss, d_loss) == pytest.approx(expected, abs=0.01)


def test_a_discriminator_update_leaves_the_generator_alone(networks, images):
    generator, discriminator = networks
    fake = generator(torch.randn(16, 100))
    g_state, d_state = state_of(generator), state_of(discriminator)
    script.update_discriminator(discriminator, adam(discriminator), images, fake, 0.9, 0.0)
    assert unchanged(generator, g_state) and not unchanged(discriminator, d_state)
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_a_generator_update_leaves_the_discriminator_alone(networks):
    generator, discriminator = networks
    fake = generator(torch.randn(16, 100))
    g_state, d_state = state_of(generator), state_of(discriminator)
    script.update_generator(discriminator, adam(generator), fake)
    assert unchanged(discriminator, d_state) and not unchanged(generator, g_state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.parameters())
    assert all(parameter.grad is not None for parameter in generator.parameters())
    for name, value in generator.named_buffers():  # statistics move with the forward pass, not with the update
        assert torch.equal(value, g_state[name])


def test_updates_descend_their_losses(networks, images):
    generator, discriminator = networks
    z = torch.randn(16, 100)
    fake = generator(z)
    before, _, _ = script.update_discriminator(discriminator, adam(discriminator), images, fake, 0.9, 0.0)
    after, d_real, d_fake = script.update_discriminator(discriminator, adam(discriminator), images, fake, 0.9, 0.0)
    assert after.mean() < before.mean() and d_real.mean() > d_fake.mean()
    before = script.update_generator(discriminator, torch.optim.SGD(generator.parameters(), lr=1e-2), generator(z))
    assert script.generator_loss(discriminator.logits(generator(z))).mean() < before.mean()


def test_one_generator_forward_serves_both_updates(networks, images):
    generator, discriminator = networks
    passes = []
    generator.register_forward_hook(lambda *_: passes.append(1))
    averages = script.train_batch(generator, discriminator, (adam(generator), adam(discriminator)), images)
    assert len(passes) == 1 and averages.shape == (4,) and averages.isfinite().all()


@pytest.mark.parametrize('n_per_launch', [1, 3])
def test_what_a_run_writes_and_when(tmp_path, monkeypatch, images, n_per_launch):
    """Also where several steps are taken in one go, as on CUDA, lines and pictures are of exactly the batches they name."""
    grey = (images + 1).mul(127.5).byte().repeat(8, 1)  # 10 batches of 12, and 8 images over
    split = Namespace(images=grey)
    monkeypatch.setattr(script, 'mnist', lambda *_: (Namespace(images=grey[:64]), Namespace(images=grey[64:]), split))
    monkeypatch.setattr(script, 'PICTURES', (1, 7))
    monkeypatch.setattr(script, 'PICTURE_EVERY', 4)
    monkeypatch.setattr(script, 'finish', lambda *_: None)
    monkeypatch.setattr(script.training, 'steps_on', lambda _, step, *__, **___: script.training.Steps(step, n_per_launch))
    pictures = {}
    monkeypatch.setattr(script.figures, 'save_grid',
                        lambda path, panels, n_columns: pictures.update({path.name: next(iter(panels.values()))}))
    args = script.parse_args(['--n_epochs', '1', '--batch_size', '12', '--save_interval', '3', '--device', 'cpu',
                              '--out', str(tmp_path / 'run')])
    script.main(args)

    torch.manual_seed(0)
    networks = generator, discriminator = Generator(), Discriminator()
    optimizers = [torch.optim.Adam(model.parameters(), lr=2e-4, fused=True) for model in networks]
    with script.training.separate_random_numbers(0, torch.device('cpu')):
        fixed_latents = torch.randn(25, 100)
    lines, averages, expected_pictures = [], [], {}
    for batch, real in enumerate(itertools.islice(Stream(grey, 12), 10), start=1):
        averages.append(script.train_batch(*networks, optimizers, real / 127.5 - 1))
        if batch in (3, 6, 9, 10):
            lines.append([batch, *torch.stack(averages).mean(dim=0).tolist()])
            averages = []
        if batch in (1, 4, 7, 8, 10):
            expected_pictures[f'samples_{batch:06d}.png'] = script.generate(generator, fixed_latents)
    written = runs.read_metrics(tmp_path / 'run')
    assert [[line[key] for key in ('batch', 'g_loss', 'd_loss', 'd_real', 'd_fake')] for line in written] == lines
    assert pictures.keys() == expected_pictures.keys()
    assert all(torch.equal(pictures[name], images) for name, images in expected_pictures.items())


def test_the_number_of_batches_is_the_report_s():
    batches = Stream(torch.zeros(60_000, 1, dtype=torch.uint8), 64)
    assert 200 * batches.n_images / batches.batch_size == script.REFERENCE_BATCHES
    assert {len(batch) for batch in itertools.islice(batches, 1875)} == {64}
    assert len(batches.order) == 0  # 1,875 batches are two passes exactly


def test_generate_uses_and_keeps_the_statistics(networks):
    generator, _ = networks
    generator(torch.randn(50, 100))
    before, z = state_of(generator), torch.randn(10, 100)
    images = script.generate(generator, z)
    assert generator.training and unchanged(generator, before)
    assert 0 <= images.min() and images.max() <= 1
    assert torch.allclose(images[:3], script.generate(generator, z[:3]), atol=1e-6)  # independent of the batch


def test_interpolation_is_the_straight_line():
    ends = torch.full((100,), -0.9), torch.full((100,), 0.9)
    line = script.interpolate(*ends)
    assert line.shape == (9, 100)
    assert torch.equal(line[0], ends[0]) and torch.equal(line[-1], ends[1])
    assert torch.allclose(line.diff(dim=0), torch.full((8, 100), 1.8 / 8), atol=1e-6)


def test_most_different_draws(networks):
    generator, _ = networks
    torch.manual_seed(5)
    ends = script.most_different(generator, n_candidates=20)
    torch.manual_seed(5)
    images = script.generate(generator, script.sample_latents(20, 100))
    distances = [(a - b).norm().item() for a, b in itertools.combinations(images, 2)]
    first, last = script.generate(generator, torch.stack(ends))
    assert (first - last).norm().item() == pytest.approx(max(distances), rel=1e-5)


def test_diversity_by_hand():
    torch.manual_seed(0)
    images = torch.rand(30, 784)
    images[7] = images[3]
    images[9] = images[3]
    distances = [(a - b).norm().item() for a, b in itertools.combinations(images, 2)]
    mean, repeats = script.diversity(images)
    assert mean == pytest.approx(sum(distances) / len(distances), rel=1e-3)
    assert repeats == 2


def test_graded_rows():
    def verdicts(protocol, last=187_500, repeats=0, mean_distance=10.0, latent_dim=100, **values):
        settings = {'protocol': protocol, 'latent_dim': latent_dim, 'batch_size': 64, 'real_label': 0.9,
                    'fake_label': 0.1 if protocol == 'report' else 0.0}
        values = dict(g_loss=1.2, d_loss=1.1, d_real=0.7, d_fake=0.2) | values
        lines = [{'batch': batch, 'g_loss': 9.0, 'd_loss': 9.0, 'd_real': 1.0, 'd_fake': 0.0}
                 for batch in range(500, int(0.9 * last) + 1, 500)]
        lines += [{'batch': batch} | values for batch in range(int(0.9 * last) + 500, last + 1, 500)]
        if lines[-1]['batch'] != last:
            lines.append({'batch': last} | values)
        measures = {'mean_distance': mean_distance, 'mean_distance_real': 10.5, 'repeats': repeats}
        return [row['verdict'] for row in script.graded(type('Args', (), settings), lines, {'samples': measures})]

    assert verdicts('standard') == 4 * ['pass'] and verdicts('report') == 5 * ['pass']
    assert verdicts('standard', d_real=0.81) == ['falls short', 'pass', 'pass', 'pass']
    assert verdicts('standard', d_fake=0.09) == ['pass', 'falls short', 'pass', 'pass']
    assert verdicts('report', g_loss=1.6)[:3] == ['falls short', 'pass', 'falls short']
    assert verdicts('report', g_loss=1.49)[:3] == ['pass', 'pass', 'falls short']
    assert verdicts('report', d_loss=0.89)[:3] == ['pass', 'falls short', 'pass']
    assert verdicts('standard', last=18_750) == ['not reached', 'not reached', 'pass', 'pass']
    assert verdicts('standard', latent_dim=2) == 4 * ['not comparable']
    assert verdicts('standard', mean_distance=8.9, repeats=1)[2:] == ['falls short', 'falls short']
    args = type('Args', (), dict(protocol='report', latent_dim=100, batch_size=64, real_label=0.9, fake_label=0.1))
    line = {'batch': 187_500, 'g_loss': 1.2, 'd_loss': 1.1, 'd_real': 0.7, 'd_fake': 0.2}
    assert [row['verdict'] for row in script.graded(args, [line], {})] == 3 * ['pass'] + 2 * ['not reached']


def test_a_checkpoint_that_is_not_a_generator_s_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['a3_gan_template.py'])
    run = runs.Run(Namespace(out=tmp_path / 'run', resume=None), torch.device('cpu'), model=Discriminator())
    run.log(batch=1, loss=1.0)
    run.save_checkpoint(last=True)
    args = Namespace(generate=run.folder, device='cpu', seed=0, n=4)
    with pytest.raises(runs.UserError, match='no usable checkpoint'):
        script.generate_from_run(args)
