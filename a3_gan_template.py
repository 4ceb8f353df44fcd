"""A generative adversarial network on MNIST (Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014).

A generator maps latents z ~ N(0, I) to images; a discriminator D computes the probability that an image is real. With
targets a for real and b for generated images, their losses (binary cross-entropy H(t, D) = -t log D - (1 - t) log(1 - D),
non-saturating for the generator) are, in nats,

    discriminator: E_real H(a, D(x)) + E_z H(b, D(G(z)))        generator: -E_z log D(G(z)).

For densities p of real and q of generated images the best discriminator is D = (a p + b q) / (p + q). Where the generator
has won, q = p, it is (a + b) / 2 everywhere, and the losses are -log D for the generator, H(a, D) + H(b, D) for the
discriminator:

    one-sided smoothing   a = 0.9, b = 0    D = 0.45    generator 0.80    discriminator 1.38
    smoothing both        a = 0.9, b = 0.1  D = 0.50    generator 0.69    discriminator 1.39
    (no smoothing         a = 1,   b = 0    D = 0.50    generator 0.69    discriminator 1.39 = -V, V(D, G) = -log 4)

The report's text describes the first, its computation is the second (`--protocol report`). Neither gets to its equilibrium:
while D still tells some images apart, the generator's loss stays above it and the discriminator's below. On the way there the
falling and the rising curve cross, near the 1.15 at which the report sees them meet (here at batch 95,000 and 48,500).

    python a3_gan_template.py

Seed 0 averages 1.18 (generator) and 1.20 nats (discriminator), D 0.54 on real and 0.36 on generated images, over the last tenth of
187,500 batches, at about 12 ms a batch on two cores of an AMD EPYC.
"""

import itertools
import math
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluation
import figures
import runs
import training
from datasets import N_PIXELS, Stream, mnist

REFERENCE_BATCHES = 187_500  # the report's 200 epochs of 60,000 images in batches of 64
REFERENCE_LOSS = 1.15  # where the report's losses meet
PARZEN_REFERENCE = 225.0  # nats: Goodfellow et al. 2014, Table 1 (225 +- 2)
PICTURES = (1, 99_000)  # batches of the report's Figures 9 and 11
PICTURE_EVERY = 10_000  # of its Figure 10; its Figure 12 is of the last
PROTOCOLS = ('standard', 'report')
GRADED_FRACTION = 0.1  # the graded averages are over the last tenth of the batches
N_DIVERSITY = 10_000  # samples in which repeats and collapse are looked for


# Model

