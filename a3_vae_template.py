"""A variational autoencoder on binary MNIST (Kingma & Welling, ICLR 2014).

"Auto-Encoding Variational Bayes": the model draws z ~ N(0, I), and then 784 independent Bernoulli
pixels whose means a decoder computes from z. An encoder computes q(z|x) = N(mu, diag(sigma^2)).
Both are trained to maximise the evidence lower bound (ELBO):

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z)).

Hidden layers use ReLU, as the assignment asks; the paper's use tanh. README says which assignment
this is, and which course report (2019) `--protocol report` repeats.

    python a3_vae_template.py --zdim 20

It takes ten minutes on two cores of an AMD EPYC (Zen 3). Expected results are means over five
seeds; the weights evaluated are a moving average (`--ema_decay`). -log p(x) is estimated with 100
importance samples an image, from a Laplace approximation of its posterior:

    epoch 40     validation negative ELBO      98.95 nats
    epoch 100    validation negative ELBO      98.11 nats
                 test -log p(x)                91.04 nats
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import bmnist
from harness import (
    Curves,
    Run,
    RunConfig,
    WeightAverage,
    adam,
    captured,
    cli,
    latent,
    likelihood,
    sample_quality,
    separate_random_numbers,
)


# --- Settings
@dataclass
class Config(RunConfig):
    """A variational autoencoder on binary MNIST (Kingma & Welling, ICLR 2014)."""

    SCRIPT = "a3_vae_template.py"
    EXAMPLE = "python a3_vae_template.py --zdim 20 --seed 1"
    REPORT = {"ema_decay": 0.0}  # the report evaluated the weights in training

    zdim: int = 20  # dimensions of the latent space
    hidden_dim: int = 500  # units of each hidden layer
    # how grey pixels become bits; larochelle needs --data_dir
    binarize: Literal["static", "dynamic", "threshold", "larochelle"] = "static"

    epochs: int = 100  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 1e-3  # learning rate of Adam
    weight_decay: float = 0.0  # of AdamW: a step takes lr * weight_decay of each weight
    # decay per step of the moving average of the weights (EMA) that is evaluated; 0 for none
    ema_decay: float = 0.999

    # draws per image for the likelihood of the test split; 0 for none
    importance_samples: int = 100
    proposal: Literal["laplace", "encoder"] = "laplace"  # where these draws come from

    def __post_init__(self):
        super().__post_init__()
        for name in ("zdim", "hidden_dim", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, not {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and below 1, not {self.ema_decay}")
        for name in ("weight_decay", "importance_samples"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be at least 0, not {getattr(self, name)}")

    @property
    def name(self):
        """The name of the run folder: vae-z20-seed0, or with what is not the default."""
        choices = (self.data.name, self.binarize, self.protocol)
        others = [choice for choice in choices if choice not in ("mnist", "static", "standard")]
        return "-".join(["vae", *others, f"z{self.zdim}", f"seed{self.run.seed}"])


# --- Model
class Encoder(nn.Module):
    """q(z|x): images [batch, n_pixels] -> mean and log standard deviation, [batch, z_dim] each."""

    def __init__(self, hidden_dim=500, z_dim=20, n_pixels=784):
        super().__init__()
        self.hidden = nn.Linear(n_pixels, hidden_dim)
        self.mean = nn.Linear(hidden_dim, z_dim)
        self.log_std = nn.Linear(hidden_dim, z_dim)

    def forward(self, input):
        """Mean and log standard deviation of q(z|x)."""
        hidden = F.relu(self.hidden(input))
        return self.mean(hidden), self.log_std(hidden)


class Decoder(nn.Module):
    """p(x|z): latents [batch, z_dim] -> Bernoulli means [batch, n_pixels]."""

    def __init__(self, hidden_dim=500, z_dim=20, n_pixels=784):
        super().__init__()
        self.hidden = nn.Linear(z_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, n_pixels)

    def logits(self, z):
        """Log odds of the Bernoulli means, [batch, n_pixels].

        The likelihood is computed from these: in float32 the sigmoid rounds to 1 at a logit of
        about 17, and log(1 - 1) is -inf.
        """
        return self.output(F.relu(self.hidden(z)))

    def forward(self, z):
        """Bernoulli means."""
        return torch.sigmoid(self.logits(z))


class VAE(nn.Module):
    """Encoder and decoder with one hidden layer each, and a standard normal prior on z."""

    TERMS = ("neg_elbo", "recon", "kl")  # of the objective, in nats

    def __init__(self, hidden_dim=500, z_dim=20, n_pixels=784):
        super().__init__()
        self.z_dim = z_dim
        self.encoder = Encoder(hidden_dim, z_dim, n_pixels)
        self.decoder = Decoder(hidden_dim, z_dim, n_pixels)

    def terms(self, input):
        """Nats of binary images [batch, n_pixels] by TERMS, [batch] each; one z per image."""
        mean, log_std = self.encoder(input)
        eps = torch.randn_like(mean)  # new for every image and dimension
        z = mean + log_std.exp() * eps
        recon = neg_log_likelihood(self.decoder.logits(z), input)
        kl = kl_divergence(mean, log_std)
        return {"neg_elbo": recon + kl, "recon": recon, "kl": kl}

    def loss(self, terms):
        """What training minimises, given the `terms`: the negative ELBO, [batch]."""
        return terms["neg_elbo"]

    def forward(self, input):
        """Average negative ELBO of binary images [batch, n_pixels], in nats: a scalar."""
        return self.terms(input)["neg_elbo"].mean()

    def validate(self, data, optimizer):
        """Nats by TERMS, averaged over a split. Only `ReportVAE` uses the `optimizer`."""
        return evaluate(self, data)

    def hidden_layers(self):
        """The layers before the ReLUs."""
        return [self.encoder.hidden, self.decoder.hidden]

    @torch.no_grad()
    def sample(self, n_samples):
        """Draw from the model: (binary images, their Bernoulli means), [n, n_pixels] each."""
        device = next(self.parameters()).device
        z = torch.randn(n_samples, self.z_dim, device=device)
        means = self.decoder(z)
        return torch.bernoulli(means), means


# --- Objective
def neg_log_likelihood(logits, input):
    """-log p(x|z) in nats, [batch]: -sum_i [x_i log m_i + (1 - x_i) log(1 - m_i)].

    The means m are sigmoid(logits).
    """
    return F.binary_cross_entropy_with_logits(logits, input, reduction="none").sum(dim=1)


def kl_divergence(mean, log_std):
    """KL(N(mu, diag(sigma^2)) || N(0, I)) in nats, [batch].

    It is 1/2 sum(sigma^2 + mu^2 - log sigma^2 - 1) (Kingma & Welling 2014, Appendix B). Our encoder
    returns log sigma; the paper's returns log sigma^2.
    """
    return 0.5 * (torch.exp(2 * log_std) + mean.square() - 2 * log_std - 1).sum(dim=1)


# --- Training
def train_step(model, optimizer, batch):
    """One optimiser step on binary images [batch, n_pixels]; returns sums of terms, [n_terms]."""
    terms = model.terms(batch)
    optimizer.zero_grad()
    model.loss(terms).mean().backward()
    optimizer.step()
    return torch.stack(list(terms.values())).detach().sum(dim=1)


@torch.no_grad()
def evaluation_step(model, batch):
    """Sums of the terms over binary images [batch, n_pixels]: [n_terms]."""
    return torch.stack(list(model.terms(batch).values())).sum(dim=1)


def epoch_iter(model, data, optimizer=None, average=None):
    """One pass over batches of binary images: nats by `model.TERMS`, averaged over all images.

    A model in training mode is trained, and an `average` of its weights updated after every step;
    otherwise `optimizer` may be None.
    """
    if model.training:
        step = captured(train_step, model, optimizer)  # on a CPU just the call
    else:
        step = captured(evaluation_step, model)
    sums, n_images = [], 0
    for batch in data:
        sums.append(step(batch))  # stays on the device
        n_images += len(batch)
        if model.training and average is not None:
            average.update()
    return tuple((torch.stack(sums).cpu().double().sum(dim=0) / n_images).tolist())


def run_epoch(model, data, optimizer, average=None):
    """The assignment's function: train on data[0], then validate on data[1]."""
    train, val = data
    train_nats = epoch_iter(model.train(), train, optimizer, average)
    validated = model if average is None else average.model
    return train_nats, validated.validate(val, optimizer)


