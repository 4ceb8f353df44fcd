"""The classifier that generated digits are judged by, trained once and cached."""

import contextlib
import hashlib
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from datasets import random_shift, read_mnist
from harness import files
from harness.devices import separate_random_numbers

CACHE = Path(__file__).parent.parent / ".cache" / "classifier.pt"
N_EPOCHS = 4
BATCH_SIZE = 256
ROWS = 1000  # images that are classified at once


class Classifier(nn.Module):
    """Images [batch, 784] in [0, 1] -> logits of the ten classes, [batch, 10]."""

    def __init__(self):
        super().__init__()

        def convolution(c_in, c_out):
            conv = nn.Conv2d(c_in, c_out, 3, padding=1)
            return conv, nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)

        self.features = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            *convolution(1, 32),
            *convolution(32, 64),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
        )
        self.output = nn.Linear(128, 10)

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


def train_classifier(device: torch.device, n_epochs: int = N_EPOCHS) -> tuple[Classifier, float]:
    """The classifier trained on randomly shifted training images, and its test accuracy."""
    arrays = read_mnist()
    images, labels, test_images, test_labels = (
        torch.from_numpy(arrays[key]).to(device)
        for key in ("x_train", "y_train", "x_test", "y_test")
    )
    images, labels = images[:50_000].flatten(1), labels[:50_000].long()
    with separate_random_numbers(0, device):
        model = Classifier().to(device)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        n_steps = n_epochs * math.ceil(len(images) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=n_steps)
        for _ in range(n_epochs):
            for rows in torch.randperm(len(images), device=device).split(BATCH_SIZE):
                shifted = random_shift(images[rows], 2).float() / 255
                loss = F.cross_entropy(model(shifted), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    _, predicted = features_and_classes(model.eval(), test_images.flatten(1).float() / 255)
    return model, (predicted == test_labels).float().mean().item()


def load_classifier(device: torch.device, cache: Path = CACHE) -> tuple[Classifier, float]:
    """The classifier from the cache, or trained and cached, and its test accuracy.

    Cached weights must have the SHA-256 beside them. Of several processes one trains, and the
    others wait for it.
    """
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
    lock = files.one_at_a_time(cache.parent) if cache.parent.is_dir() else contextlib.nullcontext()
    with lock:
        return _load_or_train(device, cache, cache.with_suffix(".json"))


def _load_or_train(device: torch.device, cache: Path, record: Path) -> tuple[Classifier, float]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_text())
        if known["sha256"] == hashlib.sha256(cache.read_bytes()).hexdigest():
            model = Classifier().to(device).eval()
            model.load_state_dict(torch.load(cache, map_location=device, weights_only=True))
            return model, known["test_accuracy"]
    print(
        "training the classifier that judges samples (once, two minutes on a CPU)", file=sys.stderr
    )
    model, accuracy = train_classifier(device)
    with contextlib.suppress(OSError):  # without a cache it is trained again the next time
        files.write_whole(cache, lambda file: torch.save(model.state_dict(), file))
        sha256 = hashlib.sha256(cache.read_bytes()).hexdigest()
        files.write_json(record, {"sha256": sha256, "test_accuracy": accuracy})
    return model, accuracy
