"""RealNVP on MNIST (Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", ICLR 2017).

A normalising flow g maps an image, made continuous and unbounded, to a latent z with a standard normal prior, through affine
couplings that are inverted exactly. Bits per dimension of an image x of D = 784 integers in 0..255:

    y = x + u, u uniform on [0, 1)^D:    log P(x) >= E_u log p(y), with equality for a density constant on each unit cube
    v = y / 256:                         log p(y) = log p(v) - D log 256
    w = (1 - alpha) v + alpha / 2:       log p(v) = log p(w) + D log(1 - alpha)
    l = logit(w):                        log p(w) = log p(l) - sum log(w (1 - w))
    z = g(l), z ~ N(0, I):               log p(l) = -1/2 sum(z^2 + log 2 pi) + log |det dg / dl|

and bits per dimension are -log p(y) / (D log 2), p(y) being what is reported for x, with one draw of u.

    python a3_nf_template.py

Seed 0 reaches 1.995 validation bits per dimension after 1 epoch, 1.813 after 10, 1.760 after 40 and 1.738 after 100 (the report:
2.098, 1.880, 1.826, 1.804), at about 50 seconds an epoch on two cores of an AMD EPYC.
"""

import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluation
import figures
import runs
import training
from datasets import N_PIXELS, mnist, random_shift

# The report's validation bits per dimension by epoch: the curve of its Figure 14 (1, 10), its text (40, 100). It
# validated on images shifted at random: `val_bpd_shifted` compares like with like, `val_bpd` must meet the same values.
REFERENCE_BPD = {1: 2.098, 10: 1.880, 40: 1.826, 100: 1.804}
ASSIGNMENT_BPD = (40, 1.85)
ALPHA = 1e-5  # keeps the logit finite at black and white
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
MAX_SHIFT = 1  # pixels: the report's 5% of an image's side is 1.4, and images move by whole pixels


# Model

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
    """Affine coupling: keeps the pixels where the mask is 1, scales and shifts the others by functions of those.

        z_changed = z_changed * exp(log_scale(z_kept)) + translation(z_kept),    log_scale = tanh(head)

    (Dinh et al. 2017, Equations 4 to 9). Only the kept pixels enter the network and only the changed ones leave it,
    where masking would multiply by zeros. Log-scales and translations start at zero, so that a new coupling is the identity.

    Args:
        c_in: number of pixels.
        mask: [1, c_in] of zeros and ones, in any pattern.
        n_hidden: units of each of the two hidden layers.
    """

    def __init__(self, c_in, mask, n_hidden=1024):
        super().__init__()
        kept, changed = (torch.nonzero(mask.view(c_in) == value).flatten() for value in (1, 0))
        self.register_buffer('kept', kept, persistent=False)
        self.register_buffer('changed', changed, persistent=False)
        self.nn = nn.Sequential(nn.Linear(len(kept), n_hidden), nn.ReLU(),
                                nn.Linear(n_hidden, n_hidden), nn.ReLU(),
                                nn.Linear(n_hidden, 2 * len(changed)))  # log-scale head, translation head
        nn.init.zeros_(self.nn[-1].weight)
        nn.init.zeros_(self.nn[-1].bias)

    def forward(self, z, ldj, reverse=False):
        """(z, ldj) for z [batch, c_in] and log-determinants so far [batch]; reverse inverts and subtracts."""
        log_scale, translation = self.nn(z.index_select(1, self.kept)).chunk(2, dim=1)
        log_scale = torch.tanh(log_scale)
        changed = z.index_select(1, self.changed)
        if reverse:
            changed = (changed - translation) * torch.exp(-log_scale)
            ldj = ldj - log_scale.sum(dim=1)
        else:
            changed = changed * torch.exp(log_scale) + translation
            ldj = ldj + log_scale.sum(dim=1)
        return z.index_copy(1, self.changed, changed), ldj