# --- The report's computation
class ReportVAE(VAE):
    """The VAE as the course report (2019) trained and counted it, for `--protocol report`.

    Its KL is 1/2 sum(sigma + mu^2 - log sigma - 1), with sigma where sigma^2 belongs, so that its
    objective is no bound. Its validation pass takes optimiser steps, so it trains on the validation
    images.
    """

    TERMS = (*VAE.TERMS, "report")

    def terms(self, input):
        """Nats of binary images [batch, n_pixels] by TERMS, [batch] each."""
        terms = super().terms(input)
        mean, log_std = self.encoder(input)
        wrong_kl = 0.5 * (torch.exp(log_std) + mean.square() - log_std - 1).sum(dim=1)
        return terms | {"report": terms["recon"] + wrong_kl}

    def loss(self, terms):
        """What the report minimised, [batch]."""
        return terms["report"]

    def validate(self, data, optimizer):
        """Nats by TERMS, averaged over the images of a split while the model trains on them."""
        return epoch_iter(self.train(), data, optimizer)


# --- Evaluation
def evaluate(model, data, seed=0):
    """Nats by `model.TERMS` of a whole split; weights and the run's random numbers don't change."""
    with separate_random_numbers(seed):
        return epoch_iter(model.eval(), data)


def test_results(config, model, test):
    """Results of a trained model on the test split: dicts of numbers, by name."""
    images = test.images.float()
    nats = dict(zip(model.TERMS, evaluate(model, test)))
    results = {"test": {f"{term}_nats": nats[term] for term in VAE.TERMS}}  # no report's number
    with separate_random_numbers(config.run.seed), torch.no_grad():
        results["latent"] = latent.measures(*model.encoder(images))
        if n := config.importance_samples:
            estimate = likelihood.of_decoder(
                model.decoder, model.encoder, images, n, config.proposal
            )
            gap = nats["neg_elbo"] - estimate["neg_log_px_nats"]
            results["likelihood"] = estimate | {"encoder_gap_nats": gap}
    if n := config.quality_samples:
        with separate_random_numbers(config.run.seed):
            draws, means = model.sample(n)
        real = config.data
        if config.binarize == "larochelle":  # data_dir has his bits, and perhaps no grey images
            real = replace(real, data_dir=None)
        results["quality_of_means"] = sample_quality.measure(means, real)
        results["quality_of_draws"] = sample_quality.measure(draws, real, config.binarize)
    return results


