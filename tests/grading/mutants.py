"""Our own scripts with one fault each, and the check that must find it.

A patch replaces a short text that occurs exactly once, so that a rewording of a script that matters
here shows at once.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Mutant:
    """A patch of a script.

    Args:
        model: "vae", "nf" or "gan".
        name: the fault.
        old, new: text that is replaced.
        check: what must find it.
        status: how.
        words: part of what is measured.
        also: checks that may accuse as well, because the same fault breaks what they state.
    """

    model: str
    name: str
    old: str
    new: str
    check: str
    status: str = "wrong"
    words: str = ""
    also: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the patched script into a folder."""
        source = (ROOT / f"a3_{self.model}_template.py").read_text()
        assert source.count(self.old) == 1, f"{self.name}: {source.count(self.old)} x {self.old!r}"
        path = folder / f"a3_{self.model}_template.py"
        path.write_text(source.replace(self.old, self.new))
        return path


SUMS = """sums, n_images = [], 0
    for batch in data:
        sums.append(step(batch))  # stays on the device
        n_images += len(batch)
"""
BATCH_AVERAGES = """sums, n_images = [], {start}
    for batch in data:
        sums.append(step(batch) / len(batch))
        n_images += 1
"""
NEVER_CLEARED = """torch.optim.Optimizer.zero_grad = lambda *arguments: None


def train_step("""
REVERSE = ("flow_reverse_logdet",)
FIFTH = """
        class WrongCoupling(Coupling):
            def forward(self, z, ldj, reverse=False):
                z, after = super().forward(z, ldj, reverse)
                return z, 2 * ldj - after

        couplings[4].__class__ = WrongCoupling
        self.layers = nn.ModuleList(couplings)
"""
HEADS = """
        self.log_std = nn.Linear(hidden_dim, z_dim)

    def forward(self, input):
        \"\"\"Mean and log standard deviation of q(z|x).\"\"\"
        hidden = F.relu(self.hidden(input))
"""
NO_LOSS = ("loss", "likelihood", "decoder_blind")

