"""RealNVP on MNIST (Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", ICLR 2017).

The assignment's flow has one scale and MLPs in its couplings, not the paper's convolutions. It maps
an image, made continuous and unbounded, to a latent z ~ N(0, I) by couplings g with exact inverses.
For an image x of D = 784 integers in 0..255:

    y = x + u, u uniform on [0, 1)^D:    log P(x) >= E_u log p(y)
    v = y / 256:                         log p(y) = log p(v) - D log 256
    w = (1 - alpha) v + alpha / 2:       log p(v) = log p(w) + D log(1 - alpha)
    l = logit(w):                        log p(w) = log p(l) - sum log(w (1 - w))
    z = g(l):                            log p(l) = log N(z; 0, I) + log |det dg / dl|

Bits per dimension are -log p(y) / (D log 2), with one draw of u per image.

    python a3_nf_template.py

Three seeds reach 2.018, 1.831, 1.776, 1.754 bits per dimension on shifted validation images at
epochs 1, 10, 40, 100 (report: 2.098, 1.880, 1.826, 1.804), at 65 to 72 s an epoch on one CPU core.
"""

import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import N_PIXELS, Source, mnist, random_shift
from harness import cli, likelihood, plots, records, weights
from harness.average import WeightAverage
from harness.devices import device_of, select_device, separate_random_numbers
from harness.graded import Row, comparable, fill_rows, metric, rows_at
from harness.linear import Linear
from harness.run import Run
from harness.sample_quality import sample_quality
from harness.steps import adam, captured, clipped_step, mean_over_images

# The report's validation bits per dimension by epoch: the curve of its Figure 14 (1, 10), its text
# (40, 100). It validated on shifted images, so `val_bpd_shifted` compares like with like.
REFERENCE_BPD = {1: 2.098, 10: 1.880, 40: 1.826, 100: 1.804}
GRADED = [
    *rows_at(REFERENCE_BPD, "validation, shifted as in the report", "bits/dim", "val_bpd_shifted"),
    *rows_at(REFERENCE_BPD, "validation, clean", "bits/dim", "val_bpd"),
    Row("validation, the assignment's demand", "bits/dim", metric("val_bpd_shifted"), 1.85, at=40),
]
COMPARABLE = {"dataset": ("mnist",), "n_flows": (4,), "n_hidden": (1024,)}
ALPHA = 1e-5  # keeps the logit finite at black and white
MAX_SHIFT = 1  # pixels: the report's 5% of an image's side is 1.4, and images move by whole pixels


# --- Model
def log_prior(x):
    """log N(x; 0, I) of the rows of x, in nats: [batch]."""
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(dim=1)


def sample_prior(size, device=None):
    """Draws from N(0, I), of the given size."""
    return torch.randn(size, device=device)


def get_mask():
    """A checkerboard on 28 x 28 pixels, [1, 784]: 1 where row + column is even."""
    steps = torch.arange(28)
    return ((steps[:, None] + steps + 1) % 2).float().view(1, N_PIXELS)


class Coupling(nn.Module):
    """Affine coupling: keeps pixels where the mask [1, c_in] is 1, scales and shifts the others.

    Dinh et al. 2017, Equations 4 to 9. The network reads only the kept pixels and computes only
    the changed ones. Its last layer starts at zero, so a new coupling is the identity.
    """

    def __init__(self, c_in, mask, n_hidden=1024):
        super().__init__()
        kept, changed = (torch.nonzero(mask.view(c_in) == value).flatten() for value in (1, 0))
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("changed", changed, persistent=False)
        self.nn = nn.Sequential(
            *(Linear(len(kept), n_hidden), nn.ReLU()),
            *(Linear(n_hidden, n_hidden), nn.ReLU()),
            Linear(n_hidden, 2 * len(changed)),  # log-scale head, translation head
        )
        nn.init.zeros_(self.nn[-1].weight)
        nn.init.zeros_(self.nn[-1].bias)

    def forward(self, z, ldj, reverse=False):
        """(z, ldj) for z [batch, c_in] and log-determinants so far [batch]; reverse inverts."""
        kept, changed = z.index_select(1, self.kept), z.index_select(1, self.changed)
        changed, ldj = self.change(kept, changed, ldj, reverse)
        return z.index_copy(1, self.changed, changed), ldj

    def change(self, kept, changed, ldj, reverse):
        """(changed pixels, ldj) after the coupling, from the kept and the changed ones before."""
        log_scale, translation = self.nn(kept).chunk(2, dim=1)
        log_scale = torch.tanh(log_scale)
        if reverse:
            return (changed - translation) * torch.exp(-log_scale), ldj - log_scale.sum(dim=1)
        return changed * torch.exp(log_scale) + translation, ldj + log_scale.sum(dim=1)


