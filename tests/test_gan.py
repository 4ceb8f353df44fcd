"""The GAN: losses by hand and by optimisation, who moves in a step, what a run writes and when."""

import itertools
import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

import a3_gan_template as script
from a3_gan_template import Discriminator, Generator
from datasets import Stream
from harness import records, separate_random_numbers
from harness.errors import UsageError
from harness.references import rows
from tests.run_states import state_of, unchanged

parse = script.Config.parse


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Generator(), Discriminator()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return 2 * torch.rand(16, 784) - 1


def sgd(model, lr=1.0):
    return torch.optim.SGD(model.parameters(), lr)


def step(networks, images, g_lr=1.0, d_lr=1.0, labels=(0.9, 0.0)):
    """The averages of one training step: g_loss, d_loss, d_real, d_fake."""
    generator, discriminator = networks
    optimizers = sgd(generator, g_lr), sgd(discriminator, d_lr)
    return script.train_step(generator, discriminator, optimizers, labels, images)


def test_shapes_and_ranges(networks):
    generator, discriminator = networks
    images = generator(torch.randn(8, 100))
    assert images.shape == (8, 784) and images.abs().max() <= 1
    probabilities = discriminator(images)
    assert probabilities.shape == (8, 1) and probabilities.min() > 0 and probabilities.max() < 1
    assert torch.allclose(torch.sigmoid(discriminator.logits(images))[:, None], probabilities)


