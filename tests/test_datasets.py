import gzip
import hashlib
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st

import datasets
from datasets import BINARIZATIONS, DataError, Stream, bmnist, mnist, random_shift, read_larochelle, read_mnist

# Of each split's bits through numpy.packbits.
STATIC_SHA256 = {
    'train': '55381f763a3d1ea1b5f3837f2e5fb64df6d293cb7a3b86981fb7d22374638c70',
    'val': 'af209eacc1ceb73677c4312b351f57cd759184ba88191bf7c87431a1dbb3ba7b',
    'test': '062bd09b318ac843a2380fa254f90b6981180905fbcc7644212bc533068d0e40',
}


@pytest.fixture(scope='session')
def arrays():
    return read_mnist()


@pytest.fixture
def idx_files(arrays):
    """The four IDX files of MNIST, as bytes: magic number and lengths big-endian, then the pixels."""
    return {name: bytes([0, 0, 8, arrays[key].ndim])
            + b''.join(n.to_bytes(4, 'big') for n in arrays[key].shape) + arrays[key].tobytes()
            for key, name in datasets.IDX_FILES.items()}


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_mnist_is_the_original(arrays):
    assert {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()} == datasets.MNIST_SHA256


def test_splits(arrays):
    train, val, test = mnist(batch_size=128)
    assert [split.n_images for split in (train, val, test)] == [50_000, 10_000, 10_000]
    assert [len(split) for split in (train, val, test)] == [391, 79, 79]
    val_images = torch.cat(list(val))
    assert val_images.dtype == torch.float32
    assert np.array_equal(val_images.numpy(), arrays['x_train'][50_000:].reshape(-1, 784))
    assert np.array_equal(torch.cat(list(test)).numpy(), arrays['x_test'].reshape(-1, 784))


def test_training_batches_are_a_new_permutation_each_epoch():
    train, _, _ = mnist(batch_size=128)
    numbered = datasets.Batches(torch.arange(1000, dtype=torch.int32)[:, None], 128, torch.Tensor.float, shuffle=True)
    assert train.shuffle
    torch.manual_seed(0)
    first, second = (torch.cat(list(numbered)).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, torch.arange(1000.0))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(numbered)).flatten(), first)


def test_stream_fills_every_batch_and_visits_every_image_once_a_pass():
    stream = Stream(torch.arange(100, dtype=torch.uint8)[:, None], 64)
    batches = list(itertools.islice(stream, 25))  # 1,600 images: 16 passes
    assert all(len(batch) == 64 for batch in batches)
    passes = torch.cat(batches).flatten().view(16, 100)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(100.0).expand(16, 100))
    assert not torch.equal(passes[0], passes[1])


def test_the_static_draw_is_the_same_everywhere(arrays):
    splits = dict(zip(STATIC_SHA256, bmnist(binarize='static')))
    assert {name: hashlib.sha256(np.packbits(split.images.numpy())).hexdigest()
            for name, split in splits.items()} == STATIC_SHA256


def test_the_static_draw_has_the_pixels_intensities_as_probabilities(arrays):
    bits = bmnist(binarize='static')[0].images.numpy()
    grey = arrays['x_train'][:50_000].reshape(-1, 784)
    for low, high in ((0, 0), (1, 64), (65, 190), (191, 254), (255, 255)):
        chosen = (grey >= low) & (grey <= high)
        intensity, n = grey[chosen].mean() / 255, chosen.sum()
        assert abs(bits[chosen].mean() - intensity) <= 5 * 0.5 / n ** 0.5 * (0 < low < 255)


def test_numpy_with_other_random_streams_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, 'STATIC_DRAW_SHA256', '0' * 64)
    with pytest.raises(DataError, match='numpy'):
        bmnist(binarize='static')


