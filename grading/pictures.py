"""A grid of a submission's samples as a PNG, without any library for images."""

import base64
import struct
import zlib

import torch

from gencheck.outcomes import NOTE, PASS, Outcome
from grading.checks import load_checks

N_SIDE = 4


def _pictures(gan):
    _ = gan.seen
    if not gan.pictures:
        return Outcome(PASS, "no picture saved in the steps that were watched")
    if any(gan.pictures):
        return Outcome(NOTE, "pictures are drawn in training mode", "evaluation mode")
    return Outcome(PASS, "pictures are drawn in evaluation mode")


CHECKS = load_checks("gan", {"pictures": _pictures})


def samples(model: str, subject) -> torch.Tensor:
    """Generated images [16, 784] with values in [0, 1].

    Args:
        model: "vae", "nf" or "gan".
        subject: what was measured.
    """
    n = N_SIDE * N_SIDE
    with torch.no_grad():
        if model == "gan":
            z = subject.seen.latents[-1][:n]
            images = (subject.seen.g.module.eval()(z) + 1) / 2
        elif model == "vae":
            images = subject.sample(n)
        else:
            images = subject.model.sample(n)
    images = images[0] if isinstance(images, tuple | list) else images
    images = images.float().reshape(n, 784)
    return (images / 255 if images.max() > 1.5 else images).clamp(0, 1)


def png(images: torch.Tensor) -> str:
    """A square grid of images [n, 784] as a grey PNG in base64."""
    n_side = round(len(images) ** 0.5)
    grid = images.view(n_side, n_side, 28, 28).transpose(1, 2).reshape(28 * n_side, 28 * n_side)
    rows = (grid * 255).byte().numpy()
    data = b"".join(b"\0" + row.tobytes() for row in rows)  # every row without a filter
    header = struct.pack(">IIBBBBB", *rows.shape[::-1], 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()
