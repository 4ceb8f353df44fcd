"""Run folders for the tests of the page, with models that are small where a script allows it."""

import json

import torch
import torch.nn as nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness import checkpoints


def perturbed(model):
    """All parameters, and the statistics of batch norm, away from their initial values."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.data += 0.05 * torch.randn_like(value)
    return model


def write_run(folder, script, settings, model, metrics, finished=True, started="2026"):
    """A run folder as the script leaves it, as far as the page reads it."""
    folder.mkdir(parents=True)
    settings = script.Config().flat() | settings
    config = {"script": script.Config.SCRIPT, "settings": settings, "started": started}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    if finished:
        checkpoints.save_weights(folder, perturbed(model))
        (folder / "result.json").write_text(json.dumps({"graded": [], "finished": "now"}))


def write_vae(folder, z_dim, finished=True, started="2026", **settings):
    settings = {"zdim": z_dim, "hidden_dim": 16} | settings
    metrics = {"epoch": 7, "val_neg_elbo_nats": 123.4}
    write_run(folder, vae, settings, vae.VAE(16, z_dim), metrics, finished, started)


def write_runs(base):
    """A finished run of each kind in the folder `base`."""
    torch.manual_seed(0)
    write_vae(base / "vae2", 2)
    write_vae(base / "vae20", 20)
    networks = {"generator": gan.Generator(), "discriminator": gan.Discriminator()}
    metrics = {"batch": 9, "g_loss": 1.2, "d_loss": 1.1, "d_real": 0.6, "d_fake": 0.3}
    write_run(base / "gan", gan, {}, nn.ModuleDict(networks), metrics)
    metrics = {"epoch": 5, "val_bpd": 2.345}
    write_run(base / "flow", nf, {"n_hidden": 16}, nf.Model([784], 4, 16), metrics)
    return base
