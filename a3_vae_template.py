"""A variational autoencoder on binary MNIST (Kingma & Welling, ICLR 2014).

"Auto-Encoding Variational Bayes": the model draws z ~ N(0, I), and then 784 independent Bernoulli
pixels whose means a decoder computes from z. An encoder computes q(z|x) = N(mu, diag(sigma^2)).
Both are trained to maximise the evidence lower bound (ELBO). As in the assignment, the hidden
layers use ReLU; the paper's use tanh.

    log p(x) >= E_q[log p(x|z)] - KL(q(z|x) || p(z)).

    python a3_vae_template.py --zdim 20

Averaged weights reach a validation negative ELBO of 98.95 nats at epoch 40, the mean of five seeds
(best public solution: 100.60), and 98.11 at epoch 100, in 5 to 6 minutes on two CPU cores.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import BINARIZATIONS, MNIST, N_PIXELS, Source, bmnist
from harness import cli, latent, likelihood, plots, records, weights
from harness.average import WeightAverage
from harness.devices import device_of, select_device, separate_random_numbers
from harness.graded import Row, comparable, fill_rows, metric, result
from harness.laplace import encoder_weights, laplace_weights
from harness.linear import Linear
from harness.run import Run
from harness.sample_quality import sample_quality
from harness.steps import adam, captured, mean_over_images

# Graded rows by protocol; "the report" is the course report of 2019 that this repeats.
CURVES = ("train_neg_elbo_nats", "val_neg_elbo_nats", "val_report_nats")
_, ELBO, REPORT = map(metric, CURVES)
LOG_PX = result("likelihood", "neg_log_px_nats")
GRADED = {
    "standard": [
        Row("validation negative ELBO", "nats", ELBO, 100.60, 40, "best public solution"),
        Row("test -log p(x), importance-weighted", "nats", LOG_PX, 91.5, reached=100),
    ],
    "report": [
        Row('the report\'s "ELBO" (not a bound)', "nats", REPORT, 79.458, 100, "the report")
    ],
}
PROPOSALS = {"laplace": laplace_weights, "encoder": encoder_weights}  # for z, given an image
COMPARABLE = {"dataset": ("mnist",), "binarize": ("static", "larochelle")}
COMPARABLE |= {"zdim": (20,), "hidden_dim": (500,)}  # the references' settings


# --- Model
class Encoder(nn.Module):
    """q(z|x): images [batch, 784] -> mean and log standard deviation, [batch, z_dim] each."""

    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        self.hidden = Linear(N_PIXELS, hidden_dim)
        self.mean = Linear(hidden_dim, z_dim)
        self.log_std = Linear(hidden_dim, z_dim)

    def forward(self, input):
        """Mean and log standard deviation of q(z|x)."""
        hidden = F.relu(self.hidden(input))
        return self.mean(hidden), self.log_std(hidden)


class Decoder(nn.Module):
    """p(x|z): latents [batch, z_dim] -> Bernoulli means [batch, 784]."""

    def __init__(self, hidden_dim=500, z_dim=20):
        super().__init__()
        self.hidden = Linear(z_dim, hidden_dim)
        self.output = Linear(hidden_dim, N_PIXELS)

    def logits(self, z):
        """Log odds of the Bernoulli means, [batch, 784]. They don't overflow as log(mean) does."""
        return self.output(F.relu(self.hidden(z)))

    def jacobian(self, z):
        """Derivatives of the logits in z [batch, z_dim]: [batch, z_dim, 784]."""
        active = self.hidden(z) > 0
        return self.output(active[:, None] * self.hidden.weight.T) - self.output.bias

    def forward(self, z):
        """Bernoulli means."""
        return torch.sigmoid(self.logits(z))


class Nats(NamedTuple):
    """Terms of the objective in nats, per image [batch] or averaged over images."""

    neg_elbo: torch.Tensor  # recon + kl
    recon: torch.Tensor  # -log p(x|z)
    kl: torch.Tensor  # KL(q(z|x) || p(z))
    report: torch.Tensor | None = None  # recon + the report's KL: not a bound on log p(x)


