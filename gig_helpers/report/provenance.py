"""What a run ran on, in one line: network, weights, pictures, sizes, machine, versions."""

import platform
from importlib.metadata import version

import torch

from ..data.pictures import SOURCES, Pictures
from ..data.profiles import Profile
from ..network import Network

PACKAGES = ("torch", "torchvision", "captum", "scikit-learn", "numpy")
"""The packages whose numerics a result depends on."""


def provenance(profile: Profile, network: Network, pictures: Pictures) -> str:
    """One line that says what a chapter ran on; every chapter prints it first.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> from gig_helpers.data.profiles import get
    >>> network = Network(resnet18(num_classes=5), "a small network", device="cpu")
    >>> line = provenance(get("quick"), network, load_pictures("sample"))
    >>> line.split(" · ")[1:3]
    ['sample: 26 photographs (106 views)', 'profile quick, seed 0']
    """
    device = f"{torch.get_num_threads()} CPU threads"
    if network.device.type == "cuda":
        device = torch.cuda.get_device_name(network.device)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{network.name} (weights: {network.weights}, {network.version}) · {pictures} · "
        f"profile {profile.name}, seed {profile.seed} · {device} · "
        f"python {platform.python_version()}, {versions}"
    )


def expect(holds: object, words: str, pictures: Pictures) -> None:
    """Hold the book to what its text says of its own pictures; of others, say where it is not so.

    For evidence alone, which depends on the pictures: an equation is asserted whatever they are.

    Parameters
    ----------
    holds
        Whether it is so.
    words
        What is claimed, as a clause.

    Raises
    ------
    AssertionError
        If it is not so with the pictures that the book is written from.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from gig_helpers import load_pictures
    >>> pictures = load_pictures("sample")
    >>> expect(1 > 2, "one is more than two", pictures)
    Traceback (most recent call last):
    AssertionError: one is more than two
    >>> expect(1 > 2, "one is more than two", replace(pictures, name="mine"))
    Not with these pictures: one is more than two.
    """
    if not holds and pictures.name in SOURCES:
        raise AssertionError(words)
    if not holds:
        print(f"Not with these pictures: {words}.")
