"""Steps on the meta device: one that mixes devices or reads a value on the host raises there."""

import itertools

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import BINARIZATIONS, N_PIXELS, Stream, bmnist, mnist
from harness.average import WeightAverage
from harness.laplace import laplace_weights
from harness.steps import captured

META = torch.device("meta")


def adam(model):
    """Adam as `steps.adam` makes it, but for the fused kernel, which the meta device lacks."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def first_two(batches):
    return list(itertools.islice(batches, 2))


def train_and_evaluate(train, evaluation_step, model, train_data, val_data):
    """Two steps of each, as `epoch_iter` makes them up to its one wait for the device."""
    average = WeightAverage(model, decay=0.9, every=1)
    results = []
    for batch in first_two(train_data):
        results.append(train(batch))
        average.update()
    evaluate = captured(evaluation_step, average.model)
    return results + [evaluate(batch) for batch in first_two(val_data)]


@pytest.mark.parametrize("kind", [vae.VAE, vae.ReportVAE])
@pytest.mark.parametrize("binarize", [name for name in BINARIZATIONS if name != "larochelle"])
def test_the_vae_s_steps_read_no_value(binarize, kind):
    train, val, _ = bmnist(device=META, binarize=binarize)
    model = kind().to(META)
    step = captured(vae.train_step, model, adam(model))
    results = train_and_evaluate(step, vae.evaluation_step, model, train, val)
    assert all(result.device == META for result in results)
    draw = laplace_weights(model.decoder, model.encoder)(next(iter(val)))
    log_weights = draw(3)
    assert log_weights.device == META and log_weights.shape == (128, 3)


def test_the_flow_s_steps_read_no_value():
    train, val, _ = mnist(device=META, max_shift=nf.MAX_SHIFT)
    model = nf.Model([N_PIXELS], n_flows=2, n_hidden=8).to(META)
    step = captured(nf.train_step, model, adam(model), 5.0)
    results = train_and_evaluate(step, nf.evaluation_step, model, train, nf.shift(val))
    assert all(result.device == META and result.shape == () for result in results)
    assert model.sample(3).device == META


def test_the_gan_s_step_reads_no_value():
    images = mnist(device=META)[0].images
    generator, discriminator = gan.Generator().to(META), gan.Discriminator().to(META)
    optimizers = adam(generator), adam(discriminator)
    step = captured(gan.train_step, generator, discriminator, optimizers, (0.9, 0.0))
    for grey in first_two(Stream(images, 64)):
        losses = step(grey / 127.5 - 1)
        assert losses.device == META and losses.shape == (len(gan.METRICS),)
    drawn = gan.generate(generator, gan.sample_latents(5, generator.latent_dim, META))
    assert drawn.device == META


@pytest.mark.parametrize(
    "step",
    [
        lambda model, batch: model(batch).sum() * torch.ones(1),
        lambda model, batch: model(batch + torch.rand(batch.shape)).sum(),
        lambda model, batch: model(batch).sum() / model(batch).max().item(),
        lambda model, batch: batch if model(batch).sum() > 0 else -batch,
    ],
    ids=["mixes results", "mixes batches", "reads a value", "branches on a value"],
)
def test_the_meta_device_refuses_a_step_that_waits_or_mixes_devices(step):
    model = torch.nn.Linear(N_PIXELS, 1, device=META)
    batches = mnist(device=META)[1]
    with pytest.raises((RuntimeError, NotImplementedError)):
        step = captured(step, model)
        torch.stack([step(batch) for batch in first_two(batches)]).cpu()
