"""Run folders for the tests of the page, with models that are small where a script allows it."""

import json
from pathlib import Path

import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from harness.average import WeightAverage


def perturbed(model):
    """All parameters, and the statistics of batch norm, away from their initial values."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.data += 0.05 * torch.randn_like(value)
    return model


def write_run(folder, script, arguments, parts, metrics, finished=True):
    """A run folder as the script leaves it, as far as the page reads it."""
    folder.mkdir(parents=True)
    config = {"script": Path(script.__file__).name, "arguments": arguments, "started": "2026"}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    torch.save(checkpoint | {"metrics": [metrics]}, folder / "checkpoint.pt")
    if finished:
        (folder / "result.json").write_text(json.dumps({"graded": [], "finished": "now"}))


def write_vae(folder, z_dim, **options):
    arguments = {"zdim": z_dim, "hidden_dim": 16}
    parts = {"average": WeightAverage(perturbed(vae.VAE(16, z_dim)), 0.9)}
    metrics = {"epoch": 7, "val_neg_elbo_nats": 123.4}
    write_run(folder, vae, arguments, parts, metrics, **options)


def write_runs(base):
    """A finished run of each kind in the folder `base`."""
    torch.manual_seed(0)
    write_vae(base / "vae2", 2)
    write_vae(base / "vae20", 20)
    parts = {
        "generator": perturbed(gan.Generator()),
        "discriminator": perturbed(gan.Discriminator()),
    }
    write_run(base / "gan", gan, {}, parts, {"batch": 9, "d_fake": 0.3})
    parts = {"average": WeightAverage(perturbed(nf.Model([784], 4, 16)), 0.9)}
    write_run(base / "flow", nf, {"n_hidden": 16}, parts, {"epoch": 5, "val_bpd": 2.345})
    return base
