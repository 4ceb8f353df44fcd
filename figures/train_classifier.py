"""Train the classifier of `harness.classifier`, and write `classifier.npz` and `.json` beside it.

    OMP_NUM_THREADS=1 python -m figures.train_classifier

It trains on the 50,000 training images only. Its settings were chosen on the validation images.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from datasets import N_TRAIN, random_shift, read_mnist
from harness import classifier, cli, files, sample_quality
from harness.progress import progress_bar

N_EPOCHS = 8
BATCH_SIZE = 256
LEARNING_RATE = 5e-3  # the highest of the one-cycle schedule
MAX_SHIFT = 2  # pixels


def train(
    images: torch.Tensor, labels: torch.Tensor, n_epochs: int = N_EPOCHS
) -> classifier.Classifier:
    """A classifier trained on images [n, 784] in [0, 1], newly shifted in every epoch.

    Adam with the one-cycle schedule (Smith & Topin, "Super-convergence", 2019), seed 0.
    """
    torch.manual_seed(0)
    model = classifier.Classifier()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    n_steps = n_epochs * math.ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, n_steps)
    with progress_bar(n_steps) as bar:
        for _ in range(n_epochs):
            for rows in torch.randperm(len(images)).split(BATCH_SIZE):
                shifted = random_shift(images[rows], MAX_SHIFT)
                loss = F.cross_entropy(model(shifted), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return model.eval()


def record_of(weights: bytes, command: str, torch_version: str) -> dict:
    """The content of `classifier.json`: of packed weights, and the command and PyTorch of them."""
    model = classifier.unpack(weights)
    images, labels, test_images, test_labels = labelled_images()
    return {
        "command": command,
        "torch": torch_version,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "validation_accuracy": classifier.accuracy(model, images[N_TRAIN:], labels[N_TRAIN:]),
        "test_accuracy": classifier.accuracy(model, test_images, test_labels),
        "floors": {
            pixels: sample_quality.floors(model, *sample_quality.real_images(pixels))
            for pixels in sample_quality.PIXELS
        },
        "mean_distance_real": sample_quality.mean_distance(test_images),
    }


def labelled_images() -> tuple[torch.Tensor, ...]:
    """(images, labels, test images, test labels), images as [n, 784] in [0, 1]."""
    arrays = read_mnist()
    images, test_images = (
        torch.from_numpy(arrays[key]).flatten(1).float() / 255 for key in ("x_train", "x_test")
    )
    labels, test_labels = (torch.from_numpy(arrays[key]).long() for key in ("y_train", "y_test"))
    return images, labels, test_images, test_labels


@dataclass
class Command:
    """Train the classifier of the sample-quality metrics.

    Example: OMP_NUM_THREADS=1 python -m figures.train_classifier
    """

    keep_weights: bool = False  # only write the record of the present weights again


def parse(words: list[str] | None = None) -> Command:
    """The command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m figures.train_classifier")


def main(command: Command) -> None:
    """Train the classifier unless its weights are kept, and write its files."""
    if command.keep_weights:
        weights, known = classifier.WEIGHTS.read_bytes(), classifier.read_record(classifier.RECORD)
        made_by, torch_version = known["command"], known["torch"]
    else:
        images, labels, _, _ = labelled_images()
        weights = classifier.pack(train(images[:N_TRAIN], labels[:N_TRAIN]))
        threads = f"OMP_NUM_THREADS={torch.get_num_threads()}"
        made_by, torch_version = f"{threads} python -m figures.train_classifier", torch.__version__
    record = record_of(weights, made_by, torch_version)
    files.write_whole(classifier.WEIGHTS, lambda file: file.write(weights))
    files.write_json(classifier.RECORD, record)
    print(f"test accuracy {record['test_accuracy']:.2%}, {len(weights):,} bytes")


if __name__ == "__main__":
    cli.run(main, parse)
