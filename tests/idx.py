"""Files in LeCun's IDX format, for tests that read them."""

import gzip

import numpy as np

from datasets import files


def idx_bytes(array):
    """Magic number, lengths big-endian, pixels."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def idx_files(arrays, compressed=False):
    """The four IDX files, as bytes by name."""
    contents = {name: idx_bytes(arrays[key]) for key, name in files.IDX_FILES.items()}
    if not compressed:
        return contents
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in contents.items()}


def write_files(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