VAE = [
    ("sigma for sigma squared", "0.5 * (torch.exp(2 * log_std) + mean.square() - 2 * log_std",
     "0.5 * (torch.exp(log_std) + mean.square() - log_std", "kl", "wrong",
     "output as the log variance, your sampling takes it as the log standard deviation"),
    ("KL without one half", "0.5 * (torch.exp(2 * log_std)", "(torch.exp(2 * log_std)", "kl",
     "wrong", "2 times the KL"),
    ("sign of the KL", "kl = kl_divergence(mean, log_std)", "kl = -kl_divergence(mean, log_std)",
     "kl", "wrong", "sign"),
    ("KL summed over the batch", "kl = kl_divergence(mean, log_std)",
     "kl = kl_divergence(mean, log_std).sum().expand_as(recon)", "kl", "wrong",
     "summed over the batch"),
    ("KL averaged over dimensions", "- 2 * log_std - 1).sum(dim=1)",
     "- 2 * log_std - 1).mean(dim=1)", "kl", "wrong", "averaged over the latent"),
    ("no KL", "kl = kl_divergence(mean, log_std)", "kl = 0 * kl_divergence(mean, log_std)", "kl",
     "wrong", "there is none"),
    ("sigma squared times eps", "z = mean + log_std.exp() * eps\n        recon",
     "z = mean + (2 * log_std).exp() * eps\n        recon", "kl"),
    ("twice sigma times eps", "z = mean + log_std.exp() * eps\n        recon",
     "z = mean + 2 * log_std.exp() * eps\n        recon", "kl", "wrong", "z is drawn from"),
    ("standard deviation through ReLU", "z = mean + log_std.exp() * eps\n        recon",
     "z = mean + F.relu(log_std) * eps\n        recon", "std_positive", "wrong", "exactly 0",
     ("kl", "gradient")),
    ("one noise vector for a batch", "torch.randn_like(mean)", "torch.randn_like(mean[:1])",
     "noise_per_image", "weak"),
    ("one noise value for all dimensions", "torch.randn_like(mean)",
     "torch.randn_like(mean[:, :1])", "noise_per_dimension"),
    ("the same noise on every call", "torch.randn_like(mean)",
     "torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))", "noise_per_call",
     "wrong", "", ("noise_in_evaluation",)),
    ("no noise", "torch.randn_like(mean)", "torch.zeros_like(mean)", "noise_per_call", "wrong", "",
     ("moments", "noise_in_evaluation", "std_positive", "kl", "gradient")),
    ("no noise in evaluation", "torch.randn_like(mean)", "torch.randn_like(mean) * self.training",
     "noise_in_evaluation"),
    ("uniform noise", "torch.randn_like(mean)", "torch.rand_like(mean)", "moments"),
    ("no gradient through z", "z = mean + log_std.exp() * eps\n        recon",
     "z = (mean + log_std.exp() * eps).detach()\n        recon", "gradient", "wrong",
     "no gradient"),
    ("squared error", 'F.binary_cross_entropy_with_logits(logits, input, reduction="none")',
     "(torch.sigmoid(logits) - input).square()", "likelihood", "wrong", "", NO_LOSS),
    ("average over pixels", 'input, reduction="none").sum(dim=1)',
     'input, reduction="none").mean(dim=1)', "loss", "weak", "average over pixels", ("kl",)),
    ("sum over the batch", 'return self.terms(input)["neg_elbo"].mean()',
     'return self.terms(input)["neg_elbo"].sum()', "loss", "weak", "sum over"),
    ("logarithm of a saturated mean",
     'F.binary_cross_entropy_with_logits(logits, input, reduction="none")',
     "-(input * torch.sigmoid(logits).log() + (1 - input) * (1 - torch.sigmoid(logits)).log())",
     "stable", "weak"),
    ("decoder sees the image", "self.decoder.logits(z), input)",
     "self.decoder.logits(z) + input, input)", "decoder_blind", "wrong", "", ("likelihood",)),
    ("means for samples", "return torch.bernoulli(means), means", "return means, means", "sample",
     "wrong", "no binary"),
    ("samples not from the prior", "z = torch.randn(n_samples, self.z_dim",
     "z = 2 * torch.randn(n_samples, self.z_dim", "sample", "wrong", "variance"),
    ("training on validation", "validated.validate(val, optimizer)",
     "epoch_iter(model, val, optimizer)", "validation", "wrong", "validation trains"),
    ("average of batch averages", SUMS, BATCH_AVERAGES.format(start=0), "epoch_average", "weak",
     "batch averages"),
    ("a ReLU that is never applied", HEADS,
     HEADS.replace("z_dim)\n\n", "z_dim)\n        self.relu = nn.ReLU()\n\n").replace("F.relu", ""),
     "layers", "weak", "encoder.relu (ReLU) is created and never applied; in the encoder two"),
    ("a layer that is never applied", HEADS,
     HEADS.replace("z_dim)\n\n", "z_dim)\n        self.deep = nn.Linear(9, 9)\n\n"),
     "layers", "weak", "encoder.deep (Linear)"),
    ("no sample", "def sample(self, n_samples)", "def drawn(self, n_samples)", "sample", "wrong",
     "there is no `sample`"),
    ("sample that is not implemented", "means = self.decoder(z)",
     "raise NotImplementedError\n        means = self.decoder(z)", "sample", "wrong",
     "not implemented", ("other_settings",)),
    ("z_dim of 20 only", "torch.randn(n_samples, self.z_dim", "torch.randn(n_samples, 20",
     "other_settings", "weak", "z_dim = 2 crashes"),
    ("200 samples only", "torch.randn(n_samples, self.z_dim", "torch.randn(200, self.z_dim",
     "other_settings", "weak", "sample(1) returns 200"),
    ("no batch of one image", "self.encoder(input)\n        eps",
     "self.encoder(input.squeeze())\n        eps", "other_settings", "weak",
     "a batch of one image crashes"),
    ("graphs kept in validation", "@torch.no_grad()\ndef evaluation_step", "def evaluation_step",
     "validation_memory", "weak", "keeps the graphs"),
    ("noise on validation images", "sums.append(step(batch))",
     "sums.append(step((batch + 0.4 * torch.rand_like(batch)).clamp(0, 1)))", "validation", "wrong",
     "pixels of value 0 become 0.00 to 0.40"),
    ("validation images in black", "sums.append(step(batch))",
     "data.dataset.data.zero_()\n        sums.append(step(batch))", "validation", "wrong",
     "the data set's images are changed"),
    ("batches minus 1", SUMS, BATCH_AVERAGES.format(start=-1), "epoch_average", "weak", "minus 1"),
]  # fmt: skip
NF = [
    ("doubled log-determinant", "ldj + log_scale.sum(dim=1)",
     "ldj + 2 * log_scale.sum(dim=1)", "coupling_logdet", "wrong", "doubled",
     ("log_px", *REVERSE)),
    ("sign of the fifth log-determinant", "        self.layers = nn.ModuleList(couplings)\n", FIFTH,
     "coupling_logdet", "wrong", "layer 5 of 8", ("log_px",)),
    ("no inverse", "* torch.exp(-log_scale)", "* torch.exp(log_scale)", "coupling_inverse", "wrong",
     "", ("flow_inverse", *REVERSE)),
    ("reverse returns zero", "ldj - log_scale.sum(dim=1)", "torch.zeros_like(ldj)",
     "flow_reverse_logdet", "weak", "zero for the log-determinant"),
    ("reverse adds again", "ldj - log_scale.sum(dim=1)", "ldj + log_scale.sum(dim=1)",
     "flow_reverse_logdet", "weak", "again"),
    ("reverse in forward order", "self.layers[::-1] if reverse else self.layers", "self.layers",
     "flow_inverse", "wrong", "", REVERSE),
    ("masks don't alternate",
     "Coupling(c_in, 1 - mask, n_hidden)", "Coupling(c_in, mask, n_hidden)",
     "masks", "wrong", "pixels never change"),
    ("stripes", "steps[:, None] + steps + 1", "0 * steps[:, None] + steps + 1", "masks", "weak",
     "checkerboard"),
    ("no dequantisation noise", "z + torch.rand_like(z)", "z + 0.5", "dequantize"),
    ("too little noise", "z + torch.rand_like(z)", "z + torch.rand_like(z) / 256", "dequantize"),
    ("log pi for log 2 pi", "math.log(2 * math.pi)", "math.log(math.pi)", "log_prior", "wrong", "",
     ("log_px",)),
    ("prior summed over the batch", "math.log(2 * math.pi)).sum(dim=1)",
     "math.log(2 * math.pi)).sum()", "log_prior", "wrong", "whole batch",
     ("log_px", "epoch_average", "bits_per_dimension")),
    ("sign of the logit step", "(per_pixel - log_z - log_1_minus_z)",
     "(per_pixel + log_z + log_1_minus_z)", "logit", "wrong", "", ("log_px",)),
    ("log-determinant left out", "return log_prior(z) + ldj", "return log_prior(z)", "log_px"),
    ("nats per dimension", "(n_dimensions * math.log(2))", "n_dimensions", "bits_per_dimension",
     "wrong", "log 2"),
    ("nats of an image times log 2", "-log_px_nats / (n_dimensions * math.log(2))",
     "-log_px_nats * math.log(2)", "bits_per_dimension", "wrong", "multiplied by log 2"),
    ("an unused network", "self.n_bins = n_bins",
     "self.n_bins, self.scale = n_bins, nn.Linear(9, 9)", "layers", "weak", "scale (Linear)"),
    ("no sample", "def sample(self, n_samples", "def drawn(self, n_samples", "sample", "wrong",
     "there is no `sample`"),
    ("no batch of one image", "self.dequantize(input), ", "self.dequantize(input.squeeze()), ",
     "other_settings", "weak", "a batch of one image crashes"),
    ("graphs kept in validation", "@torch.no_grad()\ndef evaluation_step", "def evaluation_step",
     "validation_memory", "weak", "keeps the graphs"),
    ("no clipping", "nn.utils.clip_grad_norm_(model.parameters(), max_norm)", "pass", "clipping",
     "weak"),
    ("a name that NumPy dropped", "z + torch.rand_like(z)",
     "z + torch.rand_like(z) * __import__('numpy').float(1)", "runs_today", "old", "np.float"),
    ("samples out of range", "return z.floor().clamp(0, self.n_bins - 1)", "return 2 * z",
     "sample"),
]  # fmt: skip
GAN = [
    ("smoothing of both sides", "fake_label: float = 0.0", "fake_label: float = 0.1", "smoothing",
     "note", "both sides"),
    ("the same label for both", "labels = config.real_label, config.fake_label",
     "labels = config.real_label, config.real_label", "discriminator_loss"),
    ("a sigmoid too many", "discriminator.logits(images).chunk(2)",
     "discriminator(images).squeeze(1).chunk(2)", "discriminator_loss", "wrong",
     "a sigmoid too many"),
    ("generator helps the discriminator", "F.softplus(-logits_fake)", "F.softplus(logits_fake)",
     "generator_loss", "wrong", "learns to be rejected"),
    ("saturating loss", "F.softplus(-logits_fake)", "-F.softplus(logits_fake)", "generator_loss",
     "note", "saturating"),
    ("gradients never cleared", "def train_step(", NEVER_CLEARED, "stray_gradient"),
    ("one optimiser moves both", "adam(discriminator, config.lr)",
     "adam(nn.ModuleList([generator, discriminator]), config.lr)", "steps",
     "wrong", "", ("stray_gradient", "generator_loss")),
    ("discriminator stands still", "adam(discriminator, config.lr)", "adam(discriminator, 0.0)",
     "both_move"),
    ("generator without tanh", "nn.Tanh()", "nn.Identity()", "generator_range", "wrong", "",
     ("image_scale",)),
    ("images in [0, 1]", "next(batches) / 127.5 - 1", "next(batches) / 255", "image_scale", "weak"),
    ("an activation that is never applied",
     "self.layers = nn.Sequential(\n            nn.Linear(n_pixels, 512),\n"
     "            nn.LeakyReLU(0.2),",
     "self.act = nn.LeakyReLU(0.2)\n        self.layers = nn.Sequential(\n"
     "            nn.Linear(n_pixels, 512),", "layers", "weak", "discriminator.act (LeakyReLU)"),
    ("no batch of one image", "return torch.sigmoid(self.layers(images))",
     "return torch.sigmoid(self.layers(images).squeeze().unsqueeze(1))", "other_settings", "weak",
     "the discriminator with one image crashes"),
    ("the same noise for every batch", "torch.randn(n_samples, latent_dim, device=device)",
     "torch.randn(n_samples, latent_dim, generator=torch.Generator().manual_seed(0))", "latents"),
]  # fmt: skip
MUTANTS = [
    Mutant(model, *patch)
    for model, patches in (("vae", VAE), ("nf", NF), ("gan", GAN))
    for patch in patches
]
