"""MNIST as rows of 784 pixels, in batches that live on the model's device.

`mnist` gives grey images, for the flow and the GAN; `bmnist` gives binary ones, for the VAE. Both
return (train, val, test), each an iterable of float batches. A `Source` names another data set of
the same form, or another folder.
"""

import numpy as np
import torch

from datasets.batches import Batches, Stream, bernoulli_draw, random_shift
from datasets.files import (
    DATASETS,
    DEFAULT_FOLDER,
    LAROCHELLE,
    MNIST,
    N_PIXELS,
    SHAPES,
    DataError,
    Source,
    read_larochelle,
    read_mnist,
    static_draw,
)

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "DEFAULT_FOLDER",
    "MNIST",
    "N_PIXELS",
    "N_TRAIN",
    "Batches",
    "DataError",
    "Source",
    "Stream",
    "bmnist",
    "mnist",
    "random_shift",
    "read_mnist",
]

N_TRAIN, N_VALIDATION = 50_000, 10_000  # the last images validate, as in Larochelle's split
BINARIZATIONS = ("static", "dynamic", "threshold", "larochelle")

Splits = tuple[Batches, Batches, Batches]


def mnist(
    source: Source = MNIST,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    max_shift: int = 0,
) -> Splits:
    """Grey images: (train, val, test) of 50,000 / 10,000 / 10,000 images with values 0..255.

    Args:
        source: which data set, and where it is.
        batch_size: images per batch.
        device: of the batches.
        max_shift: shift each training image by up to this many pixels along each axis, newly in
            every epoch.

    Raises:
        DataError: a file is missing, unreadable or not of this data set.
    """
    arrays = read_mnist(source)
    train, val = np.split(arrays["x_train"], [N_TRAIN])

    def shifted(images):
        return random_shift(images, max_shift).float()

    grey = torch.Tensor.float
    to_training_input = shifted if max_shift else grey
    return _splits((train, val, arrays["x_test"]), batch_size, device, to_training_input, grey)


def bmnist(
    source: Source = MNIST,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    binarize: str = "static",
) -> Splits:
    """Binary images: (train, val, test) of 50,000 / 10,000 / 10,000 images with values 0 and 1.

    Args:
        source: which data set, and where it is.
        batch_size: images per batch.
        device: of the batches.
        binarize: 'static', one draw with the pixels' intensities as probabilities, the same bits
            everywhere; 'dynamic', a new draw in every epoch for training (validation and test as
            static); 'threshold', 1 where the intensity is above 0.5; 'larochelle', Larochelle's
            own fixed draw of MNIST, from the three `.amat` files in the source's `data_dir`.

    Raises:
        DataError: a file is missing, unreadable, or not of this data set or Larochelle's.
        ValueError: there is no such `binarize`.
    """
    if binarize not in BINARIZATIONS:
        raise ValueError(f"binarize must be one of {', '.join(BINARIZATIONS)}, not {binarize!r}")
    binary = torch.Tensor.float
    if binarize == "larochelle":
        if source.dataset != "mnist":
            raise DataError(f"--binarize larochelle is for mnist only, not for {source.dataset}")
        splits = [read_larochelle(source.data_dir, split) for split in LAROCHELLE]
        return _splits(splits, batch_size, device, binary, binary)

    arrays = read_mnist(source)
    grey = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, N_PIXELS)
    bits = grey > 127 if binarize == "threshold" else static_draw() < grey
    train, val, test = np.split(bits.view(np.uint8), [N_TRAIN, SHAPES["x_train"][0]])
    if binarize == "dynamic":
        return _splits((grey[:N_TRAIN], val, test), batch_size, device, bernoulli_draw, binary)
    return _splits((train, val, test), batch_size, device, binary, binary)


def _splits(arrays, batch_size, device, to_training_input, to_input) -> Splits:
    """The three splits as Batches: training shuffled, the others in file order."""
    train, val, test = (
        torch.from_numpy(array.reshape(-1, N_PIXELS)).to(device) for array in arrays
    )
    return (
        Batches(train, batch_size, to_training_input, shuffle=True),
        Batches(val, batch_size, to_input),
        Batches(test, batch_size, to_input),
    )
