"""Modules that stand in for the course's, for plotting and for whatever else is not installed.

The course's `datasets.bmnist` and `datasets.mnist`, and torchvision, give a few of our images
behind their own interface. Everything else that is missing becomes a `Stub`.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm, trange

ALWAYS_STUBS = ("matplotlib", "pandas", "seaborn", "sacred", "tensorboardX", "tensorboard", "wandb",
                "IPython", "imageio", "cv2", "plotly", "visdom", "mpl_toolkits", "pylab",
                "torchsummary", "torchviz", "tensorflow", "skimage", "sklearn",
                "ipywidgets")  # fmt: skip


BATCHES = types.SimpleNamespace(limit=None)  # images in a batch of a DataLoader, at most


class Stub:
    """Anything: attributes, calls and items are stubs again; as a decorator it changes nothing."""

    def __init__(self, *args, **options):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub()

    def __call__(self, *args, **options):  # noqa: D102
        if len(args) == 1 and not options and isinstance(args[0], type):
            return args[0]
        if len(args) == 1 and not options and isinstance(args[0], types.FunctionType):
            return _filled(args[0])
        return Stub()

    def __getitem__(self, key):
        return Stub()

    def __setitem__(self, key, value):
        pass

    def __iter__(self):
        return iter((Stub(), Stub()))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def __len__(self):
        return 0

    def __bool__(self):
        return True

    def __array__(self, dtype=None, copy=None):
        array = np.empty(1, dtype=object)
        array[0] = Stub()
        return array


def _filled(function):
    """A decorated function: what its decorator would have passed in becomes a stub."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **options):
        given = signature.bind_partial(*args, **options).arguments
        for name, parameter in signature.parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if name not in given and parameter.default is parameter.empty and not variadic:
                options[name] = Stub()
        return function(*args, **options)

    return call


def _write_empty(file, *args, **options):
    """In place of saving a picture: the file is there for what follows."""
    if isinstance(file, str | Path):
        with contextlib.suppress(OSError):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()


class StubModule(types.ModuleType):
    """A module of stubs."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _write_empty if name in ("savefig", "imsave") else Stub()


class CallableModule(types.ModuleType):
    """A module that can be called like the function of its name in it."""

    def __call__(self, *args, **options):  # noqa: D102
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


class Images(Dataset):
    """Images as a data set: items are images, or (image, label) pairs."""

    def __init__(self, images, labels=None, transform=None):
        self.data, self.targets, self.transform = images, labels, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = self.data[index]
        image = image if self.transform is None else self.transform(image)
        return image if self.targets is None else (image, int(self.targets[index]))


class Missing(NamedTuple):
    """A module that is neither beside the submission nor installed, and where it is imported."""

    name: str
    file: str
    line: int


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins by name; unknown modules only if nothing else finds them (`last`).

    Stubs are given to code in this folder only: a library that looks for an optional package must
    not find one.
    """

    def __init__(self, modules: dict, missing: list, folder: str, last: bool = False):
        self.modules, self.missing, self.folder, self.last = modules, missing, folder, last
        self.asked_at = "", 0

    def _is_asked_by_submission(self):
        frame = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None or not frame.f_code.co_filename.startswith(self.folder):
            return False
        self.asked_at = frame.f_code.co_filename, frame.f_lineno
        return True

    @staticmethod
    def _is_real(package):
        """Namespaces, such as `google`, may hold more on another machine: they decide nothing."""
        is_namespace = getattr(package, "__file__", None) is None
        return package is not None and not isinstance(package, StubModule) and not is_namespace

    def find_spec(self, name, path=None, target=None):  # noqa: D102
        top = name.partition(".")[0]
        if name not in self.modules and not self._is_asked_by_submission():
            return None
        known = name in self.modules or top in ALWAYS_STUBS or name == "torch.utils.tensorboard"
        if not known and not self.last:
            return None
        if self.last and self._is_real(sys.modules.get(top)):
            return None  # a submodule that a real package lacks is an error
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):  # noqa: D102
        if spec.name in self.modules:
            return self.modules[spec.name]
        if self.last:
            self.missing.append(Missing(spec.name, *self.asked_at))
        return StubModule(spec.name)

    def exec_module(self, module):  # noqa: D102
        pass


def _module(name, kind=types.ModuleType, **content):
    module = kind(name)
    module.__path__ = []
    vars(module).update(content)
    return module


