"""A classifier of MNIST's digits, whose features compare generated images with real ones.

Its weights are `classifier.npz` beside this file, in float16; `classifier.json` records their
SHA-256, the command that trained them, the test accuracy, and the values that real images get.
`figures.train_classifier` writes both files.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from harness.errors import UserError

WEIGHTS = Path(__file__).with_name("classifier.npz")
RECORD = WEIGHTS.with_suffix(".json")
RECORD_KEYS = {
    "command",
    "torch",
    "sha256",
    "validation_accuracy",
    "test_accuracy",
    "floors",
    "mean_distance_real",
}
ROWS = 250  # images that are classified at once


class Classifier(nn.Module):
    """Images [batch, 784] in [0, 1] -> logits of the ten classes, [batch, 10]."""

    def __init__(self):
        super().__init__()

        def block(c_in, c_out):
            convolution = nn.Conv2d(c_in, c_out, 3, padding=1)
            return convolution, nn.MaxPool2d(2), nn.BatchNorm2d(c_out), nn.ReLU()

        self.features = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            *block(1, 32),
            *block(32, 64),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
        )
        self.output = nn.Linear(128, 10)
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the classes, [batch, 10]."""
        return self.output(self.features(images))


# cuDNN by default rounds to TF32 and picks an algorithm that may differ from run to run.
@torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
@torch.no_grad()
def features_and_classes(
    model: Classifier, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features [n, 128] of the classifier's last layer, and its most probable classes [n]."""
    features = torch.cat([model.features(rows) for rows in images.split(ROWS)])
    return features, model.output(features).argmax(dim=1)


def accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images [n, 784] whose most probable class is their label [n]."""
    _, classes = features_and_classes(model, images)
    return (classes == labels).double().mean().item()


def pack(model: Classifier) -> bytes:
    """The content of `classifier.npz`: the weights as float16, by their names in the state dict."""
    file = io.BytesIO()
    weights = {name: weight.cpu().half().numpy() for name, weight in model.state_dict().items()}
    np.savez(file, **weights)
    return file.getvalue()


def unpack(content: bytes) -> Classifier:
    """The classifier of the weights that `pack` returned: in float32, in evaluation mode."""
    model = Classifier().eval()
    with np.load(io.BytesIO(content), allow_pickle=False) as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    return model


def read_record(path: Path = RECORD) -> dict:
    """The record `classifier.json`: a dict with RECORD_KEYS.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        record = json.loads(path.read_bytes())
        damaged = not isinstance(record, dict) or not record.keys() >= RECORD_KEYS
    except (OSError, ValueError):
        damaged = True
    if damaged:
        raise UserError(f"{path} is missing or damaged; restore it with git checkout")
    return record


def load_classifier(device: torch.device | str = "cpu", path: Path = WEIGHTS) -> Classifier:
    """The classifier in evaluation mode, in float32.

    Raises:
        UserError: a file is missing or damaged: the SHA-256 of the weights is not the recorded one.
    """
    sha256 = read_record(path.with_suffix(".json"))["sha256"]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is missing or damaged; restore it with git checkout")
    return unpack(content).to(device)
