"""The splits and binarisations that `datasets` makes."""

import hashlib

import numpy as np
import pytest
import torch

from datasets import BINARIZATIONS, N_TRAIN, DataError, bmnist, files, mnist

# Of each split's bits through numpy.packbits.
STATIC_SHA256 = {
    "train": "55381f763a3d1ea1b5f3837f2e5fb64df6d293cb7a3b86981fb7d22374638c70",
    "val": "af209eacc1ceb73677c4312b351f57cd759184ba88191bf7c87431a1dbb3ba7b",
    "test": "062bd09b318ac843a2380fa254f90b6981180905fbcc7644212bc533068d0e40",
}


@pytest.fixture(scope="module")
def static():
    """The splits of the static binarisation."""
    return bmnist(binarize="static", batch_size=512)


def test_splits_keep_the_order_of_the_files(arrays):
    train, val, test = mnist(batch_size=128)
    assert (train.shuffle, val.shuffle, test.shuffle) == (True, False, False)
    assert [split.n_images for split in (train, val, test)] == [50_000, 10_000, 10_000]
    assert [len(split) for split in (train, val, test)] == [391, 79, 79]
    val_images = torch.cat(list(val))
    assert val_images.dtype == torch.float32
    assert np.array_equal(val_images.numpy(), arrays["x_train"][50_000:].reshape(-1, 784))
    assert np.array_equal(torch.cat(list(test)).numpy(), arrays["x_test"].reshape(-1, 784))


def test_the_static_draw_is_the_same_everywhere(static):
    for split, sha256 in zip(static, STATIC_SHA256.values()):
        assert hashlib.sha256(np.packbits(split.images.numpy())).hexdigest() == sha256


def test_the_static_draw_has_the_intensities_of_the_pixels_as_probabilities(arrays, static):
    bits = static[0].images.numpy().flatten()
    grey = arrays["x_train"][:N_TRAIN].flatten()
    n_pixels = np.bincount(grey, minlength=256)
    n_ones = np.bincount(grey[bits == 1], minlength=256)
    assert n_ones[0] == 0 and n_ones[255] == n_pixels[255]
    for low, high in ((1, 64), (65, 190), (191, 254)):
        values = slice(low, high + 1)
        n = n_pixels[values].sum()
        expected = (n_pixels[values] * np.arange(low, high + 1)).sum() / 255 / n
        assert abs(n_ones[values].sum() / n - expected) <= 5 * 0.5 / n**0.5


def test_numpy_with_other_random_streams_is_refused(monkeypatch):
    monkeypatch.setattr(files, "STATIC_DRAW_SHA256", "0" * 64)
    with pytest.raises(DataError, match="numpy"):
        bmnist(binarize="static")


def test_dynamic_makes_a_new_draw_in_training_only(arrays, static):
    train, val, test = bmnist(binarize="dynamic")
    assert torch.equal(val.images, static[1].images) and torch.equal(test.images, static[2].images)
    torch.manual_seed(0)
    images = torch.from_numpy(arrays["x_train"][:40].reshape(-1, 784))
    draws = torch.stack([train.to_input(images) for _ in range(400)])
    assert ((draws == 0) | (draws == 1)).all()
    error = (draws.mean(dim=0) - images / 255).abs()
    assert error.max() < 6 * 0.5 / 400**0.5
    assert error[(images == 0) | (images == 255)].max() == 0


def test_threshold_is_one_above_half_of_the_range(arrays):
    _, val, _ = bmnist(binarize="threshold")
    assert np.array_equal(
        val.images.numpy(), arrays["x_train"][50_000:].reshape(-1, 784) / 255 > 0.5
    )


@pytest.mark.parametrize("binarize", [name for name in BINARIZATIONS if name != "larochelle"])
def test_binary_batches_hold_zeros_and_ones(binarize):
    for split in bmnist(binarize=binarize, batch_size=512):
        batch = next(iter(split))
        assert batch.shape == (512, 784) and batch.dtype == torch.float32
        assert set(batch.unique().tolist()) == {0.0, 1.0}


def test_an_unknown_binarization_is_refused():
    with pytest.raises(ValueError, match="static"):
        bmnist(binarize="otsu")


def test_only_training_images_are_shifted(arrays):
    train, val, _ = mnist(max_shift=1)
    images = torch.from_numpy(arrays["x_train"][:100].reshape(-1, 784))
    assert not torch.equal(train.to_input(images), images.float())
    assert torch.equal(val.to_input(images), images.float())