class Flow(nn.Module):
    """`n_flows` pairs of couplings, with a mask and then its complement.

    Args:
        shape: [number of pixels].
        mask: [1, number of pixels]; None is `get_mask()`.
    """

    def __init__(self, shape, n_flows=4, n_hidden=1024, mask=None):
        super().__init__()
        c_in, = shape
        mask = get_mask() if mask is None else mask
        self.z_shape = (c_in,)
        self.layers = nn.ModuleList(Coupling(c_in, m, n_hidden) for _ in range(n_flows) for m in (mask, 1 - mask))

    def forward(self, z, ldj, reverse=False):
        """(z, ldj) through all couplings, for z [batch, pixels], ldj [batch]; reverse is the exact inverse."""
        for layer in reversed(self.layers) if reverse else self.layers:
            z, ldj = layer(z, ldj, reverse)
        return z, ldj


class Model(nn.Module):
    """A flow over dequantised, logit-transformed images.

    Args:
        shape: [number of pixels].
        n_bins: grey values of a pixel, 0..n_bins - 1.
        n_flows, n_hidden, mask: of the Flow.
    """

    def __init__(self, shape, n_flows=4, n_hidden=1024, n_bins=256, mask=None):
        super().__init__()
        self.n_bins = n_bins
        self.flow = Flow(shape, n_flows, n_hidden, mask)

    def dequantize(self, z):
        """Integers plus uniform noise on [0, 1), fresh for every pixel of every image."""
        return z + torch.rand_like(z)

    def logit_normalize(self, z, ldj, reverse=False):
        """From [0, n_bins] to the real line by scaling, the alpha squeeze and the logit; reverse is the inverse."""
        if reverse:
            ldj = ldj - self._logit_ldj(F.logsigmoid(z), F.logsigmoid(-z))
            z = (torch.sigmoid(z) - ALPHA / 2) / (1 - ALPHA) * self.n_bins
        else:
            z = z / self.n_bins * (1 - ALPHA) + ALPHA / 2
            log_z, log_1_minus_z = torch.log(z), torch.log1p(-z)
            ldj = ldj + self._logit_ldj(log_z, log_1_minus_z)
            z = log_z - log_1_minus_z
        return z, ldj

    def _logit_ldj(self, log_z, log_1_minus_z):
        per_pixel = math.log(1 - ALPHA) - math.log(self.n_bins)
        return (per_pixel - log_z - log_1_minus_z).sum(dim=1)

    def forward(self, input):
        """log p(x) of integer images [batch, pixels] in nats, from one draw of the dequantisation noise: [batch]."""
        ldj = torch.zeros(len(input), dtype=input.dtype, device=input.device)
        z, ldj = self.logit_normalize(self.dequantize(input), ldj)
        z, ldj = self.flow(z, ldj)
        return log_prior(z) + ldj

    @torch.no_grad()
    def sample(self, n_samples, temperature=1.0):
        """n_samples images drawn from the model, [n_samples, pixels], whole numbers in 0..n_bins - 1.

        A temperature below 1 shrinks the prior's standard deviation: more typical images, no longer the model's distribution.
        """
        bias = self.flow.layers[0].nn[0].bias
        z = temperature * sample_prior((n_samples, *self.flow.z_shape), device=bias.device)
        ldj = torch.zeros(n_samples, device=bias.device)
        z, ldj = self.flow(z, ldj, reverse=True)
        z, _ = self.logit_normalize(z, ldj, reverse=True)
        return z.floor().clamp(0, self.n_bins - 1)


# Objective

def bits_per_dimension(log_px_nats, n_dimensions=N_PIXELS):
    """-log p(x) / (D log 2), elementwise."""
    return -log_px_nats / (n_dimensions * math.log(2))


# Sampling

def save_samples(model, filename, heading):
    """Write a 5x5 grid of images drawn from the model."""
    figures.save_grid(filename, {heading: model.sample(25).cpu() / 255}, n_columns=5)


def save_temperatures(model, filename):
    """Write 5x5 grids of images from the same draws of the prior at several temperatures, side by side."""
    panels = {}
    for temperature in TEMPERATURES:
        with training.separate_random_numbers(0, next(model.parameters()).device):
            panels[f'temperature {temperature}'] = model.sample(25, temperature).cpu() / 255
    figures.save_grid(filename, panels, n_columns=5)


