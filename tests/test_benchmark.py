"""The plain loop of the benchmark does the same work as ours, and learns the same thing."""

import itertools

import pytest
import torch

import a3_nf_template as nf
from datasets import mnist, random_shift
from tests import benchmark, plain


@pytest.fixture(scope="module")
def images():
    return mnist()[1].images[:640]


def test_plain_images_are_ours(images):
    batch, _ = next(iter(plain.loader(images, 64, [plain.to_tensor], shuffle=False)))
    assert torch.allclose(255 * batch.view(64, 784), images[:64].float())
    batch, _ = next(
        iter(plain.loader(images, 64, [plain.to_tensor, plain.normalize], shuffle=False))
    )
    assert torch.allclose(batch.view(64, 784), images[:64] / 127.5 - 1, atol=1e-6)


def test_plain_shifts_are_ours(images):
    torch.manual_seed(0)
    dataset = plain.ImageDataset(images[:3], [plain.random_affine, plain.to_tensor])
    for index in range(3):
        shifts = {
            tuple(dataset[index][0].mul(255).round().byte().flatten().tolist()) for _ in range(120)
        }
        assert shifts == {
            tuple(row) for row in random_shift(images[index].expand(200, -1), 1).tolist()
        }


def test_plain_flow_has_our_likelihood(images):
    batch = images[:32].float()
    model, step = nf.Model([784]), plain.nf_step()
    torch.manual_seed(1)
    loss = step(batch / 255)
    torch.manual_seed(1)
    assert loss == pytest.approx(-model(batch).mean().item(), rel=1e-4)


@pytest.mark.parametrize("make_step", [plain.vae_step, plain.nf_step])
def test_plain_steps_learn(images, make_step):
    torch.manual_seed(0)
    step = make_step()
    batch = (
        (images[:64] > 127).float() if make_step is plain.vae_step else images[:64].float() / 255
    )
    losses = [step(batch) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_plain_gan_steps(images):
    torch.manual_seed(0)
    step = plain.gan_step()
    losses = [step(images[i : i + 64] / 127.5 - 1) for i in range(0, 640, 64)]
    assert losses[-1][1] < losses[0][1]


@pytest.fixture
def trainees():
    device = torch.device("cpu")
    with (
        benchmark.Trainee(benchmark.ours_vae, device) as ours,
        benchmark.Trainee(benchmark.plain_vae, device, 0) as theirs,
    ):
        yield ours, theirs


def test_trainees_take_turns(trainees):
    ours, theirs = trainees
    assert all(
        0 < ms < 10_000
        for ms in benchmark.compare([(theirs, "step", 2), (ours, "step", 3)], rounds=1)
    )
    assert 100 < ours.ask("memory") < 3000


def test_gflop_per_step():
    # The forward pass, twice that for the backward pass, less the gradient towards the images.
    forward = 2 * 128 * (784 * 500 + 500 * 40 + 20 * 500 + 500 * 784)
    eager = benchmark.ours_vae(torch.device("cpu"))["eager"]
    assert benchmark.gflop(lambda: eager(1)) == pytest.approx(
        (3 * forward - 2 * 128 * 784 * 500) / 1e9
    )


def test_endless():
    assert list(itertools.islice(benchmark.endless([1, 2]), 5)) == [1, 2, 1, 2, 1]
