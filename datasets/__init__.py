"""MNIST as rows of 784 pixels, in batches that live on the device the model lives on.

`mnist` gives grey images for the flow, `bmnist` binary ones for the VAE; both return (train, val, test), each an iterable of
float batches. `Stream` is the endless one the GAN trains on. MNIST fits in any memory, so a split is one uint8
tensor on the device: an epoch is a permutation drawn there and an index per batch, without a DataLoader,
worker processes or PIL.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch

N_PIXELS = 784  # 28 x 28
N_VALIDATION = 10_000  # the last of MNIST's 60,000 training images, as in Larochelle's split
BINARIZATIONS = ('static', 'dynamic', 'threshold', 'larochelle')

SHAPES = {'x_train': (60_000, 28, 28), 'y_train': (60_000,), 'x_test': (10_000, 28, 28), 'y_test': (10_000,)}
IDX_FILES = {'x_train': 'train-images-idx3-ubyte', 'y_train': 'train-labels-idx1-ubyte',
             'x_test': 't10k-images-idx3-ubyte', 'y_test': 't10k-labels-idx1-ubyte'}

# SHA-256 of each array's bytes, row by row.
MNIST_SHA256 = {
    'x_train': '741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757',
    'y_train': '1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13',
    'x_test': '6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161',
    'y_test': 'ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5',
}

# SHA-256 of the uniform draws behind the static binarisation (see `static_draw`).
STATIC_DRAW_SHA256 = '97df49202683a78f8b54152b64a9effa709e4f9dd1e12af8c7ac253e4d8f2cce'

# Larochelle & Murray, "The Neural Autoregressive Distribution Estimator" (AISTATS 2011): file, number of
# images, SHA-256 of all bits of the file packed by numpy.packbits.
LAROCHELLE = {
    'train': ('binarized_mnist_train.amat', 50_000, '727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906'),
    'val': ('binarized_mnist_valid.amat', 10_000, 'a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d'),
    'test': ('binarized_mnist_test.amat', 10_000, '9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2'),
}


class DataError(Exception):
    """A data file is missing or not what it should be; the message names the file, in one line."""


class Batches:
    """One split of a data set: an iterable of float batches [<= batch_size, 784] on the images' device.

    Args:
        images: uint8 tensor [n, 784].
        batch_size: images in a batch; the last batch of an epoch may be smaller.
        to_input: maps a uint8 batch to the float batch the model sees. It runs once per batch, so what it draws
            at random (a shift, a binarisation) is fresh in every epoch.
        shuffle: draw a new order at the start of every epoch, from the device's default random generator (the one
            `torch.manual_seed` seeds).
    """

    def __init__(self, images, batch_size, to_input, shuffle=False):
        self.images = images
        self.batch_size = batch_size
        self.to_input = to_input
        self.shuffle = shuffle

    @property
    def n_images(self):
        return len(self.images)

    def __len__(self):
        return -(-self.n_images // self.batch_size)

    def __iter__(self):
        order = torch.randperm(self.n_images, device=self.images.device) if self.shuffle else None
        for start in range(0, self.n_images, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.to_input(self.images[rows] if order is None else self.images.index_select(0, order[rows]))


class Stream:
    """An endless iterable of grey batches [batch_size, 784] over the images, reshuffled after every pass.

    No batch is short: where the batch size does not divide the number of images, a batch takes the last images of one
    pass and the first of the next, so that n passes make n * n_images / batch_size batches.

    Args:
        images: uint8 tensor [n, 784].
        batch_size: images in a batch.
    """

    def __init__(self, images, batch_size):
        self.images = images
        self.batch_size = batch_size
        self.order = torch.empty(0, dtype=torch.int64, device=images.device)  # what is left of this pass

    @property
    def n_images(self):
        return len(self.images)

    def __iter__(self):
        while True:
            while len(self.order) < self.batch_size:
                self.order = torch.cat([self.order, torch.randperm(self.n_images, device=self.images.device)])
            rows, self.order = self.order[:self.batch_size], self.order[self.batch_size:]
            yield self.images.index_select(0, rows).float()

    def state_dict(self):
        return {'order': self.order.clone()}  # without the storage of the whole pass

    def load_state_dict(self, state):
        self.order = state['order'].to(self.images.device)


def mnist(data_dir=None, batch_size=128, device='cpu', max_shift=0):
    """Grey MNIST: (train, val, test) of 50,000 / 10,000 / 10,000 images with values 0..255.

    Args:
        data_dir: folder with `mnist.npz` or the four IDX files; None is the copy in this package.
        batch_size, device: of the batches.
        max_shift: shift each training image by up to this many pixels along each axis, afresh in every epoch.

    Raises:
        DataError: a file is missing, unreadable or not MNIST's.
    """
    arrays = read_mnist(data_dir)
    train, val = np.split(arrays['x_train'], [-N_VALIDATION])
    grey, shifted = torch.Tensor.float, lambda images: random_shift(images, max_shift).float()
    return _splits((train, val, arrays['x_test']), batch_size, device, shifted if max_shift else grey, grey)


def bmnist(data_dir=None, batch_size=128, device='cpu', binarize='static'):
    """Binary MNIST: (train, val, test) of 50,000 / 10,000 / 10,000 images with values 0 and 1.

    Args:
        data_dir: folder with `mnist.npz` or the four IDX files, for 'larochelle' with his three `.amat` files; None is
            the copy of MNIST in this package (which has no `.amat` files).
        batch_size, device: of the batches.
        binarize: 'static', one draw with the pixel's intensity as probability, the same bits everywhere;
            'dynamic', for training a fresh draw in every epoch (validation and test as static);
            'threshold', 1 where the intensity is above 0.5; 'larochelle', Larochelle's own fixed draw.

    Raises:
        DataError: a file is missing, unreadable, or not MNIST's or Larochelle's.
    """
    if binarize not in BINARIZATIONS:
        raise ValueError(f'binarize must be one of {", ".join(BINARIZATIONS)}, not {binarize!r}')
    binary = torch.Tensor.float
    if binarize == 'larochelle':
        splits = [read_larochelle(data_dir, split) for split in LAROCHELLE]
        return _splits(splits, batch_size, device, binary, binary)

    arrays = read_mnist(data_dir)
    grey = np.concatenate([arrays['x_train'], arrays['x_test']]).reshape(-1, N_PIXELS)
    bits = grey > 127 if binarize == 'threshold' else static_draw() < grey
    n_train = SHAPES['x_train'][0] - N_VALIDATION
    train, val, test = np.split(bits.view(np.uint8), [n_train, n_train + N_VALIDATION])
    if binarize == 'dynamic':
        return _splits((grey[:n_train], val, test), batch_size, device, bernoulli_draw, binary)
    return _splits((train, val, test), batch_size, device, binary, binary)


def _splits(arrays, batch_size, device, to_training_input, to_input):
    """The three splits as Batches: training shuffled and mapped by its own function, the others in file order."""
    train, val, test = (torch.from_numpy(array.reshape(-1, N_PIXELS)).to(device) for array in arrays)
    return (Batches(train, batch_size, to_training_input, shuffle=True),
            Batches(val, batch_size, to_input),
            Batches(test, batch_size, to_input))


def static_draw():
    """uint8 draws [70000, 784], uniform on 0..254, so that `draw < pixel` has probability pixel / 255 exactly.

    numpy promises that RandomState's streams never change; the checksum holds it to that.
    """
    draw = np.random.RandomState(0).randint(0, 255, size=(70_000, N_PIXELS), dtype=np.uint8)
    if hashlib.sha256(draw).hexdigest() != STATIC_DRAW_SHA256:
        raise DataError(f'numpy {np.__version__} draws other random numbers than the static binarisation is made of; '
                        'use another numpy release')
    return draw


def bernoulli_draw(images):
    """One Bernoulli draw [n, 784] in {0., 1.} with the pixels' intensities (uint8, 0..255) as probabilities."""
    return (255 * torch.rand(images.shape, device=images.device) < images).float()


