"""RealNVP on MNIST (Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", ICLR 2017).

The assignment's flow has one scale and MLPs in its couplings; the paper's has several scales,
convolutions and batch normalisation. The flow maps an image, made continuous and unbounded, to a
latent z ~ N(0, I) by a composition f of couplings (the paper's f; sampling inverts it). For an
image x of D = 784 integers in 0..255:

    y = x + u, u uniform on [0, 1)^D:    log P(x) >= E_u log p(y)
    v = y / 256:                         log p(y) = log p(v) - D log 256
    w = (1 - alpha) v + alpha / 2:       log p(v) = log p(w) + D log(1 - alpha)
    l = logit(w):                        log p(w) = log p(l) - sum log(w (1 - w))
    z = f(l):                            log p(l) = log N(z; 0, I) + log |det df / dl|

The assignment squeezes symmetrically, with alpha = 1e-5; the paper uses alpha + (1 - alpha) v, with
alpha = 0.05. Bits per dimension are -log p(y) / (D log 2), with one draw of u per image: on average
no less than those of P(x).

    python a3_nf_template.py

It takes 2.5 hours on two cores of an AMD EPYC (Zen 3). Expected bits per dimension, means of three
seeds, of a moving average of the weights (`--ema_decay`), on validation images shifted at random by
up to one pixel, as in the course report (2019, see README):

    epoch      1       10      40      100
             2.251   1.791   1.704   1.649

The learning rate falls over all epochs, so a run with fewer `--epochs` has another curve.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import mnist, random_shift
from harness import (
    Curves,
    Run,
    RunConfig,
    WeightAverage,
    adam,
    captured,
    cli,
    likelihood,
    sample_quality,
    separate_random_numbers,
)

ALPHA = 1e-5  # keeps w inside (0, 1): v is 0 at black if u is, and 1 if x + u is rounded to 256
MAX_SHIFT = 1  # pixels: the report's 5% of 28 pixels is 1.4, and shifts are of whole pixels


# --- Settings
@dataclass
class Config(RunConfig):
    """RealNVP on MNIST (Dinh, Sohl-Dickstein & Bengio, ICLR 2017)."""

    NAME = "nf"
    SCRIPT = "a3_nf_template.py"
    EXAMPLE = "python a3_nf_template.py --epochs 40 --seed 1"
    REPORT = {
        "lr": 1e-3,
        "first_lr_factor": 1.0,
        "warmup": 0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "adam_eps": 1e-8,
        "ema_decay": 0.0,  # the report evaluated the weights in training
    }

    n_flows: int = 4  # pairs of couplings
    n_hidden: int = 1024  # units of each hidden layer of a coupling

    epochs: int = 100  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 4e-4  # learning rate of Adam, before warm-up and schedule
    # factor on lr for the hidden layers of the first coupling, which reads logits, mostly near -6:
    # a step of Adam moves its units far
    first_lr_factor: float = 0.02
    warmup: int = 1000  # steps of linear warm-up; before a cosine at most a tenth of all steps
    # cosine: the learning rate falls to zero over all epochs, so epochs cannot grow later
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.3  # of AdamW: a step shrinks each weight by this times its rate
    # far above Adam's usual 1e-8: units that fire for few images have small gradients, and now
    # take smaller steps
    adam_eps: float = 1e-4
    max_norm: float = 5.0  # the gradient is clipped at this norm
    # decay per step of the moving average of the weights (EMA) that is evaluated; 0 for none
    ema_decay: float = 0.999

    # draws of the noise per image for the likelihood of the test split; 0 for none
    importance_samples: int = 32

    def __post_init__(self):
        super().__post_init__()
        for name in ("n_flows", "n_hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "first_lr_factor", "adam_eps", "max_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a positive number, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "importance_samples"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and below 1, not {self.ema_decay}")

    @property
    def may_grow(self):
        """Whether a run may go on for more epochs: a cosine ends at the last one."""
        return self.schedule == "constant"


# --- Model
def log_prior(x):
    """log N(x; 0, I) of each row of x, in nats: [batch]."""
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(dim=1)


def sample_prior(size, device=None):
    """Draws from N(0, I), of the given size."""
    return torch.randn(size, device=device)


def get_mask(height=28, width=28):
    """A checkerboard, [1, height * width]: 1 where row + column is even."""
    steps = torch.arange(max(height, width))
    board = (steps[:, None] + steps + 1) % 2
    return board[:height, :width].float().reshape(1, height * width)


class Coupling(nn.Module):
    """Affine coupling: keeps pixels where mask [1, n_pixels] is 1, scales and shifts the others.

    Dinh et al. 2017, Equations 4 to 9. The network reads only the kept pixels and computes only
    the changed ones. Its last layer starts at zero, so a new coupling is the identity. A network
    of your own must be an nn.Sequential, too, with a last module that computes both heads:
    `parameter_groups` gives the modules before it a rate. `c_in` is the assignment's name for the
    number of pixels.
    """

    def __init__(self, c_in, mask, n_hidden=1024):
        super().__init__()
        mask = mask.view(c_in)
        self.register_buffer("kept", torch.nonzero(mask == 1).flatten(), persistent=False)
        self.register_buffer("changed", torch.nonzero(mask == 0).flatten(), persistent=False)
        self.nn = nn.Sequential(
            nn.Linear(len(self.kept), n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, n_hidden),
            nn.ReLU(),
            nn.Linear(n_hidden, 2 * len(self.changed)),  # log-scale head, translation head
        )
        nn.init.zeros_(self.nn[-1].weight)
        nn.init.zeros_(self.nn[-1].bias)

    def forward(self, z, ldj, reverse=False):
        """z [batch, n_pixels] mapped, and `ldj` [batch] with this layer's log |det Jacobian| added.

        With `reverse` it applies the inverse.
        """
        raw_scale, translation = self.nn(z.index_select(1, self.kept)).chunk(2, dim=1)
        # The assignment's bound on the scale; the paper multiplies it by a learned factor.
        log_scale = torch.tanh(raw_scale)
        changed = z.index_select(1, self.changed)
        if reverse:
            changed = (changed - translation) * torch.exp(-log_scale)
            ldj = ldj - log_scale.sum(dim=1)
        else:
            changed = changed * torch.exp(log_scale) + translation
            ldj = ldj + log_scale.sum(dim=1)
        return z.index_copy(1, self.changed, changed), ldj


class Flow(nn.Module):
    """`n_flows` pairs of couplings, a mask and its complement, on images [n_pixels] = `shape`."""

    def __init__(self, shape, n_flows=4, n_hidden=1024, mask=None):
        super().__init__()
        (c_in,) = shape
        mask = get_mask() if mask is None else mask
        self.z_shape = (c_in,)
        couplings = []
        for _ in range(n_flows):
            couplings += [Coupling(c_in, mask, n_hidden), Coupling(c_in, 1 - mask, n_hidden)]
        self.layers = nn.ModuleList(couplings)

    def forward(self, z, ldj, reverse=False):
        """(z, ldj) through all couplings, for z [batch, n_pixels] and `ldj` [batch].

        With `reverse` it applies the inverse.
        """
        for layer in self.layers[::-1] if reverse else self.layers:
            z, ldj = layer(z, ldj, reverse)
        return z, ldj


class Model(nn.Module):
    """A flow on images 0..n_bins - 1, [n_pixels] = `shape`: dequantisation, logit, couplings.

    `mask` is [1, n_pixels]; by default it is the checkerboard of 28 x 28 pixels.
    """

    def __init__(self, shape, n_flows=4, n_hidden=1024, n_bins=256, mask=None):
        super().__init__()
        self.n_bins = n_bins
        self.flow = Flow(shape, n_flows, n_hidden, mask)

    def dequantize(self, z):
        """Integers plus uniform noise on [0, 1), new for every pixel of every image."""
        return z + torch.rand_like(z)

    def logit_normalize(self, z, ldj, reverse=False):
        """From [0, n_bins] to the real line: scale, squeeze by alpha, logit; or the inverse."""
        per_pixel = math.log(1 - ALPHA) - math.log(self.n_bins)
        if reverse:
            ldj = ldj - (per_pixel - F.logsigmoid(z) - F.logsigmoid(-z)).sum(dim=1)
            return (torch.sigmoid(z) - ALPHA / 2) / (1 - ALPHA) * self.n_bins, ldj
        z = z / self.n_bins * (1 - ALPHA) + ALPHA / 2
        log_z, log_1_minus_z = torch.log(z), torch.log1p(-z)
        ldj = ldj + (per_pixel - log_z - log_1_minus_z).sum(dim=1)
        return log_z - log_1_minus_z, ldj

    def forward(self, input):
        """log p(x + u) of integer images [batch, n_pixels] in nats, with new noise u: [batch]."""
        z, ldj = self.logit_normalize(self.dequantize(input), input.new_zeros(len(input)))
        z, ldj = self.flow(z, ldj)
        return log_prior(z) + ldj

    def hidden_layers(self):
        """The layer before each ReLU, coupling by coupling; ReLUs inside a block are not seen."""
        layers = [layer for coupling in self.flow.layers for layer in coupling.nn.children()]
        return [one for one, next_one in zip(layers, layers[1:]) if isinstance(next_one, nn.ReLU)]

    @torch.no_grad()
    def sample(self, n_samples, temperature=1.0):
        """Draw integer images [n_samples, n_pixels]; the prior has deviation `temperature`."""
        z = temperature * sample_prior(
            (n_samples, *self.flow.z_shape), next(self.parameters()).device
        )
        z, ldj = self.flow(z, z.new_zeros(n_samples), reverse=True)
        z, _ = self.logit_normalize(z, ldj, reverse=True)
        return z.floor().clamp(0, self.n_bins - 1)


def build(config):
    """The model of some settings, for images of the data's size."""
    mask = get_mask(*config.image_shape)
    return Model([config.n_pixels], config.n_flows, config.n_hidden, mask=mask)


