"""Reading MNIST: what is read is MNIST, and every damaged file is named in one line."""

import gzip
import hashlib
import io

import numpy as np
import pytest
from hypothesis import example, given, settings

from datasets import DataError, Source, files, read_mnist
from tests.damage import DAMAGE, damaged
from tests.idx import idx_files, write_files


@pytest.fixture
def few(arrays, monkeypatch):
    """The first 20 images of each split, which `read_mnist` takes for MNIST."""
    few = {key: array[:20] for key, array in arrays.items()}
    monkeypatch.setattr(files, "SHAPES", {key: array.shape for key, array in few.items()})
    checksums = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in few.items()}
    monkeypatch.setitem(files.SHA256, "MNIST", checksums)
    return few


@pytest.fixture
def few_files(few):
    return idx_files(few)


def test_mnist_is_the_original(arrays):
    assert {
        key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()
    } == files.SHA256["MNIST"]


def test_an_archive_in_another_order_of_memory_is_read(tmp_path, few):
    np.savez(tmp_path / "mnist.npz", **few | {"x_test": np.asfortranarray(few["x_test"])})
    assert np.array_equal(read_mnist(Source(data_dir=tmp_path))["x_test"], few["x_test"])


def test_idx_files_are_read(tmp_path, arrays):
    write_files(tmp_path, idx_files(arrays))
    for key, array in read_mnist(Source(data_dir=tmp_path)).items():
        assert np.array_equal(array, arrays[key])


def test_compressed_idx_files_are_read(tmp_path, few):
    write_files(tmp_path, idx_files(few, compressed=True))
    for key, array in read_mnist(Source(data_dir=tmp_path)).items():
        assert np.array_equal(array, few[key])


def test_an_archive_is_read_from_another_folder(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    assert np.array_equal(read_mnist(Source(data_dir=tmp_path))["y_test"], arrays["y_test"])


def test_no_mnist_names_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="expected mnist.npz"):
        read_mnist(Source(data_dir=tmp_path))
    with pytest.raises(DataError, match="expected mnist.npz"):
        read_mnist(Source(data_dir=tmp_path / "absent"))
    (tmp_path / "mnist.npz").write_bytes(b"")
    with pytest.raises(DataError, match="name the folder"):
        read_mnist(Source(data_dir=tmp_path / "mnist.npz"))


def test_the_copy_of_this_project_is_not_said_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    for source in (Source(), Source(download=True)):
        with pytest.raises(DataError, match="; --data_dir DIR --download fetches them into DIR$"):
            read_mnist(source)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_idx_file_is_named(tmp_path, few_files):
    del few_files["train-labels-idx1-ubyte"]
    write_files(tmp_path, few_files)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is missing"):
        read_mnist(Source(data_dir=tmp_path))


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda content: b"",
        "within the magic number": lambda content: content[:3],
        "within the header": lambda content: content[:6],
        "after the header": lambda content: content[:8],
        "half": lambda content: content[: len(content) // 2],
        "one byte short": lambda content: content[:-1],
        "one byte long": lambda content: content + b"\0",
        "other magic number": lambda content: b"\0\0\x09" + content[3:],
        "other length": lambda content: content[:7] + b"\x11" + content[8:],
        "text": lambda content: b"404: not found\n",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_a_damaged_idx_file_is_named(tmp_path, few_files, damage, compressed):
    name = "t10k-labels-idx1-ubyte"
    content = damage[1](few_files.pop(name))
    name += ".gz" if compressed else ""
    write_files(tmp_path, few_files | {name: gzip.compress(content) if compressed else content})
    with pytest.raises(DataError, match=name) as error:
        read_mnist(Source(data_dir=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, -1])
def test_a_truncated_gzip_file_is_named(tmp_path, few_files, kept):
    name = "t10k-labels-idx1-ubyte"
    content = gzip.compress(few_files.pop(name))
    content = content[: int(kept * len(content)) if isinstance(kept, float) else kept]
    write_files(tmp_path, few_files | {name + ".gz": content})
    with pytest.raises(DataError, match=name):
        read_mnist(Source(data_dir=tmp_path))


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_damaged_archives_are_named(tmp_path, few):
    whole = npz(**few)
    contents = [
        b"",
        b"PK\x03\x04",
        b"text\n",
        npz(x_train=few["x_train"]),
        npz(**few | {"x_train": few["x_train"][:5]}),
        npz(**few | {"y_test": np.array([{}], dtype=object)}),
        npz(**few | {"y_test": few["y_test"].astype(np.int64)}),
    ]
    contents += [whole[:n] for n in (1, 30, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1)]
    flipped = bytearray(whole)
    flipped[200] ^= 255
    contents.append(bytes(flipped))
    for content in contents:
        (tmp_path / "mnist.npz").write_bytes(content)
        with pytest.raises(DataError, match="mnist.npz") as error:
            read_mnist(Source(data_dir=tmp_path))
        assert "\n" not in str(error.value)


def test_images_of_another_data_set_are_refused(tmp_path, few):
    other = few["x_train"].copy()
    other[3, 14, 14] ^= 1
    (tmp_path / "mnist.npz").write_bytes(npz(**few | {"x_train": other}))
    with pytest.raises(DataError, match="x_train is not MNIST's"):
        read_mnist(Source(data_dir=tmp_path))


def test_an_archive_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    with pytest.raises(DataError, match="mnist.npz"):
        read_mnist(Source(data_dir=tmp_path))


@pytest.fixture
def mnist_folder(tmp_path, few, few_files):
    def folder(kind):
        """Write MNIST as npz, idx or gz; the path of one file, and its bytes."""
        if kind == "npz":
            path, content = tmp_path / "mnist.npz", npz(**few)
        else:
            name = files.IDX_FILES["y_test"]
            content = few_files.pop(name)
            write_files(tmp_path, few_files)
            path = tmp_path / (name + (".gz" if kind == "gz" else ""))
            content = gzip.compress(content) if kind == "gz" else content
        return path, content

    return folder


@pytest.mark.parametrize("kind", ["npz", "idx", "gz"])
def test_any_damage_is_found_or_harmless(mnist_folder, few, kind):
    path, content = mnist_folder(kind)

    @settings(deadline=None)
    @given(DAMAGE)
    @example(("overwrite", len(content) // 2, b"\0"))
    def check(damage):
        path.write_bytes(damaged(content, damage))
        try:
            read = read_mnist(Source(data_dir=path.parent))
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert all(np.array_equal(read[key], few[key]) for key in few)

    check()
