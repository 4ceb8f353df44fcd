"""A generative adversarial network on MNIST (Goodfellow et al., NeurIPS 2014).

"Generative adversarial nets": a generator G maps latents z ~ N(0, I) to images. A discriminator D
computes the probability that an image is real. With targets a for real and b for generated images
and the binary cross-entropy H(t, D) = -t log D - (1 - t) log(1 - D), the losses are, in nats,

    discriminator: E_x H(a, D(x)) + E_z H(b, D(G(z)))       generator: -E_z log D(G(z)).

For densities p of real and q of generated images the best discriminator is (a p + b q) / (p + q).
At the equilibrium q = p, so D = (a + b) / 2; the discriminator's loss is H(a, D) + H(b, D), and the
generator's is -log D. By default only the real target is smoothed, as the text of the course report
(2019, see README) says. `--protocol report` smooths both, as its code did.

The networks are the assignment's, not the paper's: G has batch normalisation, and D is a plain MLP
without the paper's maxout units and dropout. Both are trained by Adam with its usual beta1 = 0.9
(the paper: SGD with momentum; DCGAN: Adam with 0.5).

    python a3_gan_template.py

It takes one and a half hours on two cores of an AMD EPYC (Zen 3). Expected, mean of three seeds
over the last tenth of 187,500 batches, and in brackets the equilibrium, which D's remaining
advantage keeps out of reach:

    targets                generator loss     discriminator loss
    a = 0.9, b = 0         1.18  (0.80)       1.20  (1.38)
    a = 0.9, b = 0.1       0.98  (0.69)       1.24  (1.39)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import Stream, mnist
from harness import (
    Curves,
    Run,
    RunConfig,
    adam,
    captured,
    cli,
    latent,
    sample_quality,
    separate_random_numbers,
)

METRICS = ("g_loss", "d_loss", "d_real", "d_fake")  # of a step; D's are from before its update
PICTURES = (1, 99_000)  # batches that the report shows
PICTURE_EVERY = 10_000  # batches
N_DIVERSITY = 10_000  # samples in which repeats and collapse are looked for


# --- Settings
@dataclass
class Config(RunConfig):
    """A generative adversarial network on MNIST (Goodfellow et al., NeurIPS 2014)."""

    NAME = "gan"
    SCRIPT = "a3_gan_template.py"
    EXAMPLE = "python a3_gan_template.py --n_epochs 50 --seed 1"
    REPORT = {"fake_label": 0.1}  # the report smoothed both targets

    latent_dim: int = 100  # dimensions of the latent space

    n_epochs: int = 200  # passes over the training images
    batch_size: int = 64  # images per batch
    lr: float = 2e-4  # learning rate of both Adams
    real_label: float = 0.9  # target of D for real images (smoothed: Salimans et al. 2016)
    fake_label: float = 0.0  # target of D for generated images
    save_interval: int = 500  # batches averaged in a line of metrics, and between checkpoints

    def __post_init__(self):
        super().__post_init__()
        for name in ("latent_dim", "n_epochs", "save_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 2 <= self.batch_size <= 60_000:  # batch norm needs 2; MNIST's pass has 60,000 images
            raise ValueError(f"--batch_size must be 2 to 60000, not {self.batch_size}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, not {self.lr}")
        if not 0 <= self.fake_label < self.real_label <= 1:
            raise ValueError("--fake_label must be below --real_label, both from 0 to 1")


# --- Model
class Generator(nn.Module):
    """Latents [batch, latent_dim] -> images [batch, n_pixels] with values in [-1, 1]."""

    def __init__(self, latent_dim=100, n_pixels=784):
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 256),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 512),
            nn.BatchNorm1d(512),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 1024),
            nn.BatchNorm1d(1024),
            nn.LeakyReLU(0.2),
            nn.Linear(1024, n_pixels),
            nn.Tanh(),
        )

    def forward(self, z):
        """Images."""
        return self.layers(z)

    def sample(self, n_samples):
        """Draw images [n_samples, n_pixels] in [0, 1]."""
        device = next(self.parameters()).device
        return generate(self, sample_latents(n_samples, self.latent_dim, device))


class Discriminator(nn.Module):
    """Images [batch, n_pixels] in [-1, 1] -> the probability [batch, 1] that each is real."""

    def __init__(self, n_pixels=784):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_pixels, 512),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 1),
        )

    def logits(self, images):
        """Log odds of being real, [batch].

        The losses are computed from these: in float32 the sigmoid rounds to 1 at a logit of about
        17, and log(1 - 1) is -inf.
        """
        return self.layers(images).squeeze(1)

    def forward(self, images):
        """Probabilities."""
        return torch.sigmoid(self.layers(images))


def sample_latents(n_samples, latent_dim, device=None):
    """Draws from the prior N(0, I): [n_samples, latent_dim]."""
    return torch.randn(n_samples, latent_dim, device=device)


@torch.no_grad()
def generate(generator, z):
    """Images [n, n_pixels] in [0, 1] for latents [n, latent_dim]; batch norm in evaluation mode."""
    training_mode = generator.training
    images = (generator.eval()(z) + 1) / 2
    generator.train(training_mode)
    return images


# --- Objective
def discriminator_loss(logits_real, logits_fake, real_label=0.9, fake_label=0.0):
    """H(real_label, D(x)) + H(fake_label, D(G(z))) in nats, [batch].

    With labels 1 and 0 its mean estimates -V(D, G) (Goodfellow et al. 2014, Equation 1).
    """
    logits = torch.stack([logits_real, logits_fake])
    targets = torch.full_like(logits, real_label)
    targets[1] = fake_label
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=0)


def generator_loss(logits_fake):
    """-log D(G(z)) in nats, [batch]: the non-saturating loss (Goodfellow 2014, Section 3)."""
    return F.softplus(-logits_fake)


def equilibrium(real_label, fake_label):
    """(D, generator loss, discriminator loss) where generated images look just like real ones."""
    d = (real_label + fake_label) / 2
    d_loss = sum(-t * math.log(d) - (1 - t) * math.log(1 - d) for t in (real_label, fake_label))
    return d, -math.log(d), d_loss


# --- Training
def train_step(generator, discriminator, optimizers, labels, real):
    """Update D, then G, on real images [batch, n_pixels]; returns the averages of METRICS, [4]."""
    g_optimizer, d_optimizer = optimizers
    fake = generator(sample_latents(len(real), generator.latent_dim, real.device))
    images = torch.cat([real, fake.detach()])  # no gradient for G
    logits_real, logits_fake = discriminator.logits(images).chunk(2)
    d_losses = discriminator_loss(logits_real, logits_fake, *labels)
    d_optimizer.zero_grad()
    d_losses.mean().backward()
    d_optimizer.step()

    # Algorithm 1 of the paper draws new latents here. The same images serve: G has not changed.
    discriminator.requires_grad_(False)  # gradients flow through it, not into it
    g_losses = generator_loss(discriminator.logits(fake))
    g_optimizer.zero_grad()
    g_losses.mean().backward()
    g_optimizer.step()
    discriminator.requires_grad_(True)
    averages = g_losses, d_losses, torch.sigmoid(logits_real), torch.sigmoid(logits_fake)
    return torch.stack(averages).detach().mean(dim=1)


# --- Evaluation
def test_results(config, generator):
    """Results of a trained generator, compared with the test split: dicts of numbers, by name."""
    samples = generator.sample(N_DIVERSITY)
    results = {"samples": sample_quality.diversity(samples, config.data)}
    if n := config.quality_samples:
        results["quality"] = sample_quality.measure(generator.sample(n), config.data)
    return results


# --- Pictures
def save_final_pictures(run, generator):
    """Write new samples, the report's interpolation, and one between two very different images."""
    run.save_grid("samples_fresh", {"samples": generator.sample(25)}, "fresh latents")
    end = torch.full((generator.latent_dim,), 0.9, device=run.device)
    line = generate(generator, latent.interpolate(-end, end))
    run.save_grid("interpolation_report", {"line": line}, "all elements -0.9 to 0.9", 9)
    z = sample_latents(200, generator.latent_dim, run.device)
    pair = z[latent.farthest_pair(generate(generator, z))]
    line = generate(generator, latent.interpolate(*pair))
    caption = "between the two most different of 200 draws"
    run.save_grid("interpolation_pair", {"line": line}, caption, 9)