class Flow(nn.Module):
    """`n_flows` pairs of couplings on [c_in] = `shape` pixels, with a mask and its complement."""

    def __init__(self, shape, n_flows=4, n_hidden=1024, mask=None):
        super().__init__()
        (c_in,) = shape
        mask = get_mask() if mask is None else mask
        self.z_shape = (c_in,)
        masks = (mask, 1 - mask) * n_flows
        self.layers = nn.ModuleList(Coupling(c_in, mask, n_hidden) for mask in masks)

    def forward(self, z, ldj, reverse=False):
        """(z, ldj) through all couplings, for z [batch, c_in], ldj [batch]; reverse inverts."""
        layers = self.layers[::-1] if reverse else self.layers
        first = layers[0]
        kept, changed = z.index_select(1, first.kept), z.index_select(1, first.changed)
        for layer in layers:
            changed, ldj = layer.change(kept, changed, ldj, reverse)
            kept, changed = changed, kept  # the next mask is the complement; the number is even
        return z.index_copy(1, first.kept, kept).index_copy(1, first.changed, changed), ldj


class Model(nn.Module):
    """A flow on integer images, 0..n_bins - 1, [c_in] = `shape`, after dequantisation and logit."""

    def __init__(self, shape, n_flows=4, n_hidden=1024, n_bins=256, mask=None):
        super().__init__()
        self.n_bins = n_bins
        self.flow = Flow(shape, n_flows, n_hidden, mask)

    def dequantize(self, z):
        """Integers plus uniform noise on [0, 1), new for every pixel of every image."""
        return z + torch.rand_like(z)

    def logit_normalize(self, z, ldj, reverse=False):
        """From [0, n_bins] to the real line: scale, squeeze by alpha, logit; reverse inverts."""
        per_pixel = math.log(1 - ALPHA) - math.log(self.n_bins)
        if reverse:
            ldj = ldj - (per_pixel - F.logsigmoid(z) - F.logsigmoid(-z)).sum(dim=1)
            return (torch.sigmoid(z) - ALPHA / 2) / (1 - ALPHA) * self.n_bins, ldj
        z = z / self.n_bins * (1 - ALPHA) + ALPHA / 2
        log_z, log_1_minus_z = torch.log(z), torch.log1p(-z)
        ldj = ldj + (per_pixel - log_z - log_1_minus_z).sum(dim=1)
        return log_z - log_1_minus_z, ldj

    def forward(self, input):
        """log p(x + u) of integer images [batch, c_in] in nats, with new noise u: [batch]."""
        z, ldj = self.logit_normalize(self.dequantize(input), input.new_zeros(len(input)))
        z, ldj = self.flow(z, ldj)
        return log_prior(z) + ldj

    @torch.no_grad()
    def sample(self, n_samples, temperature=1.0):
        """Draw integer images [n_samples, c_in]; a temperature scales the prior's deviation."""
        z = temperature * sample_prior((n_samples, *self.flow.z_shape), device_of(self))
        z, ldj = self.flow(z, z.new_zeros(n_samples), reverse=True)
        z, _ = self.logit_normalize(z, ldj, reverse=True)
        return z.floor().clamp(0, self.n_bins - 1)


# --- Objective
def bits_per_dimension(log_px_nats, n_dimensions=N_PIXELS):
    """-log p(x) / (D log 2), elementwise."""
    return -log_px_nats / (n_dimensions * math.log(2))


# --- Sampling
def draw(model, seed, temperature=1.0, n=25):
    """n samples in [0, 1], [n, 784]; the same draws for the same seed."""
    with separate_random_numbers(seed, device_of(model)):
        return model.sample(n, temperature) / 255


# --- Training
def train_step(model, optimizer, max_norm, batch):
    """One optimiser step on grey images [batch, 784]; returns the sum of log p(x) in nats."""
    log_px_nats = model(batch)
    optimizer.zero_grad()
    (-log_px_nats.mean()).backward()
    clipped_step(optimizer, max_norm)
    return log_px_nats.detach().sum()


@torch.no_grad()
def evaluation_step(model, batch):
    """The sum of log p(x) over grey images [batch, 784] in nats, a scalar."""
    return model(batch).sum()


def epoch_iter(model, data, optimizer, average=None, max_norm=5.0):
    """Bits per dimension of batches of images [batch, 784]; a model in training mode is trained."""
    if not model.training:
        return bits_per_dimension(mean_over_images(captured(evaluation_step, model), data).item())
    step = captured(train_step, model, optimizer, max_norm)  # a CUDA graph; on a CPU just the call
    return bits_per_dimension(mean_over_images(step, data, average and average.update).item())


def run_epoch(model, data, optimizer, average=None, max_norm=5.0):
    """Train on data[0]; validate on data[1], the weights of `average` if there is one."""
    train_bpd = epoch_iter(model.train(), data[0], optimizer, average, max_norm)
    return train_bpd, evaluate(model if average is None else average.model, data[1])


