"""Reading Larochelle's binarisation: every damaged file is named in one line."""

import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from datasets import DataError, Source, bmnist, files
from datasets.files import read_larochelle
from tests.damage import DAMAGE, damaged


@pytest.fixture
def small_larochelle(tmp_path, monkeypatch):
    """Files of 20 images in Larochelle's format, and their checksums: {split: (path, bits)}."""
    bits = np.random.default_rng(0).integers(0, 2, (3, 20, 784), dtype=np.uint8)
    table, written = {}, {}
    for (split, (name, _, _)), rows in zip(files.LAROCHELLE.items(), bits):
        path = tmp_path / name
        path.write_text("".join(" ".join(map(str, row)) + " \n" for row in rows))
        table[split] = (name, 20, hashlib.sha256(np.packbits(rows)).hexdigest())
        written[split] = (path, rows)
    monkeypatch.setattr(files, "LAROCHELLE", table)
    return written


def test_larochelle_files_become_the_three_splits(tmp_path, small_larochelle):
    for split, batches in zip(
        small_larochelle, bmnist(Source(data_dir=tmp_path), binarize="larochelle")
    ):
        assert np.array_equal(batches.images.numpy(), small_larochelle[split][1])


@pytest.mark.parametrize(
    "damage",
    {
        "truncated": lambda text: text[:-40],
        "empty": lambda text: "",
        "another digit": lambda text: "2" + text[1:],
        "another bit": lambda text: str(1 - int(text[0])) + text[1:],
        "text": lambda text: "<html>404</html>\n" + text,
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_larochelle_file_is_named(tmp_path, small_larochelle, damage):
    path, _ = small_larochelle["val"]
    path.write_text(damage[1](path.read_text()))
    with pytest.raises(DataError, match="binarized_mnist_valid.amat") as error:
        bmnist(Source(data_dir=tmp_path), binarize="larochelle")
    assert "\n" not in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE)
def test_any_damage_to_a_larochelle_file_is_found_or_harmless(small_larochelle, damage):
    path, rows = small_larochelle["val"]
    content = "\n".join(" ".join(map(str, row)) for row in rows).encode()
    path.write_bytes(damaged(content, damage))
    try:
        bits = read_larochelle(path.parent, "val")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(bits, rows)


def test_a_missing_larochelle_file_is_named(tmp_path):
    with pytest.raises(
        DataError, match="binarized_mnist_train.amat is missing: expected 50,000 lines"
    ):
        bmnist(Source(data_dir=tmp_path), binarize="larochelle")
    with pytest.raises(DataError, match="--data_dir"):
        bmnist(binarize="larochelle")


def test_larochelle_binarised_mnist_only(tmp_path, small_larochelle):
    with pytest.raises(DataError, match="is for mnist only, not for"):
        bmnist(Source("fashion", tmp_path), binarize="larochelle")


def test_larochelle_s_own_bits_have_the_published_checksums(tmp_path, shared_data):
    """His bits are written as `.amat` files and read back."""
    for split, (name, n_images, _) in files.LAROCHELLE.items():
        packed = np.load(shared_data / "larochelle.npz")["valid" if split == "val" else split]
        bits = np.unpackbits(packed)[: n_images * 784].reshape(n_images, 784)
        text = np.full((n_images, 2 * 784), ord(" "), np.uint8)
        text[:, ::2] = bits + ord("0")
        text[:, -1] = ord("\n")
        text.tofile(tmp_path / name)
        assert np.array_equal(read_larochelle(tmp_path, split), bits)