class Generator(nn.Module):
    """Latents [batch, latent_dim] -> images [batch, 784] with values in [-1, 1]."""

    def __init__(self, latent_dim=100):
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 128), nn.LeakyReLU(0.2),
            nn.Linear(128, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
            nn.Linear(256, 512), nn.BatchNorm1d(512), nn.LeakyReLU(0.2),
            nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2),
            nn.Linear(1024, N_PIXELS), nn.Tanh())

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    """Images [batch, 784] in [-1, 1] -> the probability [batch, 1] that each is real."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(N_PIXELS, 512), nn.LeakyReLU(0.2),
            nn.Linear(512, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 1))

    def logits(self, images):
        """Log odds of being real, [batch]: the losses are computed from these, never from log(probability)."""
        return self.layers(images).squeeze(1)

    def forward(self, images):
        return torch.sigmoid(self.layers(images))


# Objective

def discriminator_loss(logits_real, logits_fake, real_label=0.9, fake_label=0.0):
    """H(real_label, D(x)) + H(fake_label, D(G(z))) in nats, for pairs of a real and a generated image: [batch].

    Goodfellow et al. 2014, Equation 1, negated, with the labels smoothed (Salimans et al., NeurIPS 2016, Section 3.4).
    """
    return (F.binary_cross_entropy_with_logits(logits_real, torch.full_like(logits_real, real_label), reduction='none')
            + F.binary_cross_entropy_with_logits(logits_fake, torch.full_like(logits_fake, fake_label), reduction='none'))


def generator_loss(logits_fake):
    """-log D(G(z)) in nats: [batch]. The non-saturating loss (Goodfellow et al. 2014, Section 3)."""
    return F.softplus(-logits_fake)


def equilibrium(real_label, fake_label):
    """(D, generator loss, discriminator loss) where generated images cannot be told from real ones (see above)."""
    d = (real_label + fake_label) / 2
    entropy = sum(-label * math.log(d) - (1 - label) * math.log(1 - d) for label in (real_label, fake_label))
    return d, -math.log(d), entropy


# Sampling

def sample_latents(n_samples, latent_dim, device=None):
    """Draws from the prior N(0, I): [n_samples, latent_dim]."""
    return torch.randn(n_samples, latent_dim, device=device)


@torch.no_grad()
def generate(generator, z):
    """Images [n, 784] in [0, 1] for latents [n, latent_dim], with the batch-norm statistics of training."""
    training_mode = generator.training
    images = (generator.eval()(z) + 1) / 2
    generator.train(training_mode)
    return images


def interpolate(z_first, z_last, n_steps=7):
    """The straight line between two latents [latent_dim], endpoints included: [n_steps + 2, latent_dim]."""
    weights = torch.linspace(0, 1, n_steps + 2, device=z_first.device)[:, None]
    return (1 - weights) * z_first + weights * z_last


def most_different(generator, n_candidates=200):
    """Two latents whose images are farthest apart among n_candidates draws: [latent_dim] each."""
    z = sample_latents(n_candidates, generator.latent_dim, next(generator.parameters()).device)
    images = generate(generator, z)
    first, last = divmod(torch.cdist(images, images).argmax().item(), n_candidates)
    return z[first], z[last]


def diversity(images):
    """(mean Euclidean distance of two different images, number of images that repeat an earlier one).

    Args:
        images: [n, 784] in [0, 1]; they repeat if they are the same in 8 bits a pixel.
    """
    n = len(images)
    total = sum(torch.cdist(rows, images).sum().item() for rows in images.split(1000))
    return total / (n * (n - 1)), n - len((images * 255).round().unique(dim=0))


# Training and evaluation

def update_discriminator(discriminator, optimizer, real, fake, real_label, fake_label):
    """One step on real images and generated ones [batch, 784]; returns (losses, D(real), D(fake)), each [batch].

    The generator needs no gradient here, and gets none: `fake` is detached from it.
    """
    logits_real, logits_fake = discriminator.logits(torch.cat([real, fake.detach()])).chunk(2)
    losses = discriminator_loss(logits_real, logits_fake, real_label, fake_label)
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    return losses.detach(), torch.sigmoid(logits_real.detach()), torch.sigmoid(logits_fake.detach())


def update_generator(discriminator, optimizer, fake):
    """One step on generated images [batch, 784] that still carry their graph; returns the losses, [batch].

    They can be the images the discriminator has just been updated on: the graph through the generator is still valid, because
    only the discriminator's weights have changed since. (The report updates the generator first and keeps its graph for the
    discriminator's backward pass; PyTorch refuses that now, since the weights in that graph have changed.)
    """
    discriminator.requires_grad_(False)  # gradients flow through it, none is computed for its weights
    losses = generator_loss(discriminator.logits(fake))
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    discriminator.requires_grad_(True)
    return losses.detach()


def train_batch(generator, discriminator, optimizers, real, real_label=0.9, fake_label=0.0):
    """Both updates from one generator pass; returns the batch averages (g_loss, d_loss, d_real, d_fake) as a tensor [4]."""
    fake = generator(sample_latents(len(real), generator.latent_dim, real.device))
    d_losses, d_real, d_fake = update_discriminator(discriminator, optimizers[1], real, fake, real_label, fake_label)
    g_losses = update_generator(discriminator, optimizers[0], fake)
    return torch.stack([g_losses, d_losses, d_real, d_fake]).mean(dim=1)


def save_loss_plot(batches, g_losses, d_losses, filename, real_label=0.9, fake_label=0.0, title=None):
    """Write both losses over batches to `filename` (PNG, and PDF beside it), with the report's and the theoretical levels.

    The losses are lists of nats, or one such list per seed.
    """
    _, g_level, d_level = equilibrium(real_label, fake_label)
    figures.save_curves(filename, {'generator': (figures.TRAIN, batches, g_losses),
                                   'discriminator': (figures.VALIDATION, batches, d_losses)},
                        'batch', 'loss (nats)', inset=False, title=title, levels=[
                            (REFERENCE_LOSS, figures.REFERENCE, f'both, the report {REFERENCE_LOSS}'),
                            (g_level, figures.TRAIN, f'generator at equilibrium {g_level:.2f}'),
                            (d_level, figures.VALIDATION, f'discriminator at equilibrium {d_level:.2f}')])


# Grading and command line

def graded(args, history, results):
    """The graded table's rows, from the lines of `metrics.jsonl` and the further results of `result.json`, if any.

    Losses and probabilities are averages over the last tenth of the batches.
    """
    last = history[-1]['batch']
    tail = [line for line in history if line['batch'] > (1 - GRADED_FRACTION) * last]
    at, reached = REFERENCE_BATCHES, last >= REFERENCE_BATCHES
    labels = (0.9, 0.1) if args.protocol == 'report' else (0.9, 0.0)
    comparable = (args.latent_dim, args.batch_size, args.real_label, args.fake_label) == (100, 64, *labels)

    def grade(quantity, unit, at, value, reference, passes=None):
        """`passes(value)` says whether a value does that is there; None is at most the reference."""
        rows.append(runs.grade(quantity, unit, at, value, reference, comparable,
                               None if value is None or passes is None else passes(value)))

    mean = {key: sum(line[key] for line in tail) / len(tail) if reached else None
            for key in ('g_loss', 'd_loss', 'd_real', 'd_fake')}
    rows = []
    if args.protocol == 'report':
        for name, key in (('generator loss', 'g_loss'), ('discriminator loss', 'd_loss')):
            grade(f'{name}, 0.9 to 1.5', 'nats', at, mean[key], REFERENCE_LOSS, lambda loss: 0.9 <= loss <= 1.5)
        grade('distance of the two losses, at most', 'nats', at,
              abs(mean['g_loss'] - mean['d_loss']) if reached else None, 0.35)
    else:
        grade('D on real images, at most', 'probability', at, mean['d_real'], 0.80)
        grade('D on generated images, at least', 'probability', at, mean['d_fake'], 0.10, lambda d: d >= 0.10)
    samples = results.get('samples', {})
    ratio = samples['mean_distance'] / samples['mean_distance_real'] if samples else None
    grade('mean distance of two samples over real, at least', 'ratio', last, ratio, 0.85, lambda ratio: ratio >= 0.85)
    grade(f'repeats in {N_DIVERSITY:,} samples, at most', 'images', last, samples.get('repeats'), 0)
    if quality := results.get('quality'):
        grade('Parzen log-likelihood of the test split, at least', 'nats', last, quality['parzen_nats'], PARZEN_REFERENCE,
              lambda nats: nats >= PARZEN_REFERENCE)
        grade('the rarest digit, at least', 'share', last, quality['smallest_class'], 0.04, lambda share: share >= 0.04)
        grade('the commonest digit, at most', 'share', last, quality['largest_class'], 0.20)
    return rows


def main(args):
    if args.generate is not None:
        return generate_from_run(args)
    if args.evaluate is not None:
        return evaluate_run(args)
    device = training.select_device(args.device)
    train, val, test = mnist(args.data_dir, args.batch_size, device)
    batches = Stream(torch.cat([train.images, val.images]), args.batch_size)  # a GAN needs no validation split
    n_batches = args.n_epochs * batches.n_images // args.batch_size
    if n_batches == 0:
        raise runs.UserError(f'--batch_size {args.batch_size}: {args.n_epochs} epochs have fewer images')
    torch.manual_seed(args.seed)
    generator, discriminator = Generator(args.latent_dim).to(device), Discriminator().to(device)
    optimizers = [training.adam(model, args.lr, device, args.no_graph) for model in (generator, discriminator)]
    steps = training.steps_on(device, partial(train_batch, generator, discriminator, optimizers, real_label=args.real_label,
                                              fake_label=args.fake_label),
                              generator, discriminator, *optimizers, no_graph=args.no_graph)
    with training.separate_random_numbers(args.seed, device):
        fixed_latents = sample_latents(25, args.latent_dim, device)

    run = runs.Run(args, device, generator=generator, discriminator=discriminator, generator_optimizer=optimizers[0],
                   discriminator_optimizer=optimizers[1], batches=batches, random=training.RandomState(device))

    def save_curves():
        save_loss_plot([line['batch'] for line in run.history], [line['g_loss'] for line in run.history],
                       [line['d_loss'] for line in run.history], run.folder / 'loss.png', args.real_label, args.fake_label)

    def next_stop(batch):
        """The batch after which there is next something to write."""
        multiples = [(batch // every + 1) * every for every in (PICTURE_EVERY, args.save_interval)]
        return min(stop for stop in (*PICTURES, *multiples, n_batches) if stop > batch)

    averages = []
    started = time.perf_counter()
    with run.ending_with(save_curves), training.progress_bar(n_batches, run.count) as bar:
        batch = run.count
        while batch < n_batches:
            first, batch = batch, next_stop(batch)
            real = (grey / 127.5 - 1 for grey in training.counted(itertools.islice(batches, batch - first), bar))
            averages += [batch_averages for _, batch_averages in steps(real)]
            if batch in PICTURES or batch % PICTURE_EVERY == 0 or batch == n_batches:
                figures.save_grid(run.folder / f'samples_{batch:06d}.png',
                                  {f'batch {batch:,}': generate(generator, fixed_latents).cpu()}, n_columns=5)
            if batch % args.save_interval == 0 or batch == n_batches:
                means = torch.stack(averages).mean(dim=0).tolist()  # the one place where the host waits for the device
                run.log(batch=batch, **dict(zip(('g_loss', 'd_loss', 'd_real', 'd_fake'), means)),
                        seconds=round(time.perf_counter() - started, 3))
                bar.set_description(f'batch {batch:,}/{n_batches:,}', refresh=False)
                bar.set_postfix_str(f' generator {means[0]:.2f}, discriminator {means[1]:.2f} nats', refresh=False)
                run.save_checkpoint(last=batch == n_batches)
                started, averages = time.perf_counter(), []

    with run.resumable():
        finish(args, generator, test, run.folder, run.history)


def finish(args, generator, test, folder, history):
    """Draw the last pictures and evaluate the samples of a trained generator; write and print the results.

    What args leave out is kept as an earlier evaluation left it.
    """
    device = test.images.device
    real = test.images.float() / 255
    with training.separate_random_numbers(args.seed + 1, device):
        save_final_pictures(generator, folder)
        samples = generate(generator, sample_latents(N_DIVERSITY, args.latent_dim, device))
        mean_distance, repeats = diversity(samples)
        results = runs.read_results(folder) | {
            'samples': {'mean_distance': mean_distance, 'repeats': repeats, 'mean_distance_real': diversity(real)[0]}}
        if args.quality_samples:
            images = generate(generator, sample_latents(args.quality_samples, args.latent_dim, device))
            other_real, _ = evaluation.grey_digits(device)
            results['quality'] = evaluation.sample_quality(images, real, other_real, *evaluation.load_classifier(device))
    runs.finish(folder, graded(args, history, results), 'batch', results)


def evaluate_run(args):
    """Evaluate the finished run in the folder args.evaluate anew."""
    device = training.select_device(args.device)
    _, _, test = mnist(args.data_dir, args.batch_size, device)
    generator, history = load_generator(args.evaluate)
    finish(args, generator.to(device), test, Path(args.evaluate), history)


def save_final_pictures(generator, folder):
    """Fresh samples, the report's interpolation, and one between two latents of visibly different images."""
    device = next(generator.parameters()).device
    fresh = generate(generator, sample_latents(25, generator.latent_dim, device))
    figures.save_grid(folder / 'samples_fresh.png', {'fresh latents': fresh.cpu()}, n_columns=5)
    end = torch.full((generator.latent_dim,), 0.9, device=device)
    for name, title, ends in (('interpolation_report.png', 'every element from -0.9 to 0.9', (-end, end)),
                              ('interpolation_pair.png', 'between the two most different of 200 draws',
                               most_different(generator))):
        figures.save_grid(folder / name, {title: generate(generator, interpolate(*ends)).cpu()}, n_columns=9)


