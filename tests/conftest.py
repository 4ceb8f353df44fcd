"""What several test files need."""

import shutil
from pathlib import Path

import pytest

from datasets import read_mnist

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


@pytest.fixture(scope="session")
def shared_data():
    """Data that must not enter the repository; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("needs data that is not in the repository")
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
