"""What several test files need."""

from pathlib import Path

import pytest

from datasets import read_mnist

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data():
    """Data that must not enter the repository; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("needs data that is not in the repository")
    return folder


@pytest.fixture(scope="session")
def fashion_folder():
    """The folder of Fashion-MNIST's four .gz files in Debian's package `dataset-fashion-mnist`."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    return folder


@pytest.fixture(scope="session")
def arrays():
    """MNIST as uint8 arrays, by name."""
    return read_mnist()