class VAE(nn.Module):
    """Encoder and decoder with one hidden layer each, and a standard normal prior on z.

    Protocol 'standard' trains on the ELBO, 'report' as the report did (see `run_epoch`).
    """

    def __init__(self, hidden_dim=500, z_dim=20, protocol="standard"):
        super().__init__()
        self.z_dim, self.protocol = z_dim, protocol
        self.encoder = Encoder(hidden_dim, z_dim)
        self.decoder = Decoder(hidden_dim, z_dim)

    def terms(self, input, report=True):
        """Terms of the objective for binary images [batch, 784], with one sample of z per image."""
        mean, log_std = self.encoder(input)
        eps = torch.randn_like(mean)  # new for every image and dimension
        z = mean + log_std.exp() * eps
        recon = neg_log_likelihood(self.decoder.logits(z), input)
        kl = kl_divergence(mean, log_std)
        report_nats = recon + report_kl(mean, log_std) if report else None
        return Nats(recon + kl, recon, kl, report_nats)

    def forward(self, input):
        """Average negative ELBO of binary images [batch, 784], in nats: a scalar."""
        return self.terms(input).neg_elbo.mean()

    @torch.no_grad()
    def sample(self, n_samples):
        """Draw images from the model: (binary images, their Bernoulli means), [n, 784] each."""
        z = torch.randn(n_samples, self.z_dim, device=device_of(self))
        means = self.decoder(z)
        return torch.bernoulli(means), means


# --- Objective
def neg_log_likelihood(logits, input):
    """-log p(x|z) in nats, [batch]: -sum_i [x_i log m_i + (1 - x_i) log(1 - m_i)], m = sigmoid."""
    return F.binary_cross_entropy_with_logits(logits, input, reduction="none").sum(dim=1)


def kl_divergence(mean, log_std):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, [batch] (Kingma & Welling 2014, Appendix B)."""
    return 0.5 * (torch.exp(2 * log_std) + mean.square() - 2 * log_std - 1).sum(dim=1)


def report_kl(mean, log_std):
    """The report's "KL" in nats, [batch]: sigma where sigma^2 belongs. Never above the KL."""
    return 0.5 * (torch.exp(log_std) + mean.square() - log_std - 1).sum(dim=1)


# --- Sampling
@torch.no_grad()
def manifold(model, n=20):
    """Bernoulli means on an n x n grid of quantiles of a 2-dimensional prior, [n * n, 784]."""
    return model.decoder(latent.quantile_grid(n).to(device_of(model)))


def save_pictures(model, epoch, folder, seed):
    """Write 100 samples, the same draws at every epoch, and the manifold if z has 2 dimensions."""
    with separate_random_numbers(seed, device_of(model)):
        images, means = model.sample(100)
    panels = {f"epoch {epoch}: means": means, "draws": images}
    plots.save_grid(folder / f"samples_{epoch:03d}.png", panels)
    if model.z_dim == 2:
        panels = {f"epoch {epoch}: z1 left to right, z2 bottom to top": manifold(model)}
        plots.save_grid(folder / f"manifold_{epoch:03d}.png", panels)


# --- Training
def train_step(model, optimizer, batch):
    """One optimiser step on binary images [batch, 784]; returns sums of the `Nats`, [3] or [4]."""
    report = model.protocol == "report"
    terms = model.terms(batch, report)
    objective = terms.report if report else terms.neg_elbo
    optimizer.zero_grad()
    objective.mean().backward()
    optimizer.step()
    return torch.stack([term for term in terms if term is not None]).detach().sum(dim=1)


@torch.no_grad()
def evaluation_step(model, batch):
    """The sums of the `Nats` over binary images [batch, 784]: [4]."""
    return torch.stack(model.terms(batch)).sum(dim=1)


def epoch_iter(model, data, optimizer, average=None):
    """One pass over batches of binary images [batch, 784]: the `Nats` averaged over all images.

    The model is trained only if it is in training mode; otherwise `optimizer` may be None. An
    `average` (WeightAverage) is updated after every optimiser step.
    """
    if not model.training:
        return Nats(*mean_over_images(captured(evaluation_step, model), data).tolist())
    step = captured(train_step, model, optimizer)  # a CUDA graph; on a CPU just the call
    return Nats(*mean_over_images(step, data, average and average.update).tolist())


def run_epoch(model, data, optimizer, average=None):
    """Train on data[0] and validate on data[1]: (training Nats, validation Nats).

    With an `average`, protocol 'standard' validates its weights.
    """
    train, val = data
    train_nats = epoch_iter(model.train(), train, optimizer, average)
    if model.protocol == "report":  # the report never left training mode, so it trained here, too
        return train_nats, epoch_iter(model, val, optimizer, average)
    return train_nats, evaluate(model if average is None else average.model, val)


# --- Evaluation
def evaluate(model, data, seed=0):
    """Nats averaged over a whole split; weights and the run's random numbers stay untouched."""
    with separate_random_numbers(seed, device_of(model)):
        return epoch_iter(model.eval(), data, optimizer=None)


