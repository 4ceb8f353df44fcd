"""The figures of the course report, with its numbers. Its Figure 1 is a borrowed diagram."""

from typing import NamedTuple

from figures.drawing import Draw, curves, manifold, picture, samples


class Figure(NamedTuple):
    """A figure of the report.

    Attributes:
        number: in the report.
        name: its file name.
        kind: the kind of run it shows, a key of `kinds.KINDS`.
        caption: its caption in the gallery.
        draw: draws it.
    """

    number: int
    name: str
    kind: str
    caption: str
    draw: Draw


HALVES = "Bernoulli means on the left, draws from them on the right"  # of the VAE's grids

FIGURES = (
    Figure(
        2,
        "fig02_elbo",
        "vae",
        "Negative ELBO on training and validation images.",
        curves,
    ),
    Figure(
        2,
        "fig02_elbo_report_protocol",
        "vae_report",
        "Negative ELBO by the report's computation. The report's count lies below the true bound.",
        curves,
    ),
    Figure(
        3,
        "fig03_vae_before_training",
        "vae",
        f"VAE samples before training: {HALVES}.",
        samples(0),
    ),
    Figure(4, "fig04_vae_1_epoch", "vae", f"VAE samples after 1 epoch: {HALVES}.", samples(1)),
    Figure(5, "fig05_vae_10_epochs", "vae", f"VAE samples after 10 epochs: {HALVES}.", samples(10)),
    Figure(
        6, "fig06_vae_100_epochs", "vae", f"VAE samples after 100 epochs: {HALVES}.", samples(100)
    ),
    Figure(
        7,
        "fig07_vae_manifold",
        "manifold",
        "The data manifold of a VAE with two latent dimensions: means at the quantiles of the "
        "prior, z from −1.96 to 1.96 on both axes.",
        manifold,
    ),
    Figure(
        8,
        "fig08_gan_loss",
        "gan",
        "Losses of generator and discriminator, averages over 500 batches, with the one-sided "
        "label smoothing of the report's text.",
        curves,
    ),
    Figure(
        8,
        "fig08_gan_loss_report_protocol",
        "gan_report",
        "Losses of generator and discriminator with both labels smoothed, as the report computed "
        "them.",
        curves,
    ),
    Figure(
        9,
        "fig09_gan_1_batch",
        "gan",
        "GAN samples after 1 batch, from fixed latents.",
        samples(1),
    ),
    Figure(
        10,
        "fig10_gan_10000_batches",
        "gan",
        "GAN samples after 10,000 batches, the same latents.",
        samples(10_000),
    ),
    Figure(
        11,
        "fig11_gan_99000_batches",
        "gan",
        "GAN samples after 99,000 batches, the same latents.",
        samples(99_000),
    ),
    Figure(
        12,
        "fig12_gan_187500_batches",
        "gan",
        "GAN samples after 187,500 batches, the same latents.",
        samples(187_500),
    ),
    Figure(
        13,
        "fig13_gan_interpolation",
        "gan",
        "GAN images on the straight line from z = -0.9 to z = +0.9 in every element, endpoints "
        "included.",
        picture("interpolation_report.png"),
    ),
    Figure(
        13,
        "fig13_gan_interpolation_pair",
        "gan",
        "GAN images on the straight line between the two of 200 draws whose images differ most.",
        picture("interpolation_pair.png"),
    ),
    Figure(
        14,
        "fig14_bpd",
        "nf",
        "Bits per dimension on training and validation images.",
        curves,
    ),
    Figure(
        14,
        "fig14_bpd_report_protocol",
        "nf_report",
        "Bits per dimension by the report's computation: of the weights in training.",
        curves,
    ),
    Figure(
        15,
        "fig15_nf_before_training",
        "nf",
        "Samples of the flow before training.",
        samples(0),
    ),
    Figure(16, "fig16_nf_1_epoch", "nf", "Samples of the flow after 1 epoch.", samples(1)),
    Figure(17, "fig17_nf_10_epochs", "nf", "Samples of the flow after 10 epochs.", samples(10)),
    Figure(18, "fig18_nf_100_epochs", "nf", "Samples of the flow after 100 epochs.", samples(100)),
    Figure(
        18,
        "fig18_nf_by_temperature",
        "nf",
        "Samples of the flow by temperature, the standard deviation of the prior they are drawn "
        "from; 1 is the model.",
        picture("samples_by_temperature.png"),
    ),
)
