"""A variational autoencoder on binary MNIST (Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014).

The generative model draws z ~ N(0, I) and then 784 independent Bernoulli pixels whose means a decoder computes from z.
An encoder computes q(z|x) = N(mu, diag(sigma^2)), and both are trained to maximise the evidence lower bound

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z)).

    python a3_vae_template.py --zdim 20

Seed 0 reaches a validation negative ELBO of 98.87 nats after 40 epochs (the best correct public solution of the assignment:
100.60) and 97.96 after 100, in 5 to 6 minutes on two cores of an AMD EPYC; -log p(x) of the test split is then 91.75 by
importance sampling, which takes some minutes more.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.special import ndtri  # the quantile function of N(0, 1)

import evaluation
import figures
import runs
import training
from datasets import BINARIZATIONS, N_PIXELS, bmnist

# (epoch, nats, whose) by protocol. The best of eleven public solutions of this assignment with a correct KL, on Larochelle's
# fixed binarisation; and the report's number, which is not an ELBO: see `report_kl` and `run_epoch`.
REFERENCES = {'standard': (40, 100.60, 'best public solution'), 'report': (100, 79.458, 'the report')}
LOG_PX_BAR = (100, 96.0)  # epoch, nats: this project's own bar for -log p(x) of the test split


# Model

class Encoder(nn.Module):
    """q(z|x): images [batch, 784] -> mean and log standard deviation, [batch, z_dim] each."""

    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        self.hidden = nn.Linear(N_PIXELS, hidden_dim)
        self.mean = nn.Linear(hidden_dim, z_dim)
        self.log_std = nn.Linear(hidden_dim, z_dim)

    def forward(self, input):
        hidden = F.relu(self.hidden(input))
        return self.mean(hidden), self.log_std(hidden)


class Decoder(nn.Module):
    """p(x|z): latents [batch, z_dim] -> Bernoulli means [batch, 784]."""

    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        self.hidden = nn.Linear(z_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, N_PIXELS)

    def logits(self, z):
        """Log odds of the Bernoulli means, [batch, 784]: the likelihood is computed from these, never from log(mean)."""
        return self.output(F.relu(self.hidden(z)))

    def forward(self, z):
        return torch.sigmoid(self.logits(z))


class Nats(NamedTuple):
    """Terms of the objective in nats, per image or averaged over images."""

    neg_elbo: torch.Tensor | float  # recon + KL(q(z|x) || p(z))
    recon: torch.Tensor | float  # -log p(x|z)
    kl: torch.Tensor | float  # KL(q(z|x) || p(z))
    report: torch.Tensor | float  # recon + the report's KL: not a bound on log p(x)


class VAE(nn.Module):
    """Encoder and decoder with a standard normal prior.

    Args:
        hidden_dim: units of the one hidden layer of each network.
        z_dim: dimensions of the latent space.
        protocol: 'standard' trains on the ELBO; 'report' trains as the report did (see `run_epoch`).
    """

    def __init__(self, hidden_dim=500, z_dim=20, protocol='standard'):
        super().__init__()
        self.z_dim = z_dim
        self.protocol = protocol
        self.encoder = Encoder(hidden_dim, z_dim)
        self.decoder = Decoder(hidden_dim, z_dim)

    def terms(self, input):
        """The objective's terms for binary images [batch, 784], each [batch] in nats, from one sample of z an image."""
        mean, log_std = self.encoder(input)
        eps = torch.randn_like(mean)  # a fresh one for every image and dimension
        z = mean + log_std.exp() * eps
        recon = neg_log_likelihood(self.decoder.logits(z), input)
        kl = kl_divergence(mean, log_std)
        return Nats(recon + kl, recon, kl, recon + report_kl(mean, log_std))

    def forward(self, input):
        """Average negative ELBO of binary images [batch, 784], in nats: a scalar."""
        return self.terms(input).neg_elbo.mean()

    @torch.no_grad()
    def sample(self, n_samples):
        """(images, means): n_samples draws from the model, [n_samples, 784] with values 0 and 1, and their Bernoulli means."""
        z = torch.randn(n_samples, self.z_dim, device=self.decoder.output.bias.device)
        means = self.decoder(z)
        return torch.bernoulli(means), means


