"""Joining the HTML, the CSS, the JavaScript and the weights to one file."""

import base64
import gzip
import inspect
import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import read_mnist
from figures.explorer import measure, networks
from figures.explorer.models import WANTED, Missing, Trained
from figures.kinds import NF
from harness import latent, references

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TEMPLATE = (HERE / "page.html").read_text(encoding="utf-8")
START = re.escape(TEMPLATE.partition("{{")[0])  # by which an earlier page is known
STYLES = ("frame", "controls", "pictures")
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
# The parts of the scripts that the page shows beside each picture.
SECTIONS = {
    "vae-decoder": vae.Decoder,
    "vae-encoder": vae.Encoder,
    "vae-elbo": vae.VAE,
    "vae-manifold": vae.manifold,
    "gan-generator": gan.Generator,
    "gan-discriminator": gan.Discriminator,
    "gan-walk": latent.interpolate,
    "flow-coupling": nf.Coupling,
    "flow-model": nf.Model,
}
# The metric of a run that the page states, and its name.
METRICS = {
    "vae": ("val_neg_elbo_nats", "validation negative ELBO {:.2f} nats"),
    "gan": ("d_fake", "D on generated images {:.2f}"),
    "flow": ("val_bpd", "validation {:.3f} bits per dimension"),
}


def build(found: dict[str, Trained], missing: dict[str, Missing]) -> str:
    """The page.

    Args:
        found: the trained models, by their names in WANTED.
        missing: why the others are missing.
    """
    models, blobs = {}, {}
    for name, wanted in WANTED.items():
        if name in found:
            models[name], blobs[name] = describe(name, found[name])
            models[name]["title"] = wanted.title
        else:
            models[name] = {"title": wanted.title, "missing": missing[name]._asdict()}
    positions = _positions(found["vae2"].model) if "vae2" in found else torch.zeros(0)
    blobs["digits"] = b"".join(
        [
            networks.floats(positions),
            networks.padded(measure.grey_images().numpy()),
            networks.padded(np.packbits(measure.binary_images().numpy(), axis=1)),
        ]
    )
    labels = read_mnist()["y_test"][: measure.N_IMAGES]
    data = {
        "models": models,
        "labels": "".join(map(str, labels)),
        "sections": {name: section(part) for name, part in SECTIONS.items()},
    }
    parts = {
        "style": "\n".join(
            (HERE / "css" / f"{name}.css").read_text(encoding="utf-8") for name in STYLES
        ),
        "script": bundle("main"),
        "data": json.dumps(data).replace("<", "\\u003c"),
        "weights": "\n".join(
            f'<script type="text/plain" id="weights-{name}">{encoded(blob)}</script>'
            for name, blob in blobs.items()
        ),
    }
    return re.sub(
        r"\{\{(\w+)\}\}",
        lambda match: parts[match[1]],
        TEMPLATE,
    )


def describe(name: str, trained: Trained) -> tuple[dict, bytes]:
    """(what the page says and needs to know of a model, its weights as bytes)."""
    rounded = networks.quantised(trained.model)
    if name == "gan":
        packed = networks.gan_networks(rounded["generator"], rounded["discriminator"])
        description = measure.measure_gan(trained.model, rounded)
    elif name == "flow":
        packed = networks.flow_networks(rounded)
        description = measure.measure_flow(trained.model, rounded)
        description["kept"] = [layer.kept.tolist() for layer in rounded.flow.layers]
        description["report"] = _report_of_flow()
    else:
        packed = networks.vae_networks(rounded)
        description = measure.measure_vae(trained.model, rounded)
    layers, blob = networks.pack(packed)
    key, words = METRICS[name.rstrip("0123456789")]
    last = trained.run.history[-1]
    description |= {
        "networks": layers,
        "nWeights": _n_weights(trained.model),
        "result": words.format(last[key]),
        "value": last[key],
        "shifted": last.get("val_bpd_shifted"),
        "length": trained.run.length,
        "script": trained.run.script,
        "width": trained.run.settings.get("n_hidden"),
    }
    return description, blob


@torch.no_grad()
def _positions(model: vae.VAE) -> torch.Tensor:
    """The mean of q(z|x) of each test image of the page, [1000, 2]."""
    return networks.quantised(model).encoder(measure.binary_images().float())[0]


def _report_of_flow() -> dict:
    """The width of the report's flow, and where its published curve ends, in bits/dim."""
    table = references.protocol_of(NF, {"protocol": "standard"})
    return {"width": table["settings"]["n_hidden"], "bpd": table["curve"]["values"][-1]}


def _n_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def section(part: type) -> dict:
    """Where a class or function stands in its script, and its source text."""
    part = inspect.unwrap(part)  # of torch.no_grad, say
    source, line = inspect.getsourcelines(part)
    file = Path(inspect.getsourcefile(part)).relative_to(ROOT).as_posix()
    return {"file": file, "line": line, "source": "".join(source)}


def bundle(entry: str) -> str:
    """The modules that `entry` needs, each a function that returns its exports, in order."""
    modules = {}

    def add(name):
        if name not in modules:
            text = (HERE / "js" / f"{name}.js").read_text(encoding="utf-8")
            for _, needed in IMPORT.findall(text):
                add(needed)
            exports = ", ".join(EXPORT.findall(text))
            text = EXPORT.sub("", IMPORT.sub(r"const \1 = \2;", text))
            modules[name] = f"const {name} = (() => {{\n{text}return {{ {exports} }};\n}})();\n"

    add(entry)
    return "\n".join(modules.values())


def encoded(content: bytes) -> str:
    """The bytes compressed with gzip, as base64; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
