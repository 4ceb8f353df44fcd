"""Reading MNIST, data sets of the same form, and Larochelle's binarisation; files are checked."""

import gzip
import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

N_PIXELS = 784  # 28 x 28
N_IMAGES = 70_000  # with the test images

SHAPES = {
    "x_train": (60_000, 28, 28),
    "y_train": (60_000,),
    "x_test": (10_000, 28, 28),
    "y_test": (10_000,),
}
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}

# By title: SHA-256 of each array's bytes, row by row.
SHA256 = {
    "MNIST": {
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "FashionMNIST": {
        "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
}
# Data sets by name: their title, which is torchvision's for the class and for the folder.
DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}
PACKAGE = Path(__file__).parent  # has MNIST
DEFAULT_FOLDER = Path("data")  # has the others, unless the user names another

# SHA-256 of the uniform draws behind the static binarisation (see `static_draw`).
STATIC_DRAW_SHA256 = "97df49202683a78f8b54152b64a9effa709e4f9dd1e12af8c7ac253e4d8f2cce"

# Larochelle & Murray, "The Neural Autoregressive Distribution Estimator" (AISTATS 2011):
# file, number of images, SHA-256 of all bits of the file packed by numpy.packbits.
LAROCHELLE = {
    "train": (
        "binarized_mnist_train.amat",
        50_000,
        "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906",
    ),
    "val": (
        "binarized_mnist_valid.amat",
        10_000,
        "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d",
    ),
    "test": (
        "binarized_mnist_test.amat",
        10_000,
        "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2",
    ),
}


class DataError(Exception):
    """A data file is missing or wrong; the message names the file in one line."""


@dataclass(frozen=True)
class Source:
    """Where images come from."""

    # the images to train on: mnist, fashion, kmnist, or your own: a folder of PNGs or JPEGs, or an
    # .npy, .npz or IDX file; any height x width, the same for all
    dataset: str = "mnist"
    # folder of the data set's four IDX files, plain or .gz, there or in torchvision's folder below
    # it, such as FashionMNIST/raw; for mnist also mnist.npz (None: mnist from the copy in
    # datasets/, the others from data/)
    data_dir: Path | None = None
    download: bool = False  # let torchvision fetch a data set that is missing
    # the share of your own images that validates, and, unless they come with test images, that
    # tests (None: a sixth)
    val_fraction: float | None = None

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("--dataset: the name is empty")
        if self.is_own:
            path = Path(os.path.expanduser(self.dataset))
            if path.name == self.dataset and not path.exists():
                sets = ", ".join(DATASETS)
                raise ValueError(
                    f"--dataset: {self.dataset} is neither one of {sets} nor a file or folder here"
                )
            # Whatever the working directory of those who load, resume or sample the run.
            object.__setattr__(self, "dataset", os.path.abspath(path))
            if self.data_dir is not None or self.download:
                raise ValueError("--data_dir and --download are for named data sets")
        elif self.val_fraction is not None:
            raise ValueError(f"--val_fraction is for your own images, not for {self.dataset}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"--val_fraction must be between 0 and 1, not {self.val_fraction}")

    @property
    def is_own(self) -> bool:
        """Whether the images are none of the named sets but someone's own."""
        return self.dataset not in DATASETS

    @property
    def name(self) -> str:
        """A short name: 'mnist', or that of the file or folder, as a folder's name allows."""
        if not self.is_own:
            return self.dataset
        path = Path(self.dataset)
        stem = path.name if path.is_dir() else path.name.partition(".")[0]
        return re.sub(r"[^\w.-]+", "_", stem) or "images"

    @property
    def title(self) -> str:
        """The name of the set, as torchvision writes it."""
        return DATASETS.get(self.dataset, self.name)

    @property
    def folder(self) -> Path:
        """The folder with the files."""
        if self.data_dir is not None:
            return Path(os.path.expanduser(self.data_dir))
        return PACKAGE if self.dataset == "mnist" else DEFAULT_FOLDER


MNIST = Source()


def static_draw(shape: tuple[int, int] = (N_IMAGES, N_PIXELS)) -> np.ndarray:
    """The draws behind the static binarisation, uint8 [n, n_pixels], uniform on 0..254.

    So `draw < pixel` has probability pixel / 255 exactly. numpy promises that RandomState's
    streams never change; the checksum holds it to that.

    Raises:
        DataError: this numpy draws other numbers.
    """
    draw = np.random.RandomState(0).randint(0, 255, size=shape, dtype=np.uint8)
    of_mnist = shape == (N_IMAGES, N_PIXELS)
    if of_mnist and hashlib.sha256(draw).hexdigest() != STATIC_DRAW_SHA256:
        raise DataError(
            f"numpy {np.__version__} draws other random numbers than those behind the static "
            "binarisation; use another numpy release"
        )
    return draw


def read_mnist(source: Source = MNIST) -> dict[str, np.ndarray]:
    """MNIST, or a set of its form, as uint8 arrays `x_train`, `y_train`, `x_test`, `y_test`.

    They have the shapes in SHAPES. The files are four in the IDX format, plain or .gz, in the
    source's folder or in torchvision's below it (`FashionMNIST/raw`); for MNIST also `mnist.npz`.

    Raises:
        DataError: a file is missing, unreadable, of the wrong shape, or not of this set; or the
            download failed.
    """
    try:
        return _read_checked(source)
    except DataError as error:
        if not source.download or source.folder == PACKAGE:
            raise
        problem = error
    try:
        _torchvision_class(source.title)(source.folder, download=True)
    except Exception as error:  # without a network, and torchvision reads damaged files, too
        raise DataError(f"{problem}; --download did not help: {one_line(error)}") from error
    try:
        return _read_checked(source)
    except DataError as error:  # torchvision leaves a set as it is if all its plain files exist
        hint = "--download does not replace it: delete the damaged file first"
        raise DataError(f"{error}; {hint}") from error


def _torchvision_class(title: str) -> type:
    import torchvision.datasets  # takes a second, which a training without it should not wait

    return getattr(torchvision.datasets, title)


def _read_checked(source: Source) -> dict[str, np.ndarray]:
    arrays = _read_arrays(source)
    for key, array in arrays.items():
        sha256 = hashlib.sha256(array).hexdigest()
        whose = next((title for title, known in SHA256.items() if known[key] == sha256), None)
        if whose not in (source.title, None) or whose is None and source.title in SHA256:
            problem = f"it is {whose}'s" if whose else "its SHA-256 is another: a file is damaged"
            raise DataError(f"{source.folder}: {key} is not {source.title}'s ({problem})")
    return arrays


def _read_arrays(source: Source) -> dict[str, np.ndarray]:
    folder, title = source.folder, source.title
    if folder.is_file():
        raise DataError(f"{folder} is a file: name the folder that holds it")
    torchvision_folder, archive = folder / title / "raw", folder / "mnist.npz"
    places = {place: _idx_paths(place) for place in (torchvision_folder, folder)}
    complete = [place for place, paths in places.items() if all(paths.values())]
    started = [place for place, paths in places.items() if any(paths.values())]
    if source.dataset == "mnist" and archive.exists() and torchvision_folder not in complete:
        return _read_npz(archive)
    folder = [*complete, *started, folder][0]
    paths = places[folder]
    missing = [name for key, name in IDX_FILES.items() if paths[key] is None]
    hint = "" if source.download else "; --download fetches them"
    if source.folder == PACKAGE:  # nothing is downloaded into it
        hint = "; --data_dir DIR --download fetches them into DIR"
    if len(missing) == len(paths):
        npz = "mnist.npz, or " if source.dataset == "mnist" else ""
        raise DataError(
            f"no {title} in {folder}: expected {npz}the IDX files {', '.join(missing)} (plain or "
            f".gz), there or in {torchvision_folder}{hint}"
        )
    if missing:
        raise DataError(
            f"{folder / missing[0]} is missing (plain or .gz): {title} is four IDX files{hint}"
        )
    if title not in SHA256:
        _check_published(title, paths.values())
    arrays = {key: read_idx(path) for key, path in paths.items()}
    for key, array in arrays.items():
        _check_shape(str(paths[key]), title, array.shape, SHAPES[key])
    return arrays


def _idx_paths(folder: Path) -> dict[str, Path | None]:
    """The four IDX files of a folder, .gz first: these have a checksum."""
    return {key: find_idx(folder, name) for key, name in IDX_FILES.items()}


def find_idx(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in a folder, .gz or plain."""
    return next(filter(Path.exists, (folder / f"{name}.gz", folder / name)), None)


def _check_published(title: str, paths: Iterable[Path]) -> None:
    """Compare .gz files with the MD5 sums that torchvision knows."""
    packed = [path for path in paths if path.suffix == ".gz"]
    published = dict(_torchvision_class(title).resources) if packed else {}
    for path in packed:
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if md5 != published[path.name]:
            raise DataError(
                f"{path} is not the file that {title} publishes (its MD5 is another): it is "
                "damaged, of another data set, or compressed anew (then unpack it)"
            )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.ascontiguousarray(archive[key]) for key in SHAPES}
    except KeyError as error:
        raise DataError(f"{path} is not MNIST: {error.args[0]}") from None
    except MemoryError:
        raise
    except Exception as error:  # numpy and zipfile raise almost anything for foreign bytes
        raise DataError(f"{path} is not an .npz archive, or truncated or corrupt") from error
    for key, array in arrays.items():
        if array.dtype != np.uint8:
            raise DataError(f"{path}: {key} is {array.dtype}, expected uint8")
        _check_shape(f"{path}: {key}", "MNIST", array.shape, SHAPES[key])
    return arrays


def read_idx(path: Path) -> np.ndarray:
    """Read a file in LeCun's IDX format: 0, 0, 8 (uint8), number of axes, their lengths, bytes.

    Raises:
        DataError: it is not in this format, or damaged.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read (truncated or corrupt): {one_line(error)}"
        ) from None
    n_axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * n_axes
    if content[:3] != bytes([0, 0, 8]) or not 1 <= n_axes <= 4 or len(content) < start:
        raise DataError(f"{path} is no IDX file of bytes (foreign, truncated or corrupt)")
    shape = tuple(map(int, np.frombuffer(content, ">i4", n_axes, offset=4)))
    n_bytes = math.prod(shape)
    if min(shape) < 0 or len(content) != start + n_bytes:
        size = "truncated" if len(content) < start + n_bytes else "too long"
        raise DataError(f"{path} is {size}: its header says {_counted(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _counted(shape: tuple[int, ...]) -> str:
    """'60,000 images of 28 x 28', or '60,000 labels'."""
    if len(shape) == 1:
        return f"{shape[0]:,} labels"
    return f"{shape[0]:,} images of {' x '.join(map(str, shape[1:]))}"


def _check_shape(place: str, title: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise DataError(
            f"{place}: {_counted(found)} where {title} has {_counted(expected)}: "
            "use --dataset PATH for your own"
        )


def read_larochelle(data_dir: str | Path | None, split: str) -> np.ndarray:
    """Larochelle's fixed binarisation of one split: uint8 0/1 [n, 784], in file order.

    Args:
        data_dir: folder with the three `.amat` files.
        split: 'train', 'val' or 'test'.

    Raises:
        DataError: the file is missing, not lines of 784 digits 0 or 1, or has another checksum.
    """
    name, n_images, sha256 = LAROCHELLE[split]
    if data_dir is None:
        raise DataError(
            f"the larochelle binarisation needs {name} and its two companions: "
            "name the folder that holds them with --data_dir"
        )
    path = Path(data_dir) / name
    expected = f"{n_images:,} lines of 784 space-separated 0/1"
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: expected {expected} (Hugo Larochelle's {name}) in {data_dir}"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None
    bits = content[content > ord(" ")] - ord("0")
    if bits.size != n_images * N_PIXELS or bits.max() > 1:
        raise DataError(
            f"{path} is not Larochelle's {name} (truncated or foreign): expected {expected}"
        )
    if hashlib.sha256(np.packbits(bits)).hexdigest() != sha256:
        raise DataError(
            f"{path} is not Larochelle's {name}: the SHA-256 of its packed bits is not {sha256}"
        )
    return bits.reshape(n_images, N_PIXELS)


def one_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