# Objective

def neg_log_likelihood(logits, input):
    """-log p(x|z) = -sum_i x_i log m_i + (1 - x_i) log(1 - m_i) with m = sigmoid(logits), in nats: [batch]."""
    return F.binary_cross_entropy_with_logits(logits, input, reduction='none').sum(dim=1)


def kl_divergence(mean, log_std):
    """KL(N(mu, sigma^2) || N(0, 1)) = 1/2 sum(sigma^2 + mu^2 - 2 log sigma - 1) in nats: [batch].

    Kingma & Welling 2014, Appendix B.
    """
    return 0.5 * (torch.exp(2 * log_std) + mean.square() - 2 * log_std - 1).sum(dim=1)


def report_kl(mean, log_std):
    """What the report computes for the KL, with sigma where sigma^2 belongs, in nats: [batch]. Not a divergence."""
    return 0.5 * (torch.exp(log_std) + mean.square() - log_std - 1).sum(dim=1)


# Sampling

def save_samples(model, filename, heading):
    """Write 10x10 Bernoulli means and, beside them, draws from the same Bernoullis."""
    images, means = model.sample(100)
    figures.save_grid(filename, {f'{heading}: means': means.cpu(), 'draws': images.cpu()}, n_columns=10)


@torch.no_grad()
def manifold(model, n=20):
    """Bernoulli means on an n x n grid over a 2-dimensional latent space, [n * n, 784], row by row from the top left.

    The grid is even in probability: its axes are the (i + 1/2) / n quantiles of the prior, z1 from left to right and z2
    from bottom to top (Kingma & Welling 2014, Figure 4).
    """
    quantiles = torch.tensor(ndtri([(i + 0.5) / n for i in range(n)]), dtype=torch.float32)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing='ij')
    z = torch.stack([z1.flatten(), z2.flatten()], dim=1)
    return model.decoder(z.to(model.decoder.output.bias.device))


# Training and evaluation

def train_step(model, optimizer, batch):
    """One optimiser step on binary images [batch, 784]; returns the sum over them of each term of `Nats`, [4]."""
    terms = model.terms(batch)
    objective = terms.report if model.protocol == 'report' else terms.neg_elbo
    optimizer.zero_grad()
    objective.mean().backward()
    optimizer.step()
    return torch.stack(terms).detach().sum(dim=1)


@torch.no_grad()
def evaluation_step(model, batch):
    """The sum over binary images [batch, 784] of each term of `Nats`, [4]."""
    return torch.stack(model.terms(batch)).sum(dim=1)


def epoch_iter(model, data, optimizer, average=None, steps=None):
    """One pass over the data, in which the model is trained if it is in training mode, and only evaluated otherwise.

    Args:
        data: iterable of binary image batches [batch, 784].
        average: a `training.WeightAverage` to update after every optimiser step, if any.
        steps: `training.Steps` of this model's `train_step` or `evaluation_step`, if they are not to be the plain ones.

    Returns:
        Nats: each term averaged over all images; while training, with the weights of the moment.
    """
    if steps is None:
        steps = training.Steps(partial(train_step, model, optimizer) if model.training else partial(evaluation_step, model))
    sums, n_images = [], 0
    for batch, nats in steps(data):
        sums.append(nats)
        n_images += len(batch)
        if model.training and average is not None:
            average.update(model)
    # The one place where the host waits for the device.
    return Nats(*(torch.stack(sums).cpu().double().sum(dim=0) / n_images).tolist())


def run_epoch(model, data, optimizer, average=None, steps=(None, None)):
    """Train on data[0], validate on data[1]; returns both passes' averages, (Nats, Nats).

    With an `average`, its weights are the ones validated. Not so with protocol 'report': there the validation pass steps the
    optimiser as well, because the report never left training mode, and its number describes images being trained on.
    `steps` are those of `epoch_iter` for training and for validating, if they are not the default ones.
    """
    train, val = data
    to_train, to_evaluate = steps
    train_nats = epoch_iter(model.train(), train, optimizer, average, to_train)
    if model.protocol == 'report':
        return train_nats, epoch_iter(model, val, optimizer, average, to_train)
    return train_nats, evaluate(model if average is None else average.model, val, steps=to_evaluate)


