"""MNIST as rows of 784 pixels, in batches that live on the model's device.

`mnist` gives grey images, for the flow and the GAN; `bmnist` gives binary ones, for the VAE. Both
return (train, val, test), each an iterable of float batches. A `Source` names another data set of
the same form, another folder, or someone's own images, of any size.
"""

from pathlib import Path

import numpy as np
import torch

from datasets.batches import Batches, Stream, bernoulli_draw, random_shift
from datasets.files import (
    DATASETS,
    LAROCHELLE,
    MNIST,
    N_PIXELS,
    DataError,
    Source,
    read_larochelle,
    read_mnist,
    static_draw,
)
from datasets.own import fingerprint, read_own

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "MNIST",
    "N_PIXELS",
    "N_TRAIN",
    "Batches",
    "DataError",
    "Source",
    "Stream",
    "bmnist",
    "fingerprint_of",
    "image_shape",
    "mnist",
    "random_shift",
    "read_mnist",
]

SIDE = 28  # of MNIST's images, in pixels
N_TRAIN, N_VALIDATION = 50_000, 10_000  # the last images validate, as in Larochelle's split
BINARIZATIONS = ("static", "dynamic", "threshold", "larochelle")

Splits = tuple[Batches, Batches, Batches]


def mnist(
    source: Source = MNIST,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    max_shift: int = 0,
) -> Splits:
    """Grey images: (train, val, test) with values 0..255; of MNIST 50,000 / 10,000 / 10,000.

    Args:
        source: which data set, and where it is.
        batch_size: images per batch.
        device: of the batches.
        max_shift: shift each training image by up to this many pixels along each axis, newly in
            every epoch.

    Raises:
        DataError: a file is missing, unreadable or not of this data set.
    """
    splits = _grey_splits(source)
    shape = splits[0].shape[1:]

    def shifted(images):
        return random_shift(images, max_shift, shape).float()

    grey = torch.Tensor.float
    to_training_input = shifted if max_shift else grey
    return _splits(splits, batch_size, device, to_training_input, grey)


def bmnist(
    source: Source = MNIST,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    binarize: str = "static",
) -> Splits:
    """Binary images: (train, val, test) of 0 and 1; of MNIST 50,000 / 10,000 / 10,000.

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

    splits = _grey_splits(source)
    n_train, n_val, _ = map(len, splits)
    grey = np.concatenate(splits)
    if binarize == "threshold":
        bits = grey > 127
    else:
        n_images, height, width = grey.shape
        bits = static_draw((n_images, height * width)).reshape(grey.shape) < grey
    train, val, test = np.split(bits.view(np.uint8), [n_train, n_train + n_val])
    if binarize == "dynamic":
        return _splits((splits[0], val, test), batch_size, device, bernoulli_draw, binary)
    return _splits((train, val, test), batch_size, device, binary, binary)


def image_shape(source: Source) -> tuple[int, int]:
    """(height, width) of the images; one's own are read for it.

    Raises:
        DataError: they cannot be read.
    """
    return _grey_splits(source)[0].shape[1:] if source.is_own else (SIDE, SIDE)


def fingerprint_of(source: Source) -> str | None:
    """The SHA-256 of one's own images; None for the named sets."""
    return fingerprint(_grey_splits(source)) if source.is_own else None


def _grey_splits(source: Source) -> list[np.ndarray]:
    """The three splits, uint8 [n, height, width] each."""
    if source.is_own:
        return list(read_own(Path(source.dataset), source.val_fraction))
    arrays = read_mnist(source)
    train, val = np.split(arrays["x_train"], [N_TRAIN])
    return [train, val, arrays["x_test"]]


def _splits(arrays, batch_size, device, to_training_input, to_input) -> Splits:
    """The three splits as Batches: training shuffled, the others in file order."""
    shape = arrays[0].shape[1:] if arrays[0].ndim == 3 else (SIDE, SIDE)
    train, val, test = (
        torch.from_numpy(array.reshape(len(array), -1)).to(device) for array in arrays
    )
    return (
        Batches(train, batch_size, to_training_input, shuffle=True, image_shape=shape),
        Batches(val, batch_size, to_input, image_shape=shape),
        Batches(test, batch_size, to_input, image_shape=shape),
    )