def load_generator(folder):
    """(generator, lines of metrics) of the run in this folder."""
    def load(checkpoint):
        nonlocal generator
        generator = Generator(checkpoint['generator']['layers.0.weight'].shape[1])
        generator.load_state_dict(checkpoint['generator'])

    generator = None
    history = runs.load_run(folder, Path(__file__).name, load)
    return generator, history


def generate_from_run(args):
    """Draw args.n fresh images from the run in folder args.generate, to a PNG in it."""
    device = training.select_device(args.device)
    generator, history = load_generator(args.generate)
    batch = history[-1]['batch'] if history else 0
    generator.to(device)
    torch.manual_seed(args.seed)
    images = generate(generator, sample_latents(args.n, generator.latent_dim, device))
    filename = Path(args.generate) / f'generated_n{args.n}_seed{args.seed}.png'
    figures.save_grid(filename, {f'batch {batch:,}': images.cpu()}, n_columns=math.ceil(math.sqrt(args.n)))
    print(filename)


def parse_args(argv=None):
    number = training.number
    parser = training.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n_epochs', type=number(int, at_least=1), default=200, help='passes over the 60,000 images')
    parser.add_argument('--latent_dim', type=number(int, at_least=1), default=100, help='dimensions of the latent space')
    parser.add_argument('--batch_size', type=number(int, at_least=1), default=64, help='images in a batch')
    parser.add_argument('--lr', type=number(float, above=0), default=2e-4, help='learning rate of both Adams')
    parser.add_argument('--save_interval', type=number(int, at_least=1), default=500, help='batches per line of '
                        'metrics.jsonl, which holds their averages')
    parser.add_argument('--protocol', choices=PROTOCOLS, default='standard', help='report: smooth the fake label as well, '
                        'as the report\'s curve was computed')
    parser.add_argument('--real_label', type=number(float, above=0, at_most=1), default=0.9, help='the discriminator\'s '
                        'target for real images')
    parser.add_optional_argument('--fake_label', type=number(float, at_least=0, below=1), help='its target for generated '
                                 'images (default: 0, with --protocol report 0.1)')
    parser.add_optional_argument('--generate', metavar='RUN', help='draw images from this run folder, without training')
    parser.add_argument('--n', type=number(int, at_least=1), default=100, help='images to draw with --generate')
    parser.add_common_arguments()
    args = parser.parse_args(argv)
    if args.batch_size == 1:
        parser.error('--batch_size 1: batch norm needs the variance of a batch, so of at least 2 images')
    if args.fake_label is None:
        args.fake_label = 0.1 if args.protocol == 'report' else 0.0
    if args.out is None:
        args.out = f'runs/gan-{"report-" if args.protocol == "report" else ""}seed{args.seed}'
    return args


if __name__ == '__main__':
    training.run_script(main, parse_args)
