from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def shared_data():
    """Data that must not enter the repository; the tests that need it skip where it is absent."""
    folder = ROOT.parent / 'shared' / 'data'
    if not folder.exists():
        pytest.skip('needs data that is not in the repository')
    return folder