def loss_curves(real_label, fake_label):
    """The plot of both losses by batch, with their levels at the equilibrium."""
    _, g_level, d_level = equilibrium(real_label, fake_label)
    return Curves(
        "loss",
        "loss (nats)",
        {"g_loss": "generator", "d_loss": "discriminator"},
        counter="batch",
        levels=(
            (g_level, f"generator at equilibrium {g_level:.2f}"),
            (d_level, f"discriminator at equilibrium {d_level:.2f}"),
        ),
    )


def save_loss_plot(g_losses, d_losses, filename, real_label=0.9, fake_label=0.0):
    """The assignment's function: write both losses, nats by batch, to a PNG and a PDF."""
    loss_curves(real_label, fake_label).save(filename, g_loss=g_losses, d_loss=d_losses)


# --- Main
def main(config):
    """Train a GAN, or continue or evaluate an earlier run, and grade it."""
    labels = config.real_label, config.fake_label
    with Run(config, loss_curves(*labels)) as run:
        train, val, _ = mnist(config.data, config.batch_size, run.device)
        batches = Stream(torch.cat([train.images, val.images]), config.batch_size)  # MNIST's 60,000
        n_batches = max(1, config.n_epochs * batches.n_images // config.batch_size)
        generator = Generator(config.latent_dim, config.n_pixels).to(run.device)
        discriminator = Discriminator(config.n_pixels).to(run.device)
        optimizers = adam(generator, config.lr), adam(discriminator, config.lr)
        # On a CPU just the call.
        step = captured(train_step, generator, discriminator, optimizers, labels)
        with separate_random_numbers(config.run.seed):
            fixed_latents = sample_latents(25, config.latent_dim, run.device)
        run.start_or_resume(
            batches=batches,
            generator=generator,
            discriminator=discriminator,
            generator_optimizer=optimizers[0],
            discriminator_optimizer=optimizers[1],
        )

        averages = []  # since the last line of metrics
        for batch in run.remaining(n_batches):
            real = next(batches) / 127.5 - 1
            averages.append(step(real))  # stays on the device
            if batch in (*PICTURES, n_batches) or batch % PICTURE_EVERY == 0:
                samples = {"samples": generate(generator, fixed_latents)}
                run.save_grid(f"samples_{batch:06d}", samples, f"batch {batch:,}")
            if batch % config.save_interval == 0 or batch == n_batches:
                means = torch.stack(averages).mean(dim=0).tolist()
                averages = []
                run.log(batch=batch, **dict(zip(METRICS, means)))
                run.checkpoint()

        with separate_random_numbers(config.run.seed + 1):  # the seed itself gives fixed_latents
            save_final_pictures(run, generator)
            results = test_results(config, generator)
        networks = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
        run.finish(results, networks)


def load_networks(run_folder):
    """Both trained networks of a finished run by name, in evaluation mode on the CPU."""
    config = Config.of(run_folder)

    def make():
        generator = Generator(config.latent_dim, config.n_pixels)
        discriminator = Discriminator(config.n_pixels)
        return nn.ModuleDict({"generator": generator, "discriminator": discriminator})

    return config.load_weights(run_folder, make)


def load_model(run_folder):
    """The trained generator of a finished run, in evaluation mode on the CPU."""
    return load_networks(run_folder)["generator"]


if __name__ == "__main__":
    cli.run(main, Config.parse)