def evaluate(model, data, seed=0, steps=None):
    """Averages over the whole split, as Nats, without touching the weights or the run's random numbers."""
    device = model.decoder.output.bias.device
    with training.separate_random_numbers(seed, device):
        return epoch_iter(model.eval(), data, optimizer=None, steps=steps)


@torch.no_grad()
def log_importance_weights(model, input, n_samples):
    """log p(x, z) / q(z|x) in nats, for n_samples draws of z from q(z|x) for each image: [batch, n_samples].

    Their average bounds log p(x) from below (the ELBO), and so does the log of the average of k of them, the tighter the
    larger k is (Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, Equation 8 and Theorem 1).
    """
    mean, log_std = (parameter[:, None] for parameter in model.encoder(input))
    eps = torch.randn(len(input), n_samples, model.z_dim, device=input.device)
    z = mean + log_std.exp() * eps
    logits = model.decoder.logits(z)
    # -neg_log_likelihood as x l - log(1 + e^l): logaddexp is the fastest form of the latter without a gradient.
    log_likelihood = (torch.einsum('bsd,bd->bs', logits, input)
                      - torch.logaddexp(logits, logits.new_zeros(())).sum(dim=2))
    return log_likelihood + (0.5 * (eps.square() - z.square()) + log_std).sum(dim=2)