def random_shift(images, max_shift=1):
    """Shift each image [n, 784] by a uniform whole number of pixels in -max_shift..max_shift along each axis.

    What leaves one edge does not come back at the other: the image is padded with black before it is cut out.
    """
    n, side, padded_side = len(images), 28, 28 + 2 * max_shift
    padded = torch.nn.functional.pad(images.view(n, side, side), 4 * [max_shift]).view(n, -1)
    row, column = torch.randint(2 * max_shift + 1, (2, n, 1), device=images.device)
    steps = torch.arange(side, device=images.device)
    window = (steps[:, None] * padded_side + steps).view(1, -1)
    return padded.gather(1, window + row * padded_side + column)


def read_mnist(data_dir=None):
    """MNIST as uint8 arrays x_train [60000, 28, 28], y_train [60000], x_test [10000, 28, 28], y_test [10000].

    Raises:
        DataError: a file is missing, unreadable, of the wrong shape, or holds anything but MNIST to the last bit.
    """
    folder = Path(data_dir) if data_dir is not None else Path(__file__).parent
    arrays = _read_arrays(folder)
    for key, array in arrays.items():
        if hashlib.sha256(array).hexdigest() != MNIST_SHA256[key]:
            raise DataError(f'{folder}: {key} is not MNIST\'s (its SHA-256 is another): the file is damaged, or of '
                            'another data set')
    return arrays


