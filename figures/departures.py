"""Where this project departs from the report, with evidence from the runs at hand."""

import statistics

from figures.runs import Groups
from harness.graded import metric, tail_mean

# The claim, its evidence, and the values in that: kind of run, value at the end of a run.
DEPARTURES = (
    (
        "**The KL of the VAE.** The report has the standard deviation where the variance belongs, "
        "so its sum is no bound.",
        "Counted its way, the {:.2f} nats of the VAE with 20 dimensions become {:.2f}.",
        ("vae", metric("val_neg_elbo_nats")),
        ("vae", metric("val_report_nats")),
    ),
    (
        "**The validation pass of the VAE.** The report's takes optimiser steps, so it trains on "
        "the validation images.",
        "Both effects together give {:.2f} here (the report's text: 79.458; its curve at epoch "
        "100: 79.04). The true negative ELBO of the same weights is {:.2f}, on images they were "
        "trained on.",
        ("vae_report", metric("val_report_nats")),
        ("vae_report", metric("val_neg_elbo_nats")),
    ),
    (
        "**The retained graph of the GAN.** The report updates the generator first and keeps its "
        "graph for the discriminator's backward pass. PyTorch now refuses that, because the "
        "weights in it have changed.",
        "Here the discriminator is updated first, on the detached images of the same pass.",
    ),
    (
        "**V(D, G) at convergence.** The report's text says log 0.5; the value function there is "
        "-log 4.",
        "With both labels smoothed the equilibrium is D = 0.5, generator 0.69, discriminator 1.39 "
        "nats; with one, D = 0.45, 0.80 and 1.38 (derived in `a3_gan_template.py`).",
    ),
    (
        "**Label smoothing.** The report's text smooths the real label only, its computation both.",
        "Over their last tenth the one-sided losses average {:.2f} (generator) and {:.2f} nats "
        "(discriminator).",
        ("gan", tail_mean("g_loss")),
        ("gan", tail_mean("d_loss")),
    ),
    (
        "**Shifted validation images.** The report shifts its validation images at random, like "
        "its training images; `val_bpd` here is of clean ones.",
        "The flow ends at {:.3f} shifted, {:.3f} clean.",
        ("nf", metric("val_bpd_shifted")),
        ("nf", metric("val_bpd")),
    ),
    (
        '**Rounded numbers.** The report\'s text has "around 1.85" bits per dimension after 10 '
        "epochs, its curve 1.880; 79.458 is on its ELBO curve at epoch 80, and 79.04 at 100.",
        "Read off Figures 2 and 14 of the report.",
    ),
)


def departures(groups: Groups) -> list[str]:
    """The departures as Markdown items, with means over seeds.

    Evidence is left out where its run is missing.
    """
    lines = []
    for claim, evidence, *values in DEPARTURES:
        ends = [
            [value(run.history, run.results, run.count) for run in groups[kind]]
            for kind, value in values
        ]
        if all(of_runs and None not in of_runs for of_runs in ends):
            evidence = evidence.format(*map(statistics.fmean, ends))
        else:
            evidence = "(Evidence needs a run that is not there.)"
        lines.append(f"- {claim} {evidence}")
    return lines
