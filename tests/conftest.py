"""What several test files need."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from datasets import read_mnist
from harness import interrupts
from harness.devices import n_cores

ROOT = Path(__file__).parent.parent
BROWSER_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

if n_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # Threads of two processes that wait for each other on one core are many times slower.
    torch.set_num_threads(max(1, n_cores() // n_workers))


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Make them count again: `select_device` ends that for its process; hypothesis needs them."""
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def signal_handlers():
    """The signals' own handlers again after each test: a program that ends ignores them."""
    before = {signum: signal.getsignal(signum) for signum in interrupts.STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    interrupts._received.clear()


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


@pytest.fixture(scope="session")
def new_browser():
    """Headless Chromium, with a log of its console and of its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in BROWSER_FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()