def _read_arrays(folder):
    if folder.is_file():
        raise DataError(f'{folder} is a file: name the folder that holds it')
    archive = folder / 'mnist.npz'
    if archive.exists():
        return _read_npz(archive)
    paths = {key: next((path for path in (folder / name, folder / f'{name}.gz') if path.exists()), None)
             for key, name in IDX_FILES.items()}
    if not any(paths.values()):
        raise DataError(f'no MNIST in {folder}: expected mnist.npz, or the IDX files {", ".join(IDX_FILES.values())} '
                        '(plain or .gz)')
    for key, path in paths.items():
        if path is None:
            raise DataError(f'{folder / IDX_FILES[key]} is missing (plain or .gz): MNIST is four IDX files')
    return {key: _read_idx(path, SHAPES[key]) for key, path in paths.items()}


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in SHAPES}
    except KeyError as error:
        raise DataError(f'{path} is not MNIST: {error.args[0]}') from None
    except Exception as error:  # numpy and zipfile raise almost anything for bytes that are not an archive
        raise DataError(f'{path} is not an .npz archive, or truncated or corrupt') from error
    for key, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != SHAPES[key]:
            raise DataError(f'{path}: {key} is {array.dtype} {array.shape}, expected uint8 {SHAPES[key]}')
    return arrays


def _read_idx(path, shape):
    """One IDX file (Yann LeCun's format): 0, 0, 8 (uint8), number of axes, their lengths, then the bytes."""
    n_bytes = int(np.prod(shape))
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, '>i4').tobytes()
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            # One byte more than expected is enough to see that a file is too long.
            content = file.read(len(header) + n_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} cannot be read (truncated or corrupt): {_one_line(error)}') from None
    if not content.startswith(header):
        raise DataError(f'{path} is not an IDX file of uint8 {shape}: it starts with {content[:len(header)].hex()}, '
                        f'expected {header.hex()}')
    if len(content) != len(header) + n_bytes:
        size = 'truncated' if len(content) < len(header) + n_bytes else 'too long'
        raise DataError(f'{path} is {size}: expected {n_bytes} bytes after the header')
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()


def read_larochelle(data_dir, split):
    """Larochelle's fixed binarisation of one split ('train', 'val' or 'test'): uint8 0/1 [n, 784], in file order.

    Raises:
        DataError: the file is missing, is not lines of 784 digits 0 or 1, or has the wrong checksum.
    """
    name, n_images, sha256 = LAROCHELLE[split]
    if data_dir is None:
        raise DataError(f'the larochelle binarisation needs {name} and its two companions: '
                        'name the folder that holds them with --data_dir')
    path = Path(data_dir) / name
    expected = f'{n_images:,} lines of 784 space-separated 0/1'
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise DataError(f'{path} is missing: expected {expected} (Hugo Larochelle\'s {name}) in {data_dir}') from None
    except OSError as error:
        raise DataError(f'{path} cannot be read: {_one_line(error)}') from None
    bits = content[content > ord(' ')] - ord('0')
    if bits.size != n_images * N_PIXELS or bits.max() > 1:
        raise DataError(f'{path} is not Larochelle\'s {name} (truncated or foreign): expected {expected}')
    if hashlib.sha256(np.packbits(bits)).hexdigest() != sha256:
        raise DataError(f'{path} is not Larochelle\'s {name}: the SHA-256 of its packed bits is not {sha256}')
    return bits.reshape(n_images, N_PIXELS)


def _one_line(error):
    return ' '.join(str(error).split()) or type(error).__name__