def _loaders(sets, batch_size):
    return tuple(DataLoader(s, batch_size=batch_size, shuffle=i == 0) for i, s in enumerate(sets))


def course_modules(binary, grey, labels) -> dict:
    """`datasets.bmnist` and `datasets.mnist`: loaders of (train, val, test) as the course's.

    Args:
        binary, grey: images [n, 784], bits and 0..255.
        labels: [n].
    """

    def bmnist(root="./data/", batch_size=128, download=True, **options):
        images = binary.float().view(-1, 1, 28, 28)
        return _loaders([Images(part) for part in images.chunk(3)], batch_size)

    def mnist(root="./data/", batch_size=128, download=True, **options):
        parts = zip(grey.float().chunk(3), labels.chunk(3))
        return _loaders([Images(*part) for part in parts], batch_size)

    return {
        "datasets.bmnist": _module("datasets.bmnist", CallableModule, bmnist=bmnist),
        "datasets.mnist": _module("datasets.mnist", CallableModule, mnist=mnist),
    }


def progress_modules() -> dict:
    """tqdm's bars for notebooks, which need widgets, are its bars for terminals."""
    bars = {"tqdm": tqdm, "tqdm_notebook": tqdm, "trange": trange, "tnrange": trange}
    names = ("tqdm.notebook", "tqdm.auto", "tqdm.autonotebook")
    return {name: _module(name, **bars) for name in names}


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):  # noqa: D102
        for transform in self.transforms:
            image = transform(image)
        return image


def _transform(function):
    """A transform's class, whose arguments come before the image."""

    class Transform:
        def __init__(self, *args, **options):
            self.args, self.options = args, options

        def __call__(self, image):
            return function(image, *self.args, **self.options)

    return Transform


def to_tensor(image):
    """An array [28, 28] of 0..255 as a tensor [1, 28, 28] in [0, 1]."""
    return image if isinstance(image, torch.Tensor) else torch.tensor(image)[None].float() / 255


def normalize(image, mean, std, inplace=False):
    """(image - mean) / std per channel; more means than channels are ignored, as in 2018."""
    mean, std = (torch.tensor(part).float().reshape(-1)[: len(image)] for part in (mean, std))
    return (image - mean[:, None, None]) / std[:, None, None]


def resize(image, size, *args, **options):
    """Bilinear, on arrays and tensors."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    tensor = torch.as_tensor(np.asarray(image)).float()
    tensor = F.interpolate(tensor.reshape(1, -1, *tensor.shape[-2:]), size, mode="bilinear")[0]
    return tensor if isinstance(image, torch.Tensor) else tensor[0].byte().numpy()


def torchvision_modules(grey, labels, on_picture) -> dict:
    """The parts of torchvision that the assignment uses.

    Args:
        grey, labels: what `datasets.MNIST` holds.
        on_picture: called without arguments whenever a picture is saved.
    """

    def mnist(root=None, train=True, transform=None, target_transform=None, download=False, **_):
        return Images(grey.reshape(-1, 28, 28).numpy().astype(np.uint8), labels, transform)

    def make_grid(images, *args, **options):
        return torch.zeros(3, 32, 32)

    def save_image(images, *args, **options):
        on_picture()

    same = _transform(lambda image, *args, **options: image)
    names = ("Pad", "RandomAffine", "CenterCrop", "RandomCrop", "RandomRotation", "ToPILImage",
             "Grayscale", "RandomHorizontalFlip")  # fmt: skip
    transforms = _module(
        "torchvision.transforms",
        Compose=Compose,
        ToTensor=_transform(to_tensor),
        Normalize=_transform(normalize),
        Resize=_transform(resize),
        Scale=_transform(resize),
        Lambda=_transform(lambda image, function: function(image)),
        functional=_module("functional", to_tensor=to_tensor, normalize=normalize, resize=resize),
        **dict.fromkeys(names, same),
    )
    datasets = _module("torchvision.datasets", MNIST=mnist, FashionMNIST=mnist)
    utils = _module("torchvision.utils", make_grid=make_grid, save_image=save_image)
    top = _module("torchvision", transforms=transforms, datasets=datasets, utils=utils)
    modules = {module.__name__: module for module in (top, transforms, datasets, utils)}
    return modules | {
        "torchvision.models": StubModule("torchvision.models"),
        "torchvision.datasets.utils": StubModule("torchvision.datasets.utils"),
        "torchvision.transforms.functional": transforms.functional,
    }
