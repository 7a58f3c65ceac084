"""What the tests share: the real network, the sample's photographs, the values to agree with."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Error, sync_playwright

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def network():
    """The ResNet-50 of the book, with real weights."""
    from gig_helpers.network import load_network

    return load_network()


@pytest.fixture(scope="session")
def pictures():
    """The sample's photographs."""
    from gig_helpers import assets

    return assets.pictures("sample")


# Of a module: while it is open an event loop runs, and papermill would not start its own.
@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    system = next(filter(None, map(shutil.which, names)), None)
    # A browser run by root, as in a container, starts only without its sandbox.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=system, args=sandbox)
        except Error as problem:
            pytest.skip(
                "no Chromium: install it (Debian: apt-get install chromium; elsewhere: "
                f".venv/bin/playwright install chromium): {problem.message.splitlines()[0]}"
            )
        yield browser
        browser.close()


def _folder(variable: str, what: str) -> Path:
    given = os.environ.get(variable)
    if not given:
        pytest.skip(f"{variable} is not set: it names {what}")
    return Path(given)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with srd_golden.npz, the reference values of SRD."""
    return _folder("GIG_REFERENCE", "the folder with srd_golden.npz")


@pytest.fixture(scope="session")
def validation() -> Path:
    """Folder with 1,300 validation pictures, a folder a class."""
    return _folder("GIG_VALIDATION", "a folder of ImageNet validation pictures, a folder a class")