def importance_weighted(model, images, n_samples, chunk=4096):
    """-log p(x) of binary images [n, 784] by importance sampling, at most `chunk` rows of images at a time, as a dict:

    the estimate with n_samples draws an image and the standard error of its mean over the images, the negative ELBO of
    the same draws, the gap between the two, all in nats, and n_samples.
    """
    elbos, log_px = [], []
    for rows in images.split(max(1, chunk // n_samples)):
        log_weights = torch.cat([log_importance_weights(model, rows, min(chunk, n_samples - start))
                                 for start in range(0, n_samples, chunk)], dim=1).double()
        elbos.append(log_weights.mean(dim=1))
        log_px.append(torch.logsumexp(log_weights, dim=1) - math.log(n_samples))
    elbo, log_px = torch.cat(elbos), torch.cat(log_px)
    return {'neg_log_px_nats': -log_px.mean().item(),
            'standard_error_nats': (log_px.std() / math.sqrt(len(log_px))).item(),
            'neg_elbo_nats': -elbo.mean().item(), 'gap_nats': (log_px - elbo).mean().item(), 'importance_samples': n_samples}


@torch.no_grad()
def latent_measures(model, images):
    """How the latent space is used by binary images [n, 784], as a dict: the number of active units, those whose mean varies over
    the images with a variance above 0.01 (Burda et al. 2016, Section 5.2), and the two parts of the average KL in nats,

        E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z)),    q(z) = E_x q(z|x)

    (Hoffman & Johnson, "ELBO surgery", 2016). Here x is one of these n images, each as probable as the others, and q(z) the
    mixture over them; so I(x; z) is at most log n (9.21 for 10,000), and most of the rest of a larger KL is the price of n being finite.
    """
    mean, log_std = (parameter.double() for parameter in model.encoder(images))
    z = mean + log_std.exp() * torch.randn_like(mean)
    precision = torch.exp(-2 * log_std)
    constant = (mean.square() * precision + 2 * log_std + math.log(2 * math.pi)).sum(dim=1)
    # log q(z_i | x_j) for all pairs: the square multiplied out, so that it is two matrix products.
    log_q_z = torch.cat([torch.logsumexp(-0.5 * (rows.square() @ precision.T - 2 * rows @ (mean * precision).T + constant), dim=1)
                         for rows in z.split(1000)]) - math.log(len(images))
    log_q_z_given_x = -0.5 * (((z - mean) * torch.exp(-log_std)).square() + 2 * log_std + math.log(2 * math.pi)).sum(dim=1)
    information = (log_q_z_given_x - log_q_z).mean().item()
    return {'active_units': (mean.var(dim=0) > 0.01).sum().item(), 'mutual_information_nats': information,
            'marginal_kl_nats': kl_divergence(mean, log_std).mean().item() - information}


def save_elbo_plot(train_curve, val_curve, filename, references=(), report_curve=None, title=None):
    """Write the curves of negative ELBO per epoch to `filename` (PNG, and PDF beside it).

    A curve is a list of nats per epoch, or one such list per seed.
    """
    curves = {'training': (figures.TRAIN, train_curve), 'validation': (figures.VALIDATION, val_curve)}
    if report_curve is not None:
        curves['validation as the report counts (no bound)'] = (figures.THIRD, report_curve)
    figures.save_curves(filename, {label: (colour, range(1, np.shape(curve)[-1] + 1), curve)
                                   for label, (colour, curve) in curves.items()},
                        'epoch', 'negative ELBO (nats per image)', references, title=title)


# Grading and command line

def graded(args, history, results):
    """The graded table's rows, from the lines of `metrics.jsonl` and the further results of `result.json`, if any."""
    report_model = args.zdim == 20 and args.hidden_dim == 500
    fixed_bits = args.binarize in ('static', 'larochelle')
    epoch, reference, _ = REFERENCES[args.protocol]
    quantity, key = {'standard': ('validation negative ELBO', 'val_neg_elbo_nats'),
                     'report': ('the report\'s "ELBO" (not a bound)', 'val_report_nats')}[args.protocol]
    value = next((line[key] for line in history if line['epoch'] == epoch), None)
    rows = [runs.grade(quantity, 'nats', epoch, value, reference, comparable=report_model and fixed_bits)]
    if args.protocol == 'standard':
        epoch, bar = LOG_PX_BAR
        value = results.get('likelihood', {}).get('neg_log_px_nats') if history[-1]['epoch'] >= epoch else None
        rows.append(runs.grade('test -log p(x), importance-weighted', 'nats', epoch, value, bar,
                               comparable=report_model and fixed_bits))
    return rows


def main(args):
    if args.evaluate is not None:
        return evaluate_run(args)
    device = training.select_device(args.device)
    train, val, test = bmnist(args.data_dir, args.batch_size, device, args.binarize)
    torch.manual_seed(args.seed)
    model = VAE(args.hidden_dim, args.zdim, args.protocol).to(device)
    optimizer = training.adam(model, args.lr, device, args.no_graph)
    average = training.WeightAverage(model, args.ema_decay)
    steps = (training.steps_on(device, partial(train_step, model, optimizer), model, optimizer, no_graph=args.no_graph),
             training.steps_on(device, partial(evaluation_step, average.model), no_graph=args.no_graph))

    run = runs.Run(args, device, model=model, average=average, optimizer=optimizer, random=training.RandomState(device))

    def save_pictures(epoch):
        with training.separate_random_numbers(args.seed, device):
            save_samples(average.model, run.folder / f'samples_{epoch:03d}.png', f'epoch {epoch}')
        if args.zdim == 2:
            figures.save_grid(run.folder / f'manifold_{epoch:03d}.png',
                              {f'epoch {epoch}: z1 left to right, z2 bottom to top': manifold(average.model).cpu()}, 20)

    def save_curves():
        epoch, nats, whose = REFERENCES[args.protocol]
        save_elbo_plot([line['train_neg_elbo_nats'] for line in run.history],
                       [line['val_neg_elbo_nats'] for line in run.history], run.folder / 'elbo.png',
                       [(epoch, nats, f'{whose}, {nats:.2f}')],
                       [line['val_report_nats'] for line in run.history] if args.protocol == 'report' else None)

    if run.count == 0:
        save_pictures(0)
    with (run.ending_with(save_curves),
          training.progress_bar(args.epochs * len(train), run.count * len(train)) as bar):
        for epoch in range(run.count + 1, args.epochs + 1):
            bar.set_description(f'epoch {epoch}/{args.epochs}', refresh=False)
            started = time.perf_counter()
            train_nats, val_nats = run_epoch(model, (training.counted(train, bar), val), optimizer, average, steps)
            run.log(epoch=epoch, train_neg_elbo_nats=train_nats.neg_elbo,
                    **{f'val_{term}_nats': value for term, value in val_nats._asdict().items()},
                    seconds=round(time.perf_counter() - started, 3))
            bar.set_postfix_str(f' validation {val_nats.neg_elbo:.2f} nats', refresh=False)
            if epoch in (1, 5, 10, args.epochs) or epoch % 20 == 0:
                save_pictures(epoch)
            run.save_checkpoint(last=epoch == args.epochs)

    with run.resumable():
        finish(args, average.model, val, test, run.folder, run.history)


def finish(args, model, val, test, folder, history):
    """Evaluate a trained model on the test split, and write and print the results.

    What args leave out is kept as an earlier evaluation left it.
    """
    device = test.images.device
    results = runs.read_results(folder) | {
        'test': {f'{term}_nats': value for term, value in evaluate(model, test)._asdict().items()}}
    with training.separate_random_numbers(args.seed, device):
        results['latent'] = latent_measures(model, test.images.float())
        if args.importance_samples:
            print(f'estimating the likelihood of the test split with {args.importance_samples:,} draws of z an image')
            results['likelihood'] = importance_weighted(model, test.images.float(), args.importance_samples)
        if args.quality_samples:
            draws, means = model.sample(args.quality_samples)
            other_real, real = evaluation.grey_digits(device)
            judge = evaluation.load_classifier(device)
            results['quality_of_means'] = evaluation.sample_quality(means, real, other_real, *judge)
            # Draws are bits: they are compared with bits.
            results['quality_of_draws'] = evaluation.sample_quality(draws, test.images.float(), val.images.float(), *judge)
    runs.finish(folder, graded(args, history, results), 'epoch', results)
    if args.protocol == 'report':
        print('the report\'s accounting is no bound on log p(x), and its validation images were trained on: '
              'compare it with nothing but the report')


def evaluate_run(args):
    """Evaluate the finished run in the folder args.evaluate anew."""
    device = training.select_device(args.device)
    _, val, test = bmnist(args.data_dir, args.batch_size, device, args.binarize)
    model = VAE(args.hidden_dim, args.zdim, args.protocol).to(device)
    history = runs.load_run(args.evaluate, Path(__file__).name, lambda checkpoint: model.load_state_dict(
        checkpoint['average']['model']))
    finish(args, model.eval(), val, test, Path(args.evaluate), history)


def parse_args(argv=None):
    number = training.number
    parser = training.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=number(int, at_least=1), default=100, help='passes over the training images')
    parser.add_argument('--zdim', type=number(int, at_least=1), default=20, help='dimensions of the latent space')
    parser.add_argument('--hidden_dim', type=number(int, at_least=1), default=500, help='units of each hidden layer')
    parser.add_argument('--batch_size', type=number(int, at_least=1), default=128, help='images in a step')
    parser.add_argument('--lr', type=number(float, above=0), default=1e-3, help='learning rate of Adam')
    parser.add_argument('--binarize', choices=BINARIZATIONS, default='static', help='how grey pixels become bits')
    parser.add_argument('--protocol', choices=REFERENCES, default='standard', help='report: train and count as the report '
                        'did, to explain its 79.458; the number is not a bound')
    parser.add_optional_argument('--ema_decay', type=number(float, at_least=0, below=1), help='evaluate an exponential '
                                 'moving average of the weights with this decay per step; 0 for none (default: 0.999, '
                                 'with --protocol report 0)')
    parser.add_argument('--importance_samples', type=number(int, at_least=0), default=5000, help='draws of z an image for '
                        'log p(x) of the test split at the end; 0 for none')
    parser.add_common_arguments()
    args = parser.parse_args(argv)
    if args.ema_decay is None:
        args.ema_decay = 0.0 if args.protocol == 'report' else 0.999
    if args.out is None:
        variant = [word for word in (args.binarize, args.protocol) if word not in ('static', 'standard')]
        args.out = '-'.join([f'runs/vae-z{args.zdim}', *variant, f'seed{args.seed}'])
    return args


if __name__ == '__main__':
    training.run_script(main, parse_args)
