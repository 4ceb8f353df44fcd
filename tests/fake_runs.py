"""Finished runs that nobody trained, for tests of the figures."""

import json
import re

import numpy as np
from matplotlib.image import imsave

from figures.kinds import GAN, KINDS, NF, SCRIPTS, VAE, epochs_of
from figures.tables import MEASURES

VALUES = {
    VAE: {
        "train_neg_elbo_nats": 99.0,
        "val_neg_elbo_nats": 100.0,
        "val_recon_nats": 75.0,
        "val_kl_nats": 25.0,
        "seconds": 1.0,
    },
    NF: {"train_bpd": 1.8, "val_bpd": 1.79, "val_bpd_shifted": 1.795, "seconds": 1.0},
    GAN: {"g_loss": 1.2, "d_loss": 1.1, "d_real": 0.6, "d_fake": 0.3, "seconds": 1.0},
}
QUALITY = dict.fromkeys((key for _, *pair, _ in MEASURES for key in pair if key), 0.5)
QUALITY |= {"n_samples": 10_000, "classifier_accuracy": 0.99}
GAN_QUALITY = QUALITY | {
    "parzen_nats": 230.0,
    "frechet_distance": 3.0,
    "smallest_class": 0.08,
    "largest_class": 0.12,
}
RESULTS = {
    VAE: {
        "test": {"neg_elbo_nats": 99.5},
        "quality_of_means": QUALITY,
        "quality_of_draws": QUALITY,
        "likelihood": {
            "neg_log_px_nats": 90.9,
            "gap_nats": 4.0,
            "encoder_gap_nats": 6.1,
            "standard_error_nats": 0.24,
            "effective_sample_size": 12.5,
        },
        "latent": {"active_units": 20},
    },
    NF: {
        "test": {"bpd": 1.78, "bpd_shifted": 1.79},
        "quality": QUALITY,
        "likelihood": {
            "bpd": 1.77,
            "one_draw_bpd": 1.78,
            "gap": 0.01,
            "standard_error": 0.003,
            "effective_sample_size": 2.5,
        },
    },
    GAN: {
        "samples": {"mean_distance": 9.9, "mean_distance_real": 10.2, "spread": 0.97, "repeats": 0},
        "quality": GAN_QUALITY,
    },
}
EPOCHS = ["samples_000", "samples_001", "samples_010", "samples_100"]
BATCHES = ["samples_000001", "samples_010000", "samples_099000", "samples_187500"]
PICTURES = {
    VAE: [*EPOCHS, "manifold_100"],
    NF: [*EPOCHS, "samples_by_temperature"],
    GAN: [*BATCHES, "interpolation_report", "interpolation_pair", "samples_fresh"],
}


def fake_run(folder, kind, *flags, started="2026", **values):
    """Write a finished full-length run of a kind.

    Its metrics are the same in every line, except those given as functions of epoch or batch.
    """
    script = KINDS[kind].script
    settings = SCRIPTS[script].Config.parse([*KINDS[kind].options(), *flags]).flat()
    if kind == "vae_report":
        values = {"val_report_nats": 79.0} | values
    folder.mkdir(parents=True)
    config = {"script": script, "settings": settings, "started": started, "device": "an abacus"}
    (folder / "config.json").write_text(json.dumps(config))
    if script == GAN:
        counter, counts = "batch", range(500, 187_501, 500)
    else:
        counter, counts = "epoch", range(1, epochs_of(settings) + 1)
    with open(folder / "metrics.jsonl", "w") as file:
        for count in counts:
            line = {counter: count} | VALUES[script] | values
            line = {key: value(count) if callable(value) else value for key, value in line.items()}
            file.write(json.dumps(line) + "\n")
    result = RESULTS[script] | {"graded": [], "finished": "now"}
    (folder / "result.json").write_text(json.dumps(result))
    for n, name in enumerate(PICTURES[script]):
        imsave(folder / f"{name}.png", np.full((60, 300), n / 10), cmap="gray", vmin=0, vmax=1)
        names = ("means", "draws") if script == VAE else ("samples",)
        arrays = dict.fromkeys(names, np.full((25, 784), 20 * n, np.uint8))
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def fake_runs(base, *kinds):
    """Write a run of each kind, named after it, into the folder `base`."""
    for kind in kinds:
        fake_run(base / kind, kind)
    return base


def unwrapped(page):
    """The text of a gallery with each paragraph, list item and row on a line of its own."""
    return re.sub(r"(?<!\n)\n *(?![|!#\n]|- )", " ", page)
