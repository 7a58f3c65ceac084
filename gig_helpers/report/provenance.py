"""What a run ran on, in one line: network, weights, pictures, sizes, machine, versions."""

import platform
from importlib.metadata import version

import torch

from ..data.pictures import Pictures
from ..data.profiles import Profile
from ..network import Network

PACKAGES = ("torch", "torchvision", "captum", "scikit-learn", "numpy")
"""The packages whose numerics a result depends on."""


def provenance(profile: Profile, network: Network, pictures: Pictures) -> str:
    """One line that says what a chapter ran on; every chapter prints it first."""
    device = (
        torch.cuda.get_device_name(network.device)
        if network.device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return (
        f"{network.name} (weights: {network.weights}, {network.version}) · {pictures} · "
        f"profile {profile.name}, seed {profile.seed} · {device} · "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