def test_results(args, model, test):
    """Results of a trained model on the test split: dicts of numbers, by name."""
    images, nats = test.images.float(), evaluate(model, test)._asdict()
    results = {"test": {f"{term}_nats": value for term, value in nats.items()}}
    with separate_random_numbers(args.seed, images.device), torch.no_grad():
        results["latent"] = latent.measures(*model.encoder(images))
        if n := args.importance_samples:
            log_weights = PROPOSALS[args.proposal](model.decoder, model.encoder)
            batches = images.split(max(128, likelihood.rows_at_once(images.device) // n))
            results["likelihood"] = likelihood.importance_weighted(log_weights, batches, n)
            gap = nats["neg_elbo"] - results["likelihood"]["neg_log_px_nats"]
            results["likelihood"]["encoder_gap_nats"] = gap
    if args.quality_samples:
        with separate_random_numbers(args.seed, images.device):
            draws, means = model.sample(args.quality_samples)
        source = MNIST if args.binarize == "larochelle" else Source.of(args)  # not in its DIR
        results["quality_of_means"] = sample_quality(means, source)
        results["quality_of_draws"] = sample_quality(draws, source, args.binarize)
    return results


def save_elbo_plot(train_curve, val_curve, filename, references=(), report_curve=None, title=None):
    """Write curves (nats per epoch, or a list of such curves by seed) to a PNG and a PDF."""
    curves = {"training": train_curve, "validation": val_curve}
    curves["validation as the report counts (no bound)"] = report_curve
    plots.save_epochs(filename, curves, "negative ELBO (nats per image)", references, title)


def grade(args, history, results):
    """The graded rows of a run, from its metrics and results alone."""
    return fill_rows(GRADED[args.protocol], COMPARABLE, args, history, results)


# --- Main
def main(args):
    """Train a VAE, or continue or evaluate an earlier run, and grade it."""
    device = select_device(args.device, args.no_graph)
    train, val, test = bmnist(Source.of(args), args.batch_size, device, args.binarize)
    torch.manual_seed(args.seed)
    model = VAE(args.hidden_dim, args.zdim, args.protocol).to(device)
    optimizer, average = adam(model, args.lr), WeightAverage(model, args.ema_decay)
    parts = {"model": model, "average": average, "optimizer": optimizer}

    def draw_curves(folder, history):
        *curves, report = records.columns(history, *CURVES)
        report = report if args.protocol == "report" else None
        stars = [GRADED[args.protocol][0].star()] if comparable(COMPARABLE, args) else []
        save_elbo_plot(*curves, folder / "elbo.png", stars, report)

    with Run(args, device, draw_curves, grade, **parts) as run:
        if run.count == 0:
            save_pictures(average.model, 0, run.folder, args.seed)
        for epoch in run.count_to(args.epochs):
            train_nats, val_nats = run_epoch(model, (run.counted(train), val), optimizer, average)
            val_nats = {f"val_{term}_nats": nats for term, nats in val_nats._asdict().items()}
            run.log(epoch=epoch, train_neg_elbo_nats=train_nats.neg_elbo, **val_nats)
            if epoch in (1, 5, 10, args.epochs) or epoch % 20 == 0:
                save_pictures(average.model, epoch, run.folder, args.seed)
        run.finish(test_results(args, average.model, test), average.model)


def load_model(run_folder):
    """The trained VAE of a finished run, in evaluation mode on the CPU."""
    args = cli.settings_of(run_folder, __file__, parse_args)
    return weights.load(run_folder, VAE(args.hidden_dim, args.zdim, args.protocol))


# --- Command line
def parse_args(argv=None):
    """The command line; with --resume or --evaluate the settings of that run."""
    parser = cli.ArgumentParser(__doc__.splitlines()[0], prog=__file__)
    parser.add_training_arguments(epochs=100, batch_size=128, lr=1e-3, importance_samples=100)
    parser.add_number("--zdim", 20, "dimensions of the latent space", at_least=1)
    parser.add_number("--hidden_dim", 500, "units of each hidden layer", at_least=1)
    parser.add_choice("--binarize", BINARIZATIONS, "how bits are made; larochelle needs --data_dir")
    parser.add_choice("--protocol", GRADED, "report: train and count as the report did, no EMA")
    parser.add_choice("--proposal", PROPOSALS, "where importance samples of z come from")
    parser.add_common_arguments()
    args = parser.parse_args(argv, "runs/vae-{dataset}-z{zdim}-{binarize}-{protocol}-seed{seed}")
    if args.protocol == "report":
        args.ema_decay = 0.0  # the report validated the weights in training
    return args


if __name__ == "__main__":
    cli.run_script(main, parse_args)
