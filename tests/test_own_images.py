"""--dataset PATH: someone's own images, of any size, in all three scripts."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import DataError, Source, bmnist, fingerprint_of, image_shape, mnist, random_shift
from harness import cli
from harness.errors import UsageError, UserError
from harness.references import difference
from tests.conftest import ROOT
from tests.explorer_runs import write_vae

N = 60
FLAGS = {
    vae: "--epochs 1 --hidden_dim 4 --zdim 2 --importance_samples 2",
    nf: "--epochs 1 --n_hidden 4 --n_flows 1 --importance_samples 2 --schedule constant",
    gan: "--n_epochs 2 --batch_size 10",
}


def images(height, width, n=N):
    return np.random.default_rng(0).integers(0, 256, (n, height, width), dtype=np.uint8)


def write_pictures(folder, pictures):
    folder.mkdir(parents=True)
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{n:03}.png")
    return folder


def grey(source):
    return [split.images.numpy() for split in mnist(Source(str(source)))]


def sorted_rows(rows):
    return np.array(sorted(map(bytes, rows)))


def test_a_folder_of_pictures_of_any_depth_is_read_whole(tmp_path, capsys):
    x = images(5, 4)
    x16 = x.astype(np.uint16) * 257
    mixed = [(a, b, np.stack([a] * 3, axis=-1))[n % 3] for n, (a, b) in enumerate(zip(x, x16))]
    folder = write_pictures(tmp_path / "pictures", mixed)
    (folder / "notes.txt").write_text("no picture")
    splits = grey(folder)
    assert [split.shape for split in splits] == [(40, 20), (10, 20), (10, 20)]
    assert np.array_equal(sorted_rows(np.concatenate(splits)), sorted_rows(x.reshape(N, -1)))
    assert capsys.readouterr().err == (
        "60 images of 5 x 4 (height x width): 40 for training, 10 for validation (a GAN trains on "
        "these, too), 10 for testing; 20 in colour became grey\n"
    )
    assert grey(folder)[0].tobytes() == splits[0].tobytes()  # the same order every time


def test_a_folder_with_a_split_of_its_own_is_not_mixed(tmp_path):
    for split in ("train", "test"):
        write_pictures(tmp_path / "pictures" / split, images(5, 4))
    with pytest.raises(DataError, match="has folders train and test"):
        grey(tmp_path / "pictures")


def test_arrays_keep_their_order_and_their_test_images(tmp_path):
    x = images(3, 7)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    train, val, test = grey(tmp_path / "x.npy")
    assert np.array_equal(np.concatenate([train, test, val]), x.reshape(N, -1))
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x[:7], y_train=np.zeros(N))
    train, val, test = grey(tmp_path / "x.npz")
    assert np.array_equal(np.concatenate([train, val]), x.reshape(N, -1))
    assert len(val) == 10 and np.array_equal(test, x[:7].reshape(7, -1))
    third = mnist(Source(str(tmp_path / "x.npz"), val_fraction=1 / 3))
    assert [split.n_images for split in third] == [40, 20, 7]


def test_idx_files_of_any_count_are_read(tmp_path):
    x = images(3, 7)
    content = bytes([0, 0, 8, 3]) + np.array(x.shape, ">i4").tobytes() + x.tobytes()
    for name in ("some-images", "train-images-idx3-ubyte"):
        (tmp_path / name).write_bytes(content)
    for path in (tmp_path / "some-images", tmp_path):
        train, val, test = grey(path)
        assert np.array_equal(np.concatenate([train, test, val]), x.reshape(N, -1))


def test_bits_are_drawn_with_the_pixels_intensities(tmp_path):
    x = np.full((600, 7, 7), 64, np.uint8)
    np.save(tmp_path / "x.npy", x)
    source = Source(str(tmp_path / "x.npy"))
    train, val, test = bmnist(source)
    bits = torch.cat([split.images for split in (train, val, test)]).double()
    assert bits.shape == (600, 49) and abs(bits.mean() - 64 / 255) < 0.01
    assert torch.equal(bmnist(source)[0].images, train.images)
    assert train.image_shape == image_shape(source) == (7, 7)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: cut(folder / "007.png"), "007.png cannot be read"),
        (lambda folder: (folder / "007.png").write_bytes(b"text"), "007.png cannot be read"),
        (
            lambda folder: Image.fromarray(images(6, 4)[0]).save(folder / "007.png"),
            "one height x width; there are 59 of 5 x 4 (000.png), 1 of 6 x 4 (007.png)",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no images"),
        (lambda folder: [p.unlink() for p in folder.glob("0[0-9][1-9].png")], "are too few"),
        (shutil.rmtree, "there is no file or folder"),
    ],
    ids=["cut", "text", "size", "empty", "few", "absent"],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, damage, words):
    folder = write_pictures(tmp_path / "pictures", images(5, 4))
    damage(folder)
    if words == "are too few":
        for path in sorted(folder.iterdir())[3:]:
            path.unlink()
    with pytest.raises(DataError) as error:
        mnist(Source(str(folder)))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x_train": np.zeros((9, 3, 3))}, "x_train is float64 [9, 3, 3], expected uint8"),
        ({"x_train": np.zeros((9, 9), np.uint8)}, "x_train is uint8 [9, 9], expected"),
        ({"images": np.zeros((9, 3, 3), np.uint8)}, "holds images: expected x_train"),
        ({"x_train": images(3, 3), "x_test": images(3, 4)}, "test images 3 x 4"),
        ({"x_train": images(1, 1)}, "images of 1 x 1 are too small"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError) as error:
        mnist(Source(str(tmp_path / "x.npz")))
    assert words in str(error.value)


def test_too_little_memory_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    np.save(tmp_path / "x.npy", images(5, 4))
    monkeypatch.setattr(np, "load", load)
    with pytest.raises(MemoryError):
        mnist(Source(str(tmp_path / "x.npy")))


def test_too_few_images_for_a_named_set_point_to_dataset(tmp_path):
    x = images(28, 28, 50)
    y = np.zeros(50, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = "50 images of 28 x 28 where MNIST has 60,000 images of 28 x 28: use --dataset PATH"
    with pytest.raises(DataError, match=words):
        mnist(Source(data_dir=tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        ["--dataset", "no_such_set"],
        ["--dataset", ""],
        ["--val_fraction", "0.2"],
        ["--val_fraction", "1.5"],
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(UsageError, match=options[0]):
        vae.Config.parse(options)


def test_the_checkerboard_has_any_size():
    for height, width in ((1, 2), (7, 7), (27, 21), (4, 9)):
        board = nf.get_mask(height, width).view(height, width)
        expected = [[(row + column + 1) % 2 for column in range(width)] for row in range(height)]
        assert board.tolist() == expected
    assert torch.equal(nf.get_mask(), nf.get_mask(28, 28))


def test_shifts_keep_what_stays_inside_whatever_the_shape():
    image = torch.arange(1, 13).view(1, 12).expand(200, 12)
    seen = {bytes(row.byte().numpy()) for row in random_shift(image, 1, (3, 4))}
    padded = np.pad(np.arange(1, 13).reshape(3, 4), 1)
    windows = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    assert seen == {window.astype(np.uint8).tobytes() for window in windows}


@pytest.mark.thorough
@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_a_script_trains_loads_and_resumes_on_odd_images(tmp_path, script, capsys):
    data, folder = tmp_path / "odd.npy", tmp_path / "run"
    np.save(data, images(7, 5))
    words = [*FLAGS[script].split(), "--quality_samples", "100", "--device", "cpu"]
    config = script.Config.parse([*words, "--dataset", str(data), "--out", str(folder)])
    assert "-odd-" in config.name
    script.main(config)
    assert capsys.readouterr().err.count("60 images of 7 x 5") <= 1
    result = json.loads((folder / "result.json").read_text())
    differs = "not comparable: dataset is .../odd.npy, not mnist"
    assert {row["verdict"] for row in result["graded"]} == {differs}
    assert differs.endswith(difference(script.Config.SCRIPT, config.flat()))
    for path in folder.glob("samples_*.npz"):
        with np.load(path) as arrays:
            assert arrays["image_shape"].tolist() == [7, 5]
            assert all(arrays[key].shape[1] == 35 for key in arrays if key != "image_shape")
    assert list(folder.glob("samples_*.npz"))

    longer = ["--n_epochs" if script is gan else "--epochs", "3"]
    script.main(script.Config.parse(["--resume", str(folder), *longer]))
    np.save(data, images(7, 5)[::-1])
    with pytest.raises(UserError, match="odd.npy has changed since"):
        script.main(script.Config.parse(["--evaluate", str(folder)]))
    data.unlink()  # a trained model needs no data
    samples = script.load_model(folder).sample(3)
    samples = samples[0] if script is vae else samples
    assert samples.shape == (3, 35)


def test_named_sets_have_no_fingerprint_and_own_images_one_of_their_split(tmp_path):
    np.save(tmp_path / "x.npy", images(3, 3))
    of = [Source(str(tmp_path / "x.npy"), val_fraction=f) for f in (None, 1 / 6, 0.3)]
    first, same, other = map(fingerprint_of, of)
    assert first == same != other and fingerprint_of(Source()) is None


def test_the_error_ends_a_script_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["a3_vae_template.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(vae.main, lambda: vae.Config.parse(["--dataset", str(tmp_path)]))
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and "holds no images" in error


def test_a_model_is_loaded_from_any_working_directory(tmp_path):
    """With the repository on the path, and a run on images that are no longer there."""
    write_vae(tmp_path / "runs" / "mine", 2, dataset=str(tmp_path / "gone"))
    done = subprocess.run(
        [sys.executable, "-c", "import a3_vae_template as vae; vae.load_model('mine').sample(1)"],
        cwd=tmp_path / "runs",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