def test_the_report_s_sizes(networks):
    def linear_sizes(model):
        return [
            (layer.in_features, layer.out_features)
            for layer in model.layers
            if isinstance(layer, torch.nn.Linear)
        ]

    generator, discriminator = networks
    assert linear_sizes(generator) == [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert [
        layer.num_features for layer in generator.layers if isinstance(layer, torch.nn.BatchNorm1d)
    ] == [256, 512, 1024]
    assert linear_sizes(discriminator) == [(784, 512), (512, 256), (256, 1)]
    assert {
        layer.negative_slope
        for model in networks
        for layer in model.layers
        if isinstance(layer, torch.nn.LeakyReLU)
    } == {0.2}


@pytest.mark.parametrize("real_label, fake_label", [(0.9, 0.0), (0.9, 0.1), (1.0, 0.0)])
def test_losses_against_probabilities(real_label, fake_label):
    torch.manual_seed(0)
    real, fake = torch.randn(9, dtype=torch.double), torch.randn(9, dtype=torch.double)
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    expected = (
        -real_label * d_real.log()
        - (1 - real_label) * (1 - d_real).log()
        - fake_label * d_fake.log()
        - (1 - fake_label) * (1 - d_fake).log()
    )
    assert torch.allclose(script.discriminator_loss(real, fake, real_label, fake_label), expected)
    assert torch.allclose(
        script.generator_loss(fake),
        F.binary_cross_entropy(d_fake, torch.ones_like(fake), reduction="none"),
    )


def test_losses_of_saturated_logits():
    assert script.generator_loss(torch.tensor([-300.0])).item() == 300.0
    assert (
        script.discriminator_loss(torch.tensor([300.0]), torch.tensor([300.0]), 1.0, 0.0).item()
        == 300.0
    )


@pytest.mark.parametrize(
    "real_label, fake_label, expected",
    [
        (0.9, 0.0, (0.45, 0.80, 1.38)),
        (0.9, 0.1, (0.50, 0.69, 1.39)),
        (1.0, 0.0, (0.50, 0.69, math.log(4))),
    ],
)
def test_equilibrium_is_the_best_discriminator_of_equal_densities(real_label, fake_label, expected):
    def loss(logit):
        logits = torch.tensor([logit], dtype=torch.double)
        return script.discriminator_loss(logits, logits, real_label, fake_label).item()

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    d, g_loss, d_loss = script.equilibrium(real_label, fake_label)
    assert d == pytest.approx(1 / (1 + math.exp(-best.x)), abs=1e-6)
    assert d_loss == pytest.approx(best.fun, abs=1e-9)
    assert g_loss == pytest.approx(
        script.generator_loss(torch.tensor([best.x], dtype=torch.double)).item(), abs=1e-6
    )
    assert (d, g_loss, d_loss) == pytest.approx(expected, abs=0.01)


def test_each_network_descends_its_own_loss_and_nothing_else(networks, images):
    """D's gradient is that of its loss on the detached images; G's that of its loss through the
    new D. Both are computed again here from the same latents."""
    generator, discriminator = networks
    before = [[value.clone() for value in model.parameters()] for model in networks]
    torch.manual_seed(2)
    step(networks, images, g_lr=0.5, d_lr=0.1)
    torch.manual_seed(0)
    old_g, new_d = Generator(), Discriminator()
    torch.manual_seed(2)
    fake = old_g(torch.randn(16, 100))
    d_loss = F.binary_cross_entropy(new_d(images), torch.full((16, 1), 0.9))
    d_loss = d_loss + F.binary_cross_entropy(new_d(fake.detach()), torch.zeros(16, 1))
    gradients = torch.autograd.grad(d_loss, list(new_d.parameters()))
    with torch.no_grad():
        for value, gradient in zip(new_d.parameters(), gradients):
            value -= 0.1 * gradient
    for value, expected, old in zip(discriminator.parameters(), new_d.parameters(), before[1]):
        assert torch.allclose(value, expected, atol=1e-6) and not torch.equal(value, old)
    g_loss = F.binary_cross_entropy(new_d(fake), torch.ones(16, 1))
    gradients = torch.autograd.grad(g_loss, list(old_g.parameters()))
    for value, gradient, old in zip(generator.parameters(), gradients, before[0]):
        assert torch.allclose(value, old - 0.5 * gradient, atol=1e-6)
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_a_step_reports_losses_and_probabilities_from_before_each_update(networks, images):
    torch.manual_seed(2)
    g_loss, d_loss, d_real, d_fake = step(networks, images, g_lr=0.0, d_lr=0.0)
    generator, discriminator = networks
    torch.manual_seed(2)
    logits_fake = discriminator.logits(generator(torch.randn(16, 100)))
    logits_real = discriminator.logits(images)
    assert g_loss.item() == pytest.approx(F.softplus(-logits_fake).mean().item(), rel=1e-5)
    expected = script.discriminator_loss(logits_real, logits_fake).mean().item()
    assert d_loss.item() == pytest.approx(expected, rel=1e-5)
    assert d_real.item() == pytest.approx(torch.sigmoid(logits_real).mean().item(), rel=1e-5)
    assert d_fake.item() == pytest.approx(torch.sigmoid(logits_fake).mean().item(), rel=1e-5)


def test_statistics_move_once_a_step(networks, images):
    generator, _ = networks
    passes = []
    generator.register_forward_hook(lambda *_: passes.append(1))
    step(networks, images)
    assert len(passes) == 1
    counters = [layer for layer in generator.layers if isinstance(layer, torch.nn.BatchNorm1d)]
    assert {layer.num_batches_tracked.item() for layer in counters} == {1}


def test_noise_is_new_in_every_step(networks, images):
    generator, seen = networks[0], []
    generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(2):
        step(networks, images)
    assert len(torch.cat(seen).unique()) == 2 * 16 * 100


@pytest.mark.thorough
def test_lines_and_pictures_are_of_exactly_the_batches_they_name(tmp_path, monkeypatch, images):
    grey = (images + 1).mul(127.5).byte().repeat(8, 1)  # 10 batches of 12, and 8 images over
    splits = [Namespace(images=rows) for rows in (grey[:64], grey[64:], grey)]
    monkeypatch.setattr(script, "mnist", lambda *_: splits)
    monkeypatch.setattr(script, "PICTURES", (1, 7))
    monkeypatch.setattr(script, "PICTURE_EVERY", 4)
    monkeypatch.setattr(script, "save_final_pictures", lambda *_: None)
    monkeypatch.setattr(script, "test_results", lambda *_: {})
    pictures = {}

    def save_grid(run, name, panels, caption):
        pictures[name] = next(iter(panels.values()))

    monkeypatch.setattr(script.Run, "save_grid", save_grid)
    words = "--device cpu --n_epochs 1 --batch_size 12 --save_interval 3 --out"
    script.main(parse([*words.split(), str(tmp_path / "run")]))

    torch.manual_seed(0)
    networks = Generator(), Discriminator()
    optimizers = [torch.optim.Adam(model.parameters(), lr=2e-4, fused=True) for model in networks]
    with separate_random_numbers(0):
        fixed_latents = torch.randn(25, 100)
    lines, averages, expected_pictures = [], [], {}
    for batch, real in enumerate(itertools.islice(Stream(grey, 12), 10), start=1):
        averages.append(script.train_step(*networks, optimizers, (0.9, 0.0), real / 127.5 - 1))
        if batch in (3, 6, 9, 10):
            lines.append([batch, *torch.stack(averages).mean(dim=0).tolist()])
            averages = []
        if batch in (1, 4, 7, 8, 10):
            image = script.generate(networks[0], fixed_latents)
            expected_pictures[f"samples_{batch:06d}"] = image
    written = records.read_metrics(tmp_path / "run")
    assert [[line[key] for key in ("batch", *script.METRICS)] for line in written] == lines
    assert pictures.keys() == expected_pictures.keys()
    assert all(torch.equal(pictures[name], images) for name, images in expected_pictures.items())


def test_the_number_of_batches_is_the_report_s():
    batches = Stream(torch.zeros(60_000, 1, dtype=torch.uint8), 64)
    n_batches = 200 * batches.n_images / batches.batch_size
    assert {row.after for row in rows(script.Config.SCRIPT, {"protocol": "report"})} == {n_batches}
    assert {len(batch) for batch in itertools.islice(batches, 1875)} == {64}
    assert len(batches.order) == 0  # 1,875 batches are two passes exactly


def test_generate_uses_and_keeps_the_statistics(networks):
    generator, _ = networks
    generator(torch.randn(50, 100))
    before, z = state_of(generator), torch.randn(10, 100)
    images = script.generate(generator, z)
    assert generator.training and unchanged(generator, before)
    assert images.min() >= 0 and images.max() <= 1
    # An image does not depend on the others of its batch.
    assert torch.allclose(images[:3], script.generate(generator, z[:3]), atol=1e-6)


def test_the_settings_have_the_course_s_names_and_bounds():
    config = parse([])
    assert (config.latent_dim, config.real_label, config.fake_label) == (100, 0.9, 0.0)
    assert config.name == "gan-seed0"
    report = parse(["--protocol", "report", "--dataset", "fashion"])
    assert (report.name, report.fake_label) == ("gan-fashion-report-seed0", 0.1)
    for words, named in (
        ("--batch_size 1", "--batch_size"),
        ("--batch_size 60001", "--batch_size"),
        ("--fake_label 0.9", "--fake_label"),
        ("--real_label 1.1", "--real_label"),
        ("--save_interval 0", "--save_interval"),
        ("--lr inf", "--lr"),
    ):
        with pytest.raises(UsageError, match=named):
            parse(words.split())


def test_the_loss_plot_shows_the_equilibrium(tmp_path):
    levels = [y for y, _ in script.loss_curves(0.9, 0.1).levels]
    assert levels == list(script.equilibrium(0.9, 0.1)[1:])
    script.save_loss_plot([1.0, 1.1], [1.3, 1.2], tmp_path / "loss.png")
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "loss.pdf"}


@pytest.mark.parametrize("real, fake", [(0.5, 0.5), (0, 1), (0, 0), (1, 1), (0.9, -0.1), (1.1, 0)])
def test_labels_that_are_equal_swapped_or_out_of_bounds_are_refused(real, fake):
    words = [f"--real_label={real}", f"--fake_label={fake}"]
    with pytest.raises(UsageError, match="--fake_label must be below --real_label, both from 0"):
        parse(words)
