"""Where this project departs from the report, with evidence from the runs at hand."""

import statistics

import a3_gan_template as gan
from figures.kinds import VAE
from figures.runs import Groups
from harness import references

# The claim, its evidence, and the values in that: kind of run, metric at its end. Names in braces
# are those of `_published` and `_equilibria`.
DEPARTURES = (
    (
        "**The KL of the VAE.** The report has the standard deviation where the variance belongs, "
        "so its sum is no bound.",
        "Its computation ends at {:.2f} nats where the negative ELBO of the same weights is "
        "{:.2f}.",
        ("vae_report", "val_report_nats"),
        ("vae_report", "val_neg_elbo_nats"),
    ),
    (
        "**The validation pass of the VAE.** The report's takes optimiser steps, so it trains on "
        "the validation images.",
        "Its text has {text:.3f} nats at the end, the value of its curve at epoch {text_epoch}; "
        "at epoch {end_epoch} the curve has {end:.2f}, and this computation {:.2f}.",
        ("vae_report", "val_report_nats"),
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
        "With both labels smoothed the equilibrium is D = {both[0]:.2f}, generator {both[1]:.2f}, "
        "discriminator {both[2]:.2f} nats; with one, D = {one[0]:.2f}, {one[1]:.2f} and "
        "{one[2]:.2f} (see `a3_gan_template.py`).",
    ),
    (
        "**Label smoothing.** The report's text smooths the real label only, its computation both.",
        "Over their last tenth the one-sided losses average {:.2f} (generator) and {:.2f} nats "
        "(discriminator).",
        ("gan", "g_loss"),
        ("gan", "d_loss"),
    ),
    (
        "**Shifted validation images.** The report shifts its validation images at random, like "
        "its training images; `val_bpd` here is of clean ones.",
        "The flow ends at {:.3f} shifted, {:.3f} clean.",
        ("nf", "val_bpd_shifted"),
        ("nf", "val_bpd"),
    ),
)


def departures(groups: Groups) -> list[str]:
    """The departures as Markdown items, with means over seeds.

    Evidence is left out where its run is missing.
    """
    lines, known = [], _published() | _equilibria()
    for claim, evidence, *values in DEPARTURES:
        ends = [[run.final(key) for run in groups[kind]] for kind, key in values]
        if all(of_runs and None not in of_runs for of_runs in ends):
            evidence = evidence.format(*map(statistics.fmean, ends), **known)
        else:
            evidence = "(Evidence needs a run that is not there.)"
        lines.append(f"- {claim} {evidence}")
    return lines


def _published() -> dict:
    """The report's "ELBO": in its text, with the epoch of its curve nearest to it, and the end."""
    table = references.protocol_of(VAE, {"protocol": "report"})
    text, curve = table["rows"][0]["value"], table["curve"]
    points = list(zip(curve["at"], curve["values"]))
    text_epoch, _ = min(points, key=lambda point: abs(point[1] - text))
    end_epoch, end = points[-1]
    return {"text": text, "text_epoch": text_epoch, "end_epoch": end_epoch, "end": end}


def _equilibria() -> dict:
    """(D, generator loss, discriminator loss) at equilibrium, with one and both labels smoothed."""
    one, both = gan.Config(), gan.Config(**gan.Config.REPORT)
    return {
        "one": gan.equilibrium(one.real_label, one.fake_label),
        "both": gan.equilibrium(both.real_label, both.fake_label),
    }
