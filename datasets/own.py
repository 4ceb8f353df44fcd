"""Your own images: a folder of pictures, an .npy or .npz file, or IDX files, of any size."""

import functools
import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.files import IDX_FILES, DataError, find_idx, one_line, read_idx

PICTURES = (".png", ".jpg", ".jpeg")
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")  # of Pillow; the others have colour
VAL_FRACTION = 1 / 6  # MNIST's 10,000 of 60,000
MIN_IMAGES = 2  # of a split: standard deviations need two

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_own(path: Path, val_fraction: float | None = None) -> Splits:
    """(train, val, test) from someone's images: uint8 [n, height, width] each.

    The last `val_fraction` of the training images validates (None: a sixth). Without test images
    as many again, before those, test. Pictures of a folder are put in a fixed random order first:
    their names often sort by class. Reading them says on stderr what was found.

    Args:
        path: a folder of PNGs and JPEGs, also below it; an .npy file, uint8 [n, height, width]; an
            .npz file with such arrays `x_train` and perhaps `x_test`; an IDX file; or a folder
            with IDX files of MNIST's names, of which only `train-images-idx3-ubyte` must be there.
        val_fraction: of all images but those of `x_test`, for validation; or None.

    Raises:
        DataError: there is nothing to read, a file is damaged, sizes differ, images are too few, or
            a folder has its own split, in `train` and `test`.
    """
    if path.is_dir():
        idx = {key: find_idx(path, IDX_FILES[key]) for key in ("x_train", "x_test")}
        files = [file for file in idx.values() if file] if idx["x_train"] else _pictures(path)
        if not files:
            raise DataError(
                f"{path} holds no images: expected {', '.join(PICTURES)} files, or IDX files"
            )
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"there is no file or folder {path}")
    stats = [file.stat() for file in files]
    state = tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in zip(files, stats))
    return _read(path, state, val_fraction)


def fingerprint(splits: Splits) -> str:
    """The SHA-256 of the images and of how they are split."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.shape).encode())
        digest.update(split)
    return digest.hexdigest()


def _pictures(folder: Path) -> list[Path]:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        raise DataError(
            f"{folder} has folders train and test, whose images would be mixed: save them as "
            "arrays x_train and x_test of an .npz file"
        )
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()
    )


# The end of a run compares samples with the same images again.
@functools.lru_cache(maxsize=1)
def _read(path: Path, state: tuple, val_fraction: float | None) -> Splits:
    """The splits, read from the files in `state`: (file, time of change, size) each."""
    files, note = [file for file, *_ in state], ""
    if files[0].suffix.lower() in PICTURES:
        images, n_colour = _read_pictures(files)
        order = np.random.RandomState(0).permutation(len(images))
        arrays = {"x_train": images[order]}
        if n_colour:
            note = f"; {n_colour:,} in colour became grey"
    elif files[0].suffix.lower() in (".npy", ".npz"):
        arrays = _read_arrays(path)
    else:
        arrays = dict(zip(("x_train", "x_test"), map(read_idx, files)))
    for key, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 3:
            shape = list(array.shape)
            raise DataError(
                f"{path}: {key} is {array.dtype} {shape}, expected uint8 [n, height, width]"
            )
    splits = _split(path, arrays["x_train"], arrays.get("x_test"), val_fraction)
    train, val, test = map(len, splits)
    total, (height, width) = train + val + test, splits[0].shape[1:]
    which = " (height x width)" * (height != width)
    print(
        f"{total:,} images of {height} x {width}{which}: {train:,} for training, {val:,} for "
        f"validation (a GAN trains on these, too), {test:,} for testing{note}",
        file=sys.stderr,
    )
    return splits


def _split(path: Path, images: np.ndarray, test: np.ndarray | None, fraction) -> Splits:
    height, width = images.shape[1:]
    if height * width < 2:
        raise DataError(f"{path}: images of {height} x {width} are too small")
    if test is not None and test.shape[1:] != images.shape[1:]:
        raise DataError(
            f"{path}: training images are {height} x {width}, test images "
            f"{test.shape[1]} x {test.shape[2]}: all must have one height x width"
        )
    n = round(len(images) * (VAL_FRACTION if fraction is None else fraction))
    n_test = n if test is None else len(test)
    n_train = len(images) - n - (n if test is None else 0)
    if min(n_train, n, n_test) < MIN_IMAGES:
        raise DataError(
            f"{path}: {len(images):,} images are too few, or --val_fraction leaves too few: "
            f"{max(n_train, 0):,} to train, {n:,} to validate, {n_test:,} to test"
        )
    if test is None:
        train, test, val = np.split(images, [n_train, n_train + n])
    else:
        train, val = np.split(images, [n_train])
    return train, val, test


def _read_pictures(files: list[Path]) -> tuple[np.ndarray, int]:
    """(uint8 [n, height, width], how many were in colour)."""
    images, n_colour = [], 0
    for file in files:
        try:
            with Image.open(file) as picture:
                n_colour += picture.mode not in GREY_MODES
                images.append(_grey(picture))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{file} cannot be read (damaged, or no picture): {one_line(error)}"
            ) from error
    sizes = Counter(image.shape for image in images)
    if len(sizes) > 1:
        first = {image.shape: file for file, image in zip(reversed(files), reversed(images))}
        found = ", ".join(
            f"{n:,} of {height} x {width} ({first[height, width].name})"
            for (height, width), n in sizes.most_common(3)
        )
        problem = f"all images must have one height x width; there are {found}"
        raise DataError(f"{files[0].parent}: {problem}")
    return np.stack(images), n_colour


def _grey(picture: Image.Image) -> np.ndarray:
    """Grey values in 8 bits, [height, width]; transparency is ignored."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's conversion would clip
        return (np.asarray(picture) // 257).astype(np.uint8)
    return np.asarray(picture.convert("L"))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x_train": np.ascontiguousarray(loaded)}
        with loaded:
            if "x_train" not in loaded:
                keys = ", ".join(loaded) or "nothing"
                raise DataError(f"{path} holds {keys}: expected x_train, and perhaps x_test")
            keys = [key for key in ("x_train", "x_test") if key in loaded]
            return {key: np.ascontiguousarray(loaded[key]) for key in keys}
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile raise almost anything for foreign bytes
        raise DataError(f"{path} is no array file, or truncated or corrupt") from error