# --- Evaluation
def evaluate(model, data, seed=0):
    """Bits per dimension of a split; weights and the run's random numbers stay untouched."""
    with separate_random_numbers(seed, device_of(model)):
        return epoch_iter(model.eval(), data, optimizer=None)


def shift(data):
    """Shift the images of batches at random, as the report shifted its validation images."""
    return (random_shift(batch, MAX_SHIFT) for batch in data)


@torch.no_grad()
def test_results(args, model, test):
    """Results of a trained model on the test split: dicts of numbers, by name."""
    results = {"test": {"bpd": evaluate(model, test), "bpd_shifted": evaluate(model, shift(test))}}
    with separate_random_numbers(args.seed, device_of(model)):
        layers, y = {"pixels": model.logit_normalize, "logit": model.flow}, next(iter(test))
        results["inverse_error"] = likelihood.inverse_error(layers, model.dequantize(y))
        if n := args.importance_samples:  # several draws of the noise, as in Flow++ (ICML 2019)
            nats = likelihood.importance_weighted(likelihood.repeated(model), test, n)
            results["likelihood"] = likelihood.per_dimension(nats, N_PIXELS)
    if n := args.quality_samples:
        results["quality"] = sample_quality(draw(model, args.seed, n=n), Source.of(args))
    return results


def save_bpd_plot(train_curve, val_curve, filename, references=(), shifted=None, title=None):
    """Write curves (bits/dim per epoch, or a list of such curves by seed) to a PNG and a PDF."""
    curves = {"training (shifted images)": train_curve, "validation": val_curve}
    curves["validation, shifted images"] = shifted
    plots.save_epochs(filename, curves, "bits per dimension", references, title)


grade = partial(fill_rows, GRADED, COMPARABLE)  # called as grade(args, history, results)


# --- Main
def main(args):
    """Train a flow, or continue or evaluate an earlier run, and grade it."""
    device = select_device(args.device, args.no_graph)
    train, val, test = mnist(Source.of(args), args.batch_size, device, MAX_SHIFT)
    torch.manual_seed(args.seed)
    model = Model([N_PIXELS], args.n_flows, args.n_hidden).to(device)
    optimizer, average = adam(model, args.lr), WeightAverage(model, args.ema_decay)
    parts = {"model": model, "average": average, "optimizer": optimizer}

    def draw_curves(folder, history):
        curves = records.columns(history, "train_bpd", "val_bpd")
        shifted = records.points(history, "epoch", "val_bpd_shifted")
        points = REFERENCE_BPD.items() if comparable(COMPARABLE, args) else ()
        stars = [(*point, "the report (shifted)") for point in points]
        save_bpd_plot(*curves, folder / "bpd.png", stars, shifted)

    def save_samples(epoch):
        panels = {f"epoch {epoch}": draw(average.model, args.seed)}
        plots.save_grid(run.folder / f"samples_{epoch:03d}.png", panels)

    with Run(args, device, draw_curves, grade, **parts) as run:
        if run.count == 0:
            save_samples(0)
        for epoch in run.count_to(args.epochs):
            data = run.counted(train), val
            train_bpd, val_bpd = run_epoch(model, data, optimizer, average, args.max_norm)
            line = {"epoch": epoch, "train_bpd": train_bpd, "val_bpd": val_bpd}
            if epoch in REFERENCE_BPD or epoch == args.epochs:
                line["val_bpd_shifted"] = evaluate(average.model, shift(val))
            run.log(**line)
            if epoch in (1, 5, args.epochs) or epoch % 10 == 0:
                save_samples(epoch)
        panels = {f"temperature {t}": draw(average.model, 0, t) for t in (0.7, 0.8, 0.9, 1.0)}
        plots.save_grid(run.folder / "samples_by_temperature.png", panels)
        run.finish(test_results(args, average.model, test), average.model)


def load_model(run_folder):
    """The trained flow of a finished run, in evaluation mode on the CPU."""
    args = cli.settings_of(run_folder, __file__, parse_args)
    return weights.load(run_folder, Model([N_PIXELS], args.n_flows, args.n_hidden))


# --- Command line
def parse_args(argv=None):
    """The command line; with --resume or --evaluate the settings of that run."""
    parser = cli.ArgumentParser(__doc__.splitlines()[0], prog=__file__)
    parser.add_training_arguments(epochs=100, batch_size=128, lr=1e-3, importance_samples=32)
    parser.add_number("--n_flows", 4, "pairs of couplings", at_least=1)
    parser.add_number("--n_hidden", 1024, "units of a coupling's layers", at_least=1)
    parser.add_number("--max_norm", 5.0, "clip the gradient at this norm", above=0)
    parser.add_common_arguments()
    return parser.parse_args(argv, out="runs/nf-{dataset}-seed{seed}")


if __name__ == "__main__":
    cli.run_script(main, parse_args)
