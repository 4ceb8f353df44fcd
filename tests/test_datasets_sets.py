"""Data sets of MNIST's form: read from folders and files, downloaded if the user allows it."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torchvision.datasets

from datasets import DATASETS, DataError, Source, bmnist, files, mnist, read_mnist
from tests.conftest import ROOT
from tests.idx import idx_files, write_files


@pytest.fixture
def few(monkeypatch):
    """By title, 20 random images and labels that `read_mnist` takes for that data set."""
    shapes = {key: (20, *shape[1:]) for key, shape in files.SHAPES.items()}
    monkeypatch.setattr(files, "SHAPES", shapes)
    rng, few = np.random.default_rng(0), {}
    for title in DATASETS.values():
        few[title] = {
            key: rng.integers(0, 10, shape, dtype=np.uint8) for key, shape in shapes.items()
        }
        if title in files.SHA256:
            sums = {key: hashlib.sha256(array).hexdigest() for key, array in few[title].items()}
            monkeypatch.setitem(files.SHA256, title, sums)
        packed = idx_files(few[title], compressed=True)
        published = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
        monkeypatch.setattr(getattr(torchvision.datasets, title), "resources", published)
    return few


def equal(read, arrays):
    return read.keys() == arrays.keys() and all(np.array_equal(read[k], arrays[k]) for k in read)


def refused(source):
    """The one line that reading ends in."""
    with pytest.raises(DataError) as error:
        read_mnist(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name, title", DATASETS.items())
def test_torchvision_s_folder_is_read_as_torchvision_reads_it(tmp_path, few, name, title):
    for other in DATASETS.values():
        write_files(tmp_path / other / "raw", idx_files(few[other]))
    read = read_mnist(Source(name, tmp_path))
    for split, train in (("train", True), ("test", False)):
        theirs = getattr(torchvision.datasets, title)(tmp_path, train=train)
        assert np.array_equal(read[f"x_{split}"], theirs.data.numpy())
        assert np.array_equal(read[f"y_{split}"], theirs.targets.numpy())
    assert equal(read, few[title])


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name, title", DATASETS.items())
def test_files_in_the_folder_itself_are_read(tmp_path, few, name, title, compressed):
    write_files(tmp_path, idx_files(few[title], compressed))
    assert equal(read_mnist(Source(name, tmp_path)), few[title])


@pytest.mark.parametrize("name, title", DATASETS.items())
def test_a_stray_file_in_torchvision_s_folder_hides_no_complete_set(tmp_path, few, name, title):
    stray = dict([idx_files(few[title]).popitem()])
    write_files(tmp_path / title / "raw", stray)
    contents = idx_files(few[title], compressed=True)
    first, *rest = contents
    write_files(tmp_path, {first: contents[first]})
    line = refused(Source(name, tmp_path))  # two places with some files: the first is named
    assert str(tmp_path / title / "raw" / first.removesuffix(".gz")) in line
    write_files(tmp_path, contents)
    assert equal(read_mnist(Source(name, tmp_path)), few[title])
    if name == "mnist":
        for filename in contents:
            (tmp_path / filename).unlink()
        np.savez(tmp_path / "mnist.npz", **few[title])
        assert equal(read_mnist(Source(name, tmp_path)), few[title])


def test_other_sets_than_mnist_are_in_the_folder_data_by_default(tmp_path, few, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no FashionMNIST in data: expected the IDX files" in refused(Source("fashion"))
    write_files(tmp_path / "data" / "FashionMNIST" / "raw", idx_files(few["FashionMNIST"]))
    assert equal(read_mnist(Source("fashion")), few["FashionMNIST"])


def test_what_is_missing_is_named_with_its_place(tmp_path, few):
    line = refused(Source("fashion", tmp_path))
    assert all(name in line for name in files.IDX_FILES.values()) and "--download" in line
    assert str(tmp_path / "FashionMNIST" / "raw") in line and "mnist.npz" not in line
    contents = idx_files(few["FashionMNIST"])
    del contents["t10k-labels-idx1-ubyte"]
    write_files(tmp_path, contents)
    assert f"{tmp_path / 't10k-labels-idx1-ubyte'} is missing" in refused(
        Source("fashion", tmp_path)
    )


@pytest.mark.parametrize("name, title", DATASETS.items())
def test_the_images_of_another_set_are_refused(tmp_path, few, name, title):
    for other in files.SHA256.keys() - {title}:
        write_files(tmp_path, idx_files(few[other]))
        assert f"not {title}'s (it is {other}'s)" in refused(Source(name, tmp_path))


def test_a_changed_image_is_refused(tmp_path, few):
    few["FashionMNIST"]["x_test"][3, 14, 14] ^= 1
    write_files(tmp_path, idx_files(few["FashionMNIST"]))
    assert "x_test is not FashionMNIST's (its SHA-256" in refused(Source("fashion", tmp_path))


def test_kmnist_s_compressed_files_have_torchvision_s_checksums(tmp_path, few):
    """No checksum of its arrays is at hand."""
    few["KMNIST"]["x_test"][3, 14, 14] ^= 1
    write_files(tmp_path, idx_files(few["KMNIST"], compressed=True))
    line = refused(Source("kmnist", tmp_path))
    assert "t10k-images-idx3-ubyte.gz is not the file that KMNIST publishes" in line


def test_fashion_mnist_is_debian_s(fashion_folder):
    """Read whole, so that its four arrays have their checksums; then as splits of all kinds."""
    source = Source("fashion", fashion_folder)
    arrays = read_mnist(source)
    assert np.array_equal(np.bincount(arrays["y_train"]), np.full(10, 6000))
    grey = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, 784)
    for split, rows in zip(mnist(source), np.split(grey, [50_000, 60_000])):
        assert np.array_equal(split.images.numpy(), rows)
    draw = files.static_draw()
    for split, start in zip(bmnist(source), (0, 50_000, 60_000)):
        rows = slice(start, start + split.n_images)
        assert np.array_equal(split.images.numpy(), draw[rows] < grey[rows])


def test_a_cut_file_of_fashion_mnist_is_named(tmp_path, fashion_folder):
    for path in fashion_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    name = "train-images-idx3-ubyte.gz"
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert f"{name} cannot be read (truncated" in refused(Source("fashion", tmp_path))


@pytest.fixture
def mirror(tmp_path, few, monkeypatch):
    """(folder, requests) of a server that torchvision takes for FashionMNIST's mirror."""
    served, requests = tmp_path / "served", []
    write_files(served, idx_files(few["FashionMNIST"], compressed=True))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    handler = partial(Handler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = [f"http://127.0.0.1:{server.server_port}/"]
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", address)
        yield served, requests
        server.shutdown()


def test_nothing_is_downloaded_until_the_user_allows_it(tmp_path, few, mirror):
    _, requests = mirror
    folder = tmp_path / "data"
    refused(Source("fashion", folder))
    assert requests == [] and not folder.exists()
    n_requests = []
    for _ in range(2):
        assert equal(read_mnist(Source("fashion", folder, download=True)), few["FashionMNIST"])
        n_requests.append(len(requests))
    assert n_requests[0] == n_requests[1] >= 4  # nothing is fetched twice
    assert (folder / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").exists()
    assert equal(read_mnist(Source("fashion", folder)), few["FashionMNIST"])


def test_a_download_that_was_cut_off_is_completed(tmp_path, few, mirror):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    contents = idx_files(few["FashionMNIST"], compressed=True)
    write_files(raw, contents | {"t10k-labels-idx1-ubyte.gz": b"\x1f\x8b"})
    source = Source("fashion", tmp_path / "data", download=True)
    assert equal(read_mnist(source), few["FashionMNIST"])


def test_a_damaged_file_that_torchvision_keeps_is_to_be_deleted(tmp_path, few, mirror):
    raw, name = tmp_path / "data" / "FashionMNIST" / "raw", "t10k-images-idx3-ubyte"
    plain = idx_files(few["FashionMNIST"])
    write_files(raw, plain | {f"{name}.gz": b"\x1f\x8b"})
    source = Source("fashion", tmp_path / "data", download=True)
    words = "--download does not replace it: delete the damaged file first"
    line = refused(source)
    assert f"{raw / name}.gz cannot be read" in line and words in line
    assert (raw / f"{name}.gz").exists()
    (raw / f"{name}.gz").unlink()
    write_files(raw, {name: plain[name][:-1] + b"\xff"})
    line = refused(source)
    assert "x_test is not FashionMNIST's" in line and words in line
    (raw / name).unlink()
    assert equal(read_mnist(source), few["FashionMNIST"])


def test_a_download_that_fails_ends_in_one_line(tmp_path, few, mirror, monkeypatch):
    served, _ = mirror
    (served / "train-labels-idx1-ubyte.gz").write_bytes(b"404: not found\n")
    source = Source("fashion", tmp_path / "data", download=True)
    line = refused(source)
    assert "train-labels-idx1-ubyte" in line and "--download did not help: " in line
    nowhere = ["http://127.0.0.1:1/"]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", nowhere)
    line = refused(dataclasses.replace(source, data_dir=tmp_path / "other"))
    assert "expected the IDX files" in line and "Connection refused" in line


@pytest.mark.thorough
def test_without_a_download_torchvision_is_not_imported():
    """It takes a second or more."""
    code = "import sys, a3_vae_template as vae; vae.bmnist(); print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