# --- Objective
def bits_per_dimension(log_px_nats, n_dimensions):
    """-log p(x + u) / (D log 2), elementwise, of log p(x + u) in nats."""
    return -log_px_nats / (n_dimensions * math.log(2))


# --- Training
def parameter_groups(model, lr, first_lr_factor=1.0):
    """All weights for an optimiser; the first coupling's hidden layers have a rate of their own."""
    first = dict.fromkeys(model.flow.layers[0].nn[:-1].parameters())
    others = [parameter for parameter in model.parameters() if parameter not in first]
    return [{"params": others}, {"params": list(first), "lr": lr * first_lr_factor}]


def learning_rates(optimizer, n_steps, warmup=0, schedule="constant"):
    """A scheduler: linear warm-up, times half a cosine over all `n_steps` steps.

    The cosine reaches zero after the last one (Loshchilov & Hutter, "SGDR", ICLR 2017, without
    restarts); the warm-up before it takes at most a tenth of the steps. With the schedule
    "constant" there is the warm-up alone, the same for any `n_steps`, so a run may grow.
    """
    if schedule == "cosine":
        warmup = min(warmup, n_steps // 10)

    def factor(step):
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        fall = 0.5 + 0.5 * math.cos(math.pi * step / n_steps) if schedule == "cosine" else 1.0
        return rise * fall

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_step(model, optimizer, max_norm, batch):
    """One optimiser step on grey images [batch, n_pixels]: the sum of log p(x + u) in nats."""
    log_px_nats = model(batch)
    optimizer.zero_grad()
    (-log_px_nats.mean()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return log_px_nats.detach().sum()


@torch.no_grad()
def evaluation_step(model, batch):
    """The sum of log p(x + u) over grey images [batch, n_pixels] in nats, a scalar."""
    return model(batch).sum()


def epoch_iter(model, data, optimizer=None, average=None, max_norm=5.0, scheduler=None):
    """Bits per dimension of batches of images [batch, n_pixels], averaged over all images.

    A model in training mode is trained; after every step an `average` of its weights is updated
    and a `scheduler` sets the next learning rate. Otherwise `optimizer` may be None.
    """
    if model.training:
        step = captured(train_step, model, optimizer, max_norm)  # on a CPU just the call
    else:
        step = captured(evaluation_step, model)
    sums, n_images = [], 0
    for batch in data:
        sums.append(step(batch))  # stays on the device
        n_images += len(batch)
        if model.training and average is not None:
            average.update()
        if model.training and scheduler is not None:
            scheduler.step()
    log_px_nats = torch.stack(sums).cpu().double().sum().item() / n_images
    return bits_per_dimension(log_px_nats, model.flow.z_shape[0])


def run_epoch(model, data, optimizer):
    """The assignment's function: train on data[0], then validate on data[1]; `main` logs more."""
    train, val = data
    train_bpd = epoch_iter(model.train(), train, optimizer)
    return train_bpd, evaluate(model, val)


# --- Evaluation
def evaluate(model, data, seed=0):
    """Bits per dimension of a split; weights and the run's random numbers don't change."""
    with separate_random_numbers(seed):
        return epoch_iter(model.eval(), data)


def shift(data):
    """Shift the images of batches at random, as the report shifted its validation images.

    It is lazy, so the seed of `evaluate` governs the shifts, too.
    """
    return (random_shift(batch, MAX_SHIFT, data.image_shape) for batch in data)


@torch.no_grad()
def test_results(config, model, test):
    """Results of a trained model on the test split: dicts of numbers, by name."""
    results = {"test": {"bpd": evaluate(model, test), "bpd_shifted": evaluate(model, shift(test))}}
    with separate_random_numbers(config.run.seed):
        layers = {"pixels": model.logit_normalize, "logit": model.flow}
        images = next(iter(test))
        results["inverse_error"] = likelihood.inverse_error(layers, model.dequantize(images))
        if n := config.importance_samples:
            results["likelihood"] = likelihood.of_flow(model, test, n, model.flow.z_shape[0])
    if n := config.quality_samples:
        samples = draw(model, config.run.seed, n=n)
        results["quality"] = sample_quality.measure(samples, config.data)
    return results


# --- Pictures
CURVES = Curves(
    "bpd",
    "bits per dimension",
    {
        "train_bpd": "training (shifted images)",
        "val_bpd": "validation",
        "val_bpd_shifted": "validation, shifted images",
    },
)


def draw(model, seed, temperature=1.0, n=25):
    """n samples in [0, 1], [n, n_pixels]; the same draws for the same seed."""
    with separate_random_numbers(seed):
        return model.sample(n, temperature) / 255


def save_pictures(run, model, epoch):
    """Write 25 samples, the same draws at every epoch."""
    samples = draw(model, run.config.run.seed)
    run.save_grid(f"samples_{epoch:03d}", {"samples": samples}, f"epoch {epoch}")


def save_bpd_plot(train_curve, val_curve, filename):
    """The assignment's function: write both curves, bits/dim by epoch, to a PNG and a PDF."""
    CURVES.save(filename, train_bpd=train_curve, val_bpd=val_curve)


# --- Main
def main(config):
    """Train a flow, or continue or evaluate an earlier run, and grade it."""
    with Run(config, CURVES.of_averaged_weights(config.ema_decay)) as run:
        train, val, test = mnist(config.data, config.batch_size, run.device, MAX_SHIFT)
        model = build(config).to(run.device)
        groups = parameter_groups(model, config.lr, config.first_lr_factor)
        optimizer = adam(groups, config.lr, config.weight_decay, config.adam_eps)
        n_steps = len(train) * config.epochs
        scheduler = learning_rates(optimizer, n_steps, config.warmup, config.schedule)
        average = WeightAverage(model, config.ema_decay)
        run.start_or_resume(model=model, average=average, optimizer=optimizer, scheduler=scheduler)
        if run.count == 0:
            save_pictures(run, average.model, 0)

        for epoch in run.remaining(config.epochs):
            train_bpd = epoch_iter(
                model.train(), run.progress(train), optimizer, average, config.max_norm, scheduler
            )
            evaluated = average.model
            metrics = {"train_bpd": train_bpd, "val_bpd": evaluate(evaluated, val)}
            if epoch <= 10 or epoch % 10 == 0 or epoch == config.epochs:
                metrics["val_bpd_shifted"] = evaluate(evaluated, shift(val))
            metrics["dead_units"] = run.dead_units(evaluated, evaluated.hidden_layers(), val)
            next_lr = float(optimizer.param_groups[0]["lr"])
            run.log(epoch=epoch, **metrics, lr=next_lr)
            if epoch in (1, 5, config.epochs) or epoch % 10 == 0:
                save_pictures(run, average.model, epoch)
            run.checkpoint()

        by_temperature = {f"{t}": draw(average.model, 0, t) for t in (0.7, 0.8, 0.9, 1.0)}
        run.save_grid("samples_by_temperature", by_temperature, "temperature")
        run.finish(test_results(config, average.model, test), average.model)


def load_model(run_folder):
    """The trained flow of a finished run, in evaluation mode on the CPU."""
    config = Config.of(run_folder)
    return config.load_weights(run_folder, lambda: build(config))


if __name__ == "__main__":
    cli.run(main, Config.parse)