# Training and evaluation

def train_step(model, optimizer, max_norm, batch):
    """One optimiser step on grey images [batch, 784], 0..255; returns the sum of log p(x) over them in nats, a scalar."""
    log_px_nats = model(batch)
    optimizer.zero_grad()
    (-log_px_nats.mean()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return log_px_nats.detach().sum()


@torch.no_grad()
def evaluation_step(model, batch):
    """The sum of log p(x) over grey images [batch, 784] in nats, a scalar."""
    return model(batch).sum()


def epoch_iter(model, data, optimizer, average=None, max_norm=5.0, steps=None):
    """One pass over the data, in which the model is trained if it is in training mode, and only evaluated otherwise.

    Args:
        data: iterable of batches of grey images [batch, 784], 0..255.
        average: a `training.WeightAverage` to update after every optimiser step, if any.
        max_norm: the norm to clip the gradient at, of -log p(x) in nats averaged over the batch.
        steps: `training.Steps` of this model's `train_step` or `evaluation_step`, if they are not to be the plain ones.

    Returns:
        Bits per dimension averaged over all images; while training, with the weights of the moment.
    """
    if steps is None:
        steps = training.Steps(partial(train_step, model, optimizer, max_norm) if model.training
                               else partial(evaluation_step, model))
    sums, n_images = [], 0
    for batch, log_px_nats in steps(data):
        sums.append(log_px_nats)
        n_images += len(batch)
        if model.training and average is not None:
            average.update(model)
    # The one place where the host waits for the device.
    return bits_per_dimension(torch.stack(sums).cpu().double().sum().item() / n_images)


def run_epoch(model, data, optimizer, average=None, max_norm=5.0, steps=(None, None)):
    """Train on data[0], validate on data[1] (with an `average`, its weights): both in bits per dimension.

    `steps` are those of `epoch_iter` for training and for validating, if they are not the default ones.
    """
    train, val = data
    train_bpd = epoch_iter(model.train(), train, optimizer, average, max_norm, steps[0])
    return train_bpd, evaluate(model if average is None else average.model, val, steps=steps[1])


def evaluate(model, data, seed=0, steps=None):
    """Bits per dimension over the whole split, without touching the weights or the run's random numbers."""
    with training.separate_random_numbers(seed, next(model.parameters()).device):
        return epoch_iter(model.eval(), data, optimizer=None, steps=steps)


def evaluate_shifted(model, data, seed=0):
    """Bits per dimension of the split with every image shifted at random, as the report validated."""
    with training.separate_random_numbers(seed, next(model.parameters()).device):
        return epoch_iter(model.eval(), (random_shift(batch, MAX_SHIFT) for batch in data), optimizer=None)


@torch.no_grad()
def importance_weighted(model, data, n_samples):
    """Bits per dimension with p(x) as the mean of p(x + u) over n_samples draws of the dequantisation noise u, as a dict.

    With uniform noise that mean is an unbiased estimate of P(x), and log of it a bound on log P(x) from below, tighter than the
    bound with one draw (Ho et al., "Flow++", ICML 2019, Section 3.1; Burda et al., ICLR 2016). The dict holds it with the standard error of its
    mean over the images, the one-draw bound of the same draws, the gap between the two, and n_samples.
    """
    one_draw, log_px = [], []
    for batch in data:
        draws = torch.stack([model(batch) for _ in range(n_samples)]).double()
        one_draw.append(draws.mean(dim=0))
        log_px.append(torch.logsumexp(draws, dim=0) - math.log(n_samples))
    one_draw, bpd = (bits_per_dimension(torch.cat(values), *model.flow.z_shape) for values in (one_draw, log_px))
    return {'bpd': bpd.mean().item(), 'standard_error': (bpd.std() / math.sqrt(len(bpd))).item(),
            'one_draw_bpd': one_draw.mean().item(), 'gap': (one_draw - bpd).mean().item(), 'importance_samples': n_samples}


@torch.no_grad()
def inverse_error(model, images):
    """Largest error of g^-1(g(l)) over dequantised images: (before the logit, in grey levels; after it, in logits)."""
    ldj = torch.zeros(len(images), device=images.device)
    y = model.dequantize(images)
    logits, _ = model.logit_normalize(y, ldj)
    z, _ = model.flow(logits, ldj)
    logits_back, _ = model.flow(z, ldj, reverse=True)
    y_back, _ = model.logit_normalize(logits_back, ldj, reverse=True)
    return (y_back - y).abs().max().item(), (logits_back - logits).abs().max().item()


def save_bpd_plot(train_curve, val_curve, filename, references=(), shifted=None, title=None):
    """Write the curves of bits per dimension per epoch to `filename` (PNG, and PDF beside it).

    A curve is a list of bits per dimension per epoch, or one such list per seed; `shifted` is (epochs, bits per dimension) of
    the shifted validation images, which the report's values, the `references`, are of.
    """
    curves = {'training (shifted images)': (figures.TRAIN, range(1, np.shape(train_curve)[-1] + 1), train_curve),
              'validation': (figures.VALIDATION, range(1, np.shape(val_curve)[-1] + 1), val_curve)}
    if shifted is not None:
        curves['validation, shifted images'] = (figures.THIRD, *shifted)
    figures.save_curves(filename, curves, 'epoch', 'bits per dimension', references, title=title)


# Grading and command line

def shifted_curve(history):
    """(epochs, bits per dimension) of the shifted validation images, where they were evaluated; None if nowhere."""
    points = [(line['epoch'], line['val_bpd_shifted']) for line in history if 'val_bpd_shifted' in line]
    return tuple(zip(*points)) or None


def graded(args, history, results):
    """The graded table's rows, from the lines of `metrics.jsonl` and the further results of `result.json`, if any."""
    comparable = args.n_flows == 4 and args.n_hidden == 1024
    at = {line['epoch']: line for line in history}
    rows = [runs.grade(quantity, 'bits/dim', epoch, at.get(epoch, {}).get(key), reference, comparable)
            for quantity, key in (('validation, shifted as in the report', 'val_bpd_shifted'),
                                  ('validation', 'val_bpd'))
            for epoch, reference in REFERENCE_BPD.items()]
    epoch, demanded = ASSIGNMENT_BPD
    rows.append(runs.grade('validation, the assignment\'s demand', 'bits/dim', epoch,
                           at.get(epoch, {}).get('val_bpd'), demanded, comparable))
    return rows


def main(args):
    if args.evaluate is not None:
        return evaluate_run(args)
    device = training.select_device(args.device)
    train, val, test = mnist(args.data_dir, args.batch_size, device, MAX_SHIFT)
    torch.manual_seed(args.seed)
    model = Model([N_PIXELS], args.n_flows, args.n_hidden).to(device)
    optimizer = training.adam(model, args.lr, device, args.no_graph)
    average = training.WeightAverage(model, args.ema_decay)
    steps = (training.steps_on(device, partial(train_step, model, optimizer, args.max_norm), model, optimizer,
                               no_graph=args.no_graph),
             training.steps_on(device, partial(evaluation_step, average.model), no_graph=args.no_graph))

    run = runs.Run(args, device, model=model, average=average, optimizer=optimizer, random=training.RandomState(device))

    def save_pictures(epoch):
        with training.separate_random_numbers(args.seed, device):
            save_samples(average.model, run.folder / f'samples_{epoch:03d}.png', f'epoch {epoch}')

    def save_curves():
        save_bpd_plot([line['train_bpd'] for line in run.history], [line['val_bpd'] for line in run.history],
                      run.folder / 'bpd.png',
                      [(epoch, bpd, 'the report (shifted)') for epoch, bpd in REFERENCE_BPD.items()],
                      shifted_curve(run.history))

    if run.count == 0:
        save_pictures(0)
    with (run.ending_with(save_curves),
          training.progress_bar(args.epochs * len(train), run.count * len(train)) as bar):
        for epoch in range(run.count + 1, args.epochs + 1):
            bar.set_description(f'epoch {epoch}/{args.epochs}', refresh=False)
            started = time.perf_counter()
            train_bpd, val_bpd = run_epoch(model, (training.counted(train, bar), val), optimizer, average, args.max_norm,
                                           steps)
            line = {'epoch': epoch, 'train_bpd': train_bpd, 'val_bpd': val_bpd}
            if epoch in REFERENCE_BPD or epoch == args.epochs:
                line['val_bpd_shifted'] = evaluate_shifted(average.model, val)
            run.log(**line, seconds=round(time.perf_counter() - started, 3))
            bar.set_postfix_str(f' validation {val_bpd:.3f} bits/dim', refresh=False)
            if epoch in (1, 5, args.epochs) or epoch % 10 == 0:
                save_pictures(epoch)
            run.save_checkpoint(last=epoch == args.epochs)

    with run.resumable():
        finish(args, average.model, test, run.folder, run.history)


def finish(args, model, test, folder, history):
    """Evaluate a trained model on the test split, draw its samples by temperature, and write and print the results.

    What args leave out is kept as an earlier evaluation left it.
    """
    device = test.images.device
    with training.separate_random_numbers(args.seed, device):
        pixel_error, logit_error = inverse_error(model, next(iter(test)))
    results = runs.read_results(folder) | {
        'test': {'bpd': evaluate(model, test), 'bpd_shifted': evaluate_shifted(model, test)},
        'inverse_error': {'pixels': pixel_error, 'logit': logit_error}}
    save_temperatures(model, folder / 'samples_by_temperature.png')
    with training.separate_random_numbers(args.seed, device):
        if args.importance_samples:
            print(f'estimating the likelihood of the test split with {args.importance_samples:,} draws of the noise an image')
            results['likelihood'] = importance_weighted(model, test, args.importance_samples)
        if args.quality_samples:
            images = model.sample(args.quality_samples) / 255
            other_real, real = evaluation.grey_digits(device)
            results['quality'] = evaluation.sample_quality(images, real, other_real, *evaluation.load_classifier(device))
    runs.finish(folder, graded(args, history, results), 'epoch', results)


def evaluate_run(args):
    """Evaluate the finished run in the folder args.evaluate anew."""
    device = training.select_device(args.device)
    _, _, test = mnist(args.data_dir, args.batch_size, device)
    model = Model([N_PIXELS], args.n_flows, args.n_hidden).to(device)
    history = runs.load_run(args.evaluate, Path(__file__).name, lambda checkpoint: model.load_state_dict(
        checkpoint['average']['model']))
    finish(args, model.eval(), test, Path(args.evaluate), history)


def parse_args(argv=None):
    number = training.number
    parser = training.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=number(int, at_least=1), default=100, help='passes over the training images')
    parser.add_argument('--n_flows', type=number(int, at_least=1), default=4, help='pairs of couplings')
    parser.add_argument('--n_hidden', type=number(int, at_least=1), default=1024, help='units of a coupling\'s layers')
    parser.add_argument('--batch_size', type=number(int, at_least=1), default=128, help='images in a step')
    parser.add_argument('--lr', type=number(float, above=0), default=1e-3, help='learning rate of Adam')
    parser.add_argument('--max_norm', type=number(float, above=0), default=5.0, help='the norm to clip the gradient at, in '
                        'nats per image')
    parser.add_argument('--ema_decay', type=number(float, at_least=0, below=1), default=0.999, help='evaluate an '
                        'exponential moving average of the weights with this decay per step; 0 for none')
    parser.add_argument('--importance_samples', type=number(int, at_least=0), default=32, help='draws of the dequantisation '
                        'noise an image for the likelihood of the test split at the end; 0 for none')
    parser.add_common_arguments()
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = f'runs/nf-seed{args.seed}'
    return args


if __name__ == '__main__':
    training.run_script(main, parse_args)