def test_dynamic_draws_afresh_in_training_only(arrays):
    train, val, test = bmnist(binarize='dynamic')
    _, static_val, static_test = bmnist(binarize='static')
    assert torch.equal(val.images, static_val.images) and torch.equal(test.images, static_test.images)
    torch.manual_seed(0)
    images = torch.from_numpy(arrays['x_train'][:40].reshape(-1, 784))
    draws = torch.stack([train.to_input(images) for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    intensity = images / 255
    error = (draws.mean(dim=0) - intensity).abs()
    assert error.max() < 6 * 0.5 / 400 ** 0.5
    assert error[(images == 0) | (images == 255)].max() == 0


def test_threshold(arrays):
    _, val, _ = bmnist(binarize='threshold')
    assert np.array_equal(val.images.numpy(), arrays['x_train'][50_000:].reshape(-1, 784) / 255 > 0.5)


@pytest.mark.parametrize('binarize', [name for name in BINARIZATIONS if name != 'larochelle'])
def test_binary_batches(binarize):
    for split in bmnist(binarize=binarize, batch_size=512):
        batch = next(iter(split))
        assert batch.shape == (512, 784) and batch.dtype == torch.float32
        assert set(batch.unique().tolist()) == {0.0, 1.0}


def test_unknown_binarization():
    with pytest.raises(ValueError, match='static'):
        bmnist(binarize='otsu')


@pytest.mark.parametrize('max_shift', [1, 3])
def test_shifts_never_wrap_around_an_edge(max_shift):
    torch.manual_seed(0)
    images = torch.randint(1, 256, (600, 784), dtype=torch.uint8)  # no black, so that an edge shows
    shifted = random_shift(images, max_shift)
    seen = set()
    for image, result in zip(images.view(-1, 28, 28), shifted.view(-1, 28, 28)):
        for down, right in itertools.product(range(-max_shift, max_shift + 1), repeat=2):
            expected = torch.zeros_like(image)
            expected[max(down, 0):28 + min(down, 0), max(right, 0):28 + min(right, 0)] = \
                image[max(-down, 0):28 + min(-down, 0), max(-right, 0):28 + min(-right, 0)]
            if torch.equal(result, expected):
                seen.add((down, right))
                break
        else:
            pytest.fail('an image is not the shifted original with black edges')
    assert len(seen) == (2 * max_shift + 1) ** 2


def test_only_training_images_are_shifted(arrays):
    train, val, _ = mnist(max_shift=1)
    images = torch.from_numpy(arrays['x_train'][:100].reshape(-1, 784))
    assert not torch.equal(train.to_input(images), images.float())
    assert torch.equal(val.to_input(images), images.float())


@pytest.mark.parametrize('compress', [bytes, lambda content: gzip.compress(content, 1)], ids=['plain', 'gzip'])
def test_idx_files(tmp_path, arrays, idx_files, compress):
    suffix = '' if compress is bytes else '.gz'
    write_files(tmp_path, {name + suffix: compress(content) for name, content in idx_files.items()})
    for key, array in read_mnist(tmp_path).items():
        assert np.array_equal(array, arrays[key])


def test_npz_from_a_folder(tmp_path, arrays):
    np.savez(tmp_path / 'mnist.npz', **arrays)
    assert np.array_equal(read_mnist(tmp_path)['y_test'], arrays['y_test'])


def test_no_mnist_names_what_was_expected(tmp_path):
    with pytest.raises(DataError, match='expected mnist.npz'):
        read_mnist(tmp_path)
    with pytest.raises(DataError, match='expected mnist.npz'):
        read_mnist(tmp_path / 'absent')
    (tmp_path / 'mnist.npz').write_bytes(b'')
    with pytest.raises(DataError, match='name the folder'):
        read_mnist(tmp_path / 'mnist.npz')


def test_a_missing_idx_file_is_named(tmp_path, idx_files):
    del idx_files['train-labels-idx1-ubyte']
    write_files(tmp_path, idx_files)
    with pytest.raises(DataError, match='train-labels-idx1-ubyte is missing'):
        read_mnist(tmp_path)


@pytest.mark.parametrize('damage', {
    'empty': lambda content: b'',
    'within the magic number': lambda content: content[:3],
    'within the header': lambda content: content[:6],
    'after the header': lambda content: content[:8],
    'half': lambda content: content[:len(content) // 2],
    'one byte short': lambda content: content[:-1],
    'one byte long': lambda content: content + b'\0',
    'other magic number': lambda content: b'\0\0\x09' + content[3:],
    'other length': lambda content: content[:7] + b'\x11' + content[8:],
    'text': lambda content: b'404: not found\n',
}.items(), ids=lambda item: item[0])
@pytest.mark.parametrize('compressed', [False, True], ids=['plain', 'gzip'])
def test_a_damaged_idx_file_is_named(tmp_path, idx_files, damage, compressed):
    name = 't10k-labels-idx1-ubyte'
    content = damage[1](idx_files.pop(name))
    name += '.gz' if compressed else ''
    write_files(tmp_path, idx_files | {name: gzip.compress(content) if compressed else content})
    with pytest.raises(DataError, match=name) as error:
        read_mnist(tmp_path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kept', [0, 1, 10, 0.5, -1])
def test_a_truncated_gzip_file_is_named(tmp_path, idx_files, kept):
    name = 't10k-labels-idx1-ubyte'
    content = gzip.compress(idx_files.pop(name))
    content = content[:int(kept * len(content)) if isinstance(kept, float) else kept]
    write_files(tmp_path, idx_files | {name + '.gz': content})
    with pytest.raises(DataError, match=name):
        read_mnist(tmp_path)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_damaged_archives_are_named(tmp_path, arrays):
    small = {'x_train': arrays['x_train'][:5], 'y_train': arrays['y_train'][:5],
             'x_test': arrays['x_test'][:5], 'y_test': arrays['y_test'][:5]}
    whole = npz(**small)
    contents = [b'', b'PK\x03\x04', b'text\n', npz(x_train=arrays['x_train'][:5]), whole,
                npz(**small | {'y_test': np.array([{}], dtype=object)}),
                npz(**arrays | {'y_test': arrays['y_test'].astype(np.int64)})]
    contents += [whole[:length] for length in (1, 30, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1)]
    flipped = bytearray(whole)
    flipped[200] ^= 255
    contents.append(bytes(flipped))
    for content in contents:
        (tmp_path / 'mnist.npz').write_bytes(content)
        with pytest.raises(DataError, match='mnist.npz') as error:
            read_mnist(tmp_path)
        assert '\n' not in str(error.value)


def test_an_archive_that_is_a_folder_is_named(tmp_path):
    (tmp_path / 'mnist.npz').mkdir()
    with pytest.raises(DataError, match='mnist.npz'):
        read_mnist(tmp_path)


DAMAGE = st.one_of(
    st.tuples(st.just('cut'), st.integers(0, 2 ** 32), st.just(b'')),
    *(st.tuples(st.just(how), st.integers(0, 2 ** 32), st.binary(min_size=1, max_size=4)) for how in ('overwrite', 'insert')))


def damaged(content, damage):
    """The content with some bytes gone, changed or added at a place anywhere in it."""
    how, place, new = damage
    place %= len(content)
    rest = {'cut': b'', 'overwrite': content[place + len(new):], 'insert': content[place:]}[how]
    return content[:place] + new + rest


@pytest.fixture
def mnist_folder(tmp_path, arrays):
    def folder(kind):
        """A folder with MNIST as npz, idx or gz; the path of one file in it, and that file's bytes."""
        if kind == 'npz':
            path = tmp_path / 'mnist.npz'
            np.savez_compressed(path, **arrays)
            return path, path.read_bytes()
        for key, name in datasets.IDX_FILES.items():
            array = arrays[key]
            (tmp_path / name).write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
                                          + array.tobytes())
        path = tmp_path / datasets.IDX_FILES['y_test']
        if kind == 'gz':
            path.with_name(path.name + '.gz').write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
            path = path.with_name(path.name + '.gz')
        return path, path.read_bytes()

    return folder


@pytest.mark.parametrize('kind', ['npz', 'idx', 'gz'])
def test_any_damage_is_found_or_harmless(mnist_folder, arrays, kind):
    path, content = mnist_folder(kind)

    @settings(max_examples=25, deadline=None)
    @given(DAMAGE)
    @example(('overwrite', len(content) // 2, b'\0'))
    def check(damage):
        path.write_bytes(damaged(content, damage))
        try:
            read = read_mnist(path.parent)
        except DataError as error:
            assert '\n' not in str(error)
        else:
            assert all(np.array_equal(read[key], arrays[key]) for key in arrays)

    check()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE)
def test_any_damage_to_a_larochelle_file_is_found_or_harmless(small_larochelle, damage):
    path, rows = small_larochelle['val']
    content = '\n'.join(' '.join(map(str, row)) for row in rows).encode()
    path.write_bytes(damaged(content, damage))
    try:
        bits = read_larochelle(path.parent, 'val')
    except DataError as error:
        assert '\n' not in str(error)
    else:
        assert np.array_equal(bits, rows)


@pytest.fixture
def small_larochelle(tmp_path, monkeypatch):
    """Files of 20 images each in Larochelle's format, and the checksums of those: {split: (path, bits)}."""
    bits = np.random.default_rng(0).integers(0, 2, (3, 20, 784), dtype=np.uint8)
    table, files = {}, {}
    for (split, (name, _, _)), rows in zip(datasets.LAROCHELLE.items(), bits):
        path = tmp_path / name
        path.write_text(''.join(' '.join(map(str, row)) + ' \n' for row in rows))
        table[split] = (name, 20, hashlib.sha256(np.packbits(rows)).hexdigest())
        files[split] = (path, rows)
    monkeypatch.setattr(datasets, 'LAROCHELLE', table)
    return files


def test_larochelle_files(tmp_path, small_larochelle):
    for split, batches in zip(small_larochelle, bmnist(tmp_path, binarize='larochelle')):
        assert np.array_equal(batches.images.numpy(), small_larochelle[split][1])


@pytest.mark.parametrize('damage', {
    'truncated': lambda text: text[:-40],
    'empty': lambda text: '',
    'another digit': lambda text: '2' + text[1:],
    'another bit': lambda text: str(1 - int(text[0])) + text[1:],
    'text': lambda text: '<html>404</html>\n' + text,
}.items(), ids=lambda item: item[0])
def test_a_damaged_larochelle_file_is_named(tmp_path, small_larochelle, damage):
    path, _ = small_larochelle['val']
    path.write_text(damage[1](path.read_text()))
    with pytest.raises(DataError, match='binarized_mnist_valid.amat') as error:
        bmnist(tmp_path, binarize='larochelle')
    assert '\n' not in str(error.value)


def test_a_missing_larochelle_file_is_named(tmp_path):
    with pytest.raises(DataError, match='binarized_mnist_train.amat is missing: expected 50,000 lines'):
        bmnist(tmp_path, binarize='larochelle')
    with pytest.raises(DataError, match='--data_dir'):
        bmnist(binarize='larochelle')


def test_larochelle_original(tmp_path, shared_data):
    """The real bits, written as `.amat` files and read back: their checksums are the published ones."""
    for split, (name, n_images, _) in datasets.LAROCHELLE.items():
        packed = np.load(shared_data / 'larochelle.npz')['valid' if split == 'val' else split]
        bits = np.unpackbits(packed)[:n_images * 784].reshape(n_images, 784)
        text = np.full((n_images, 2 * 784), ord(' '), np.uint8)
        text[:, ::2] = bits + ord('0')
        text[:, -1] = ord('\n')
        text.tofile(tmp_path / name)
        assert np.array_equal(read_larochelle(tmp_path, split), bits)