# --- Pictures
CURVES = Curves(
    "elbo",
    "negative ELBO (nats per image)",
    {
        "train_neg_elbo_nats": "training",
        "val_neg_elbo_nats": "validation",
        "val_report_nats": "validation as the report counts (no bound)",
    },
)


@torch.no_grad()
def manifold(model, n=20):
    """Bernoulli means on an n x n grid of quantiles of a 2-dimensional prior: [n * n, n_pixels]."""
    device = next(model.parameters()).device
    return model.decoder(latent.quantile_grid(n).to(device))


def save_pictures(run, model, epoch):
    """Write 100 samples, and the manifold if z has 2 dimensions.

    Bernoulli means are on the left, draws from them on the right; both are the same at every epoch.
    """
    with separate_random_numbers(run.config.run.seed):
        draws, means = model.sample(100)
    run.save_grid(f"samples_{epoch:03d}", {"means": means, "draws": draws}, f"epoch {epoch}")
    if model.z_dim == 2:
        caption = f"epoch {epoch}: z1 left to right, z2 bottom to top"
        run.save_grid(f"manifold_{epoch:03d}", {"means": manifold(model)}, caption)


def save_elbo_plot(train_curve, val_curve, filename):
    """The assignment's function: write both curves, nats by epoch, to a PNG and a PDF."""
    CURVES.save(filename, train_neg_elbo_nats=train_curve, val_neg_elbo_nats=val_curve)


# --- Main
def main(config):
    """Train a VAE, or continue or evaluate an earlier run, and grade it."""
    with Run(config, CURVES.of_averaged_weights(config.ema_decay)) as run:
        train, val, test = bmnist(config.data, config.batch_size, run.device, config.binarize)
        kind = ReportVAE if config.protocol == "report" else VAE
        model = kind(config.hidden_dim, config.zdim, config.n_pixels).to(run.device)
        optimizer = adam(model, config.lr, config.weight_decay)
        average = WeightAverage(model, config.ema_decay)
        run.start_or_resume(model=model, average=average, optimizer=optimizer)
        if run.count == 0:
            save_pictures(run, average.model, 0)

        for epoch in run.remaining(config.epochs):
            train_nats = epoch_iter(model.train(), run.progress(train), optimizer, average)
            evaluated = average.model
            val_nats = evaluated.validate(val, optimizer)
            run.log(
                epoch=epoch,
                train_neg_elbo_nats=train_nats[0],
                **{f"val_{term}_nats": nats for term, nats in zip(model.TERMS, val_nats)},
                dead_units=run.dead_units(evaluated, evaluated.hidden_layers(), val),
                lr=float(optimizer.param_groups[0]["lr"]),
            )
            if epoch in (1, 5, 10, config.epochs) or epoch % 20 == 0:
                save_pictures(run, average.model, epoch)
            run.checkpoint()

        run.finish(test_results(config, average.model, test), average.model)


def load_model(run_folder):
    """The trained VAE of a finished run, in evaluation mode on the CPU."""
    config = Config.of(run_folder)

    def make():
        return VAE(config.hidden_dim, config.zdim, config.n_pixels)

    return config.load_weights(run_folder, make)


if __name__ == "__main__":
    cli.run(main, Config.parse)
