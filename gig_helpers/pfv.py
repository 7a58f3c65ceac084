"""The PFV dataset: per picture and block some PFVs, sampled by their contribution to the output.

Section 3.1 and appendix C of the paper.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import find_executable_batch_size
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import srd
from .data import artifacts, profiles
from .data.pictures import Pictures, UnreadablePicture, load_pictures
from .data.profiles import Profile
from .network import Network, load_network

SHARD_BATCHES = 4
"""Batches a shard: what a killed run can lose."""


_READERS = {"cpu": 0, "cuda": max(0, min(4, (os.cpu_count() or 1) - 1))}
"""Processes that read pictures, a GPU's while it computes; a CPU has none to spare."""


@dataclass(frozen=True)
class PFVDataset:
    """Sampled PFVs (section 3.1), on disk as shards; n PFVs per block from N pictures.

    Attributes
    ----------
    fingerprint
        Hash of all that the dataset depends on.
    blocks
        Names of the blocks.
    network, pictures
        What they were sampled from; ``pictures.paths`` and ``pictures.labels`` go by picture.
    skipped
        Pictures that could not be read, with the reason.
    rule
        What SRD does about operations without a rule (:func:`gig_helpers.srd.contributions`).

    Examples
    --------
    Three PFVs of two pictures, written by hand; :func:`sample` writes as many columns per block.

    >>> from types import SimpleNamespace
    >>> pictures = SimpleNamespace(paths=("a.png", "b.png"), labels=(13, 8))
    >>> from tempfile import TemporaryDirectory
    >>> columns = {"pictures": torch.tensor([0, 1]), "predictions": torch.tensor([13, 7])}
    >>> columns["layer4.2.picture_ids"] = torch.tensor([0, 0, 1])
    >>> columns["layer4.2.positions"] = torch.tensor([[0, 0], [5, 6], [3, 3]])
    >>> columns["layer4.2.contributions"] = torch.tensor([0.5, 0.25, 2.0])
    >>> columns["layer4.2.vectors"] = torch.eye(3)
    >>> with TemporaryDirectory() as here:
    ...     save_file(columns, Path(here) / "shard-000000.safetensors")
    ...     pfvs = PFVDataset(Path(here), "", ("layer4.2",), None, pictures, {})
    ...     print(pfvs.count("layer4.2"), "PFVs", tuple(pfvs.vectors("layer4.2").shape))
    ...     print("the second:", pfvs.positions("layer4.2")[1].tolist())
    ...     print("its share:", pfvs.contributions("layer4.2")[1].item())
    ...     print("its picture:", pictures.paths[pfvs.picture_ids("layer4.2")[1]])
    ...     print("predicted:", pfvs.predictions().tolist())
    ...     print("of class:", pfvs.classes().tolist())
    ...     print("seen right:", pfvs.right(), "and wrong:", pfvs.wrong())
    ...     print("held out:", pfvs.held_out("layer4.2").tolist())
    ...     print("the first of each:", pfvs.among_first("layer4.2", 1).tolist())
    3 PFVs (3, 3)
    the second: [5, 6]
    its share: 0.25
    its picture: a.png
    predicted: [13, 7]
    of class: [13, 8]
    seen right: [0] and wrong: [1]
    held out: [True, True, False]
    the first of each: [True, False, True]
    """

    folder: Path
    fingerprint: str
    blocks: tuple[str, ...]
    network: Network
    pictures: Pictures
    skipped: dict[str, str]
    rule: srd.Missing = "error"

    def vectors(self, block: str) -> Tensor:
        """PFVs (n, C), pre-activation."""
        return self._of(block, "vectors")

    def positions(self, block: str) -> Tensor:
        """Row and column (n, 2) of each PFV in the block's map; of tokens their number (n, 1)."""
        return self._of(block, "positions")

    def contributions(self, block: str) -> Tensor:
        """Relevance (n,) of each PFV: its signed share of the predicted class's logit."""
        return self._of(block, "contributions")

    def picture_ids(self, block: str) -> Tensor:
        """Index (n,) of the picture that each PFV comes from."""
        return self._of(block, "picture_ids")

    def count(self, block: str) -> int:
        """Number n of PFVs of a block."""
        return len(self.picture_ids(block))

    def predictions(self) -> Tensor:
        """Predicted class (N,) of each picture; −1 for one that could not be read."""
        predictions = torch.full((len(self.pictures.paths),), -1)
        predictions[self._column("pictures")] = self._column("predictions")
        return predictions

    def classes(self) -> Tensor:
        """Class (N,) of each picture: its label, or what the network says; −1 as above."""
        said = self.predictions()
        labels = torch.tensor([-1 if label is None else label for label in self.pictures.labels])
        return torch.where((labels < 0) | (said < 0), said, labels)

    def right(self) -> list[int]:
        """Indices of the pictures whose label is what the network says."""
        said = self.predictions().tolist()
        return [i for i, label in enumerate(self.pictures.labels) if label == said[i]]

    def wrong(self) -> list[int]:
        """Indices of the other pictures with a label, but for those that could not be read."""
        said, labels = self.predictions().tolist(), self.pictures.labels
        return [
            i for i, label in enumerate(labels) if label not in (None, said[i]) and said[i] >= 0
        ]

    @cached_property
    def photographs(self) -> Tensor:
        """Number (N,) of the photograph that each picture is a view of, by the order of names."""
        return torch.from_numpy(pd.factorize(pd.Series(self.pictures.paths), sort=True)[0]).long()

    @cached_property
    def shown(self) -> dict[tuple[str, int], Any]:
        """What :func:`gig_helpers.report.examples.examples` has made, by block and PFV."""
        return {}

    def held_out(self, block: str) -> Tensor:
        """Which PFVs (n,) of a block come from every fourth photograph: to be left out of a fit."""
        return self.photographs[self.picture_ids(block)] % 4 == 0

    def among_first(self, block: str, count: int) -> Tensor:
        """Which PFVs (n,) of a block are among the first drawn of their picture."""
        ids = pd.Series(self.picture_ids(block).numpy())
        return torch.from_numpy(ids.groupby(ids).cumcount().to_numpy() < count)

    def _of(self, block: str, column: str) -> Tensor:
        if block not in self.blocks:
            raise KeyError(f"no PFVs of {block!r}: this dataset has {', '.join(self.blocks)}")
        return self._column(f"{block}.{column}")

    def _column(self, name: str) -> Tensor:
        parts = []
        for shard in sorted(self.folder.glob("shard-*.safetensors")):
            with _opened(shard) as file:
                if name in file.keys():  # a shard of broken pictures holds nothing
                    parts.append(file.get_tensor(name))
        return torch.cat(parts)


def sample(
    network: Network, pictures: Pictures, profile: Profile | None = None, *,
    rule: srd.Missing = "error",
) -> PFVDataset:  # fmt: skip
    """Sample PFVs from every picture (section 3.1, appendix C), or read what an equal run made.

    In each picture and block, ``profile.per_image`` positions are drawn without replacement, with
    p ∝ max(R, 0), where R is the position's contribution to the logit of the predicted class
    (:func:`gig_helpers.srd.contributions`). Positions without a positive contribution are drawn,
    uniformly, only when there are no others left.

    The work is cut into shards of a few batches. A run that was killed goes on at the first shard
    that is missing, and ends with the same bytes; several processes may share the shards
    (:func:`sample_part`).

    Parameters
    ----------
    profile
        Sizes and blocks; by default ``Profile()``.
    rule
        For operations that SRD has no rule for: ``"error"``, or ``"gradient"``; see
        :func:`gig_helpers.srd.contributions`.

    Returns
    -------
    PFVDataset
        n = N · per_image PFVs per block (fewer where a map has fewer positions).

    Raises
    ------
    ValueError
        If no picture can be read, a shard on disk cannot, or a block has no positions.
    KeyError
        If a block is unknown.
    NotImplementedError
        If SRD has no rule for an operation, with ``rule="error"``.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> profile = Profile(per_image=3, blocks=("layer4.1",))
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, load_pictures("sample").subset([0]), profile)
    ...     pfvs.vectors("layer4.1").shape
    torch.Size([3, 512])
    """
    profile = profile or Profile()
    folder, shards = _plan(network, pictures, profile, rule)
    sample_part(network, pictures, profile, rule=rule)
    skipped: dict[str, str] = {}
    for path in shards:
        with _opened(path) as file:
            skipped |= json.loads(file.metadata()["skipped"])
    if len(skipped) == len(pictures):
        raise ValueError(f"no picture of {pictures.name} could be read; the first: {skipped}"[:500])
    if skipped:
        print(f"skipped {len(skipped)} of {len(pictures)} pictures, listed in .skipped")
    blocks = profile.blocks_of(network)
    return PFVDataset(folder, folder.name, blocks, network, pictures, skipped, rule)


def sample_part(
    network: Network, pictures: Pictures, profile: Profile, rank: int = 0, world_size: int = 1, *,
    rule: srd.Missing = "error",
) -> None:  # fmt: skip
    """Make :func:`sample`'s shards that are missing (section 3.1), or one process's part of them.

    ``torchrun --nproc-per-node 4 -m gig_helpers.pfv`` calls it in four processes, one per GPU where
    there are GPUs. Which process makes a shard changes no byte of it, so that :func:`sample` then
    finds a whole dataset. Machines without a common disk copy their shards into one folder.

    Parameters
    ----------
    rank, world_size
        This process makes shard ``rank``, ``rank + world_size``, and so on.
    rule
        As in :func:`sample`.

    Raises
    ------
    ValueError
        If ``rank`` is not one of 0 … ``world_size`` − 1.
    KeyError
        If a block is unknown.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> profile = Profile(per_image=3, blocks=("layer4.1",))
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pictures = load_pictures("sample").subset([0])
    ...     for rank in (1, 0):  # one shard, so that nothing is left for the second process
    ...         sample_part(network, pictures, profile, rank, world_size=2)
    ...         print(rank, len(list(Path(here).rglob("shard-*"))))
    1 0
    0 1
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of 0 … {world_size - 1}")
    _, shards = _plan(network, pictures, profile, rule)
    mine = list(shards)[rank::world_size]

    # One call for all of them: each collects garbage, which takes longer than a small batch. Where
    # memory runs out, what is made stays, and the others go on with smaller batches.
    @find_executable_batch_size(starting_batch_size=profile.batch_size)
    def make(size: int) -> None:
        missing = [path for path in mine if not path.exists()]
        # One loader for all of them, whose readers start once. Only the last shard may end in a
        # batch that is not full, so no batch belongs to two.
        wanted = [index for path in missing for index in shards[path]]
        batches = iter(_batches(network, pictures, wanted, profile.batch_size))
        for path in tqdm(missing, desc="sampling PFVs", unit="shard"):
            count = -(-len(shards[path]) // profile.batch_size)
            some = itertools.islice(batches, count)
            _write_shard(path, network, pictures, some, profile, rule, size)

    if not all(path.exists() for path in mine):
        make()


def _plan(
    network: Network, pictures: Pictures, profile: Profile, rule: srd.Missing
) -> tuple[Path, dict[Path, range]]:
    """The dataset's folder, and each shard's file with its pictures.

    Raises
    ------
    ValueError
        If a block has no positions.
    """
    blocks, size = profile.blocks_of(network), profile.batch_size * SHARD_BATCHES
    for block in blocks:
        if len(network.node(block).meta["shape"]) < 3:
            raise ValueError(
                f"{block} is one vector of a picture: PFVs need a block with positions"
            )
    given = (network, pictures, blocks, profile.per_image, profile.batch_size, profile.seed, rule)
    key = artifacts.key("pfv", artifacts.fingerprint(given), artifacts.code_of(sample))
    folder = artifacts.folder() / f"pfv-{key}"
    parts = [range(len(pictures))[start:][:size] for start in range(0, len(pictures), size)]
    return folder, {folder / f"shard-{n:06d}.safetensors": part for n, part in enumerate(parts)}


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """A shard, open to be read; an error that names it if it is broken."""  # noqa: DOC501
    try:
        with safe_open(shard, framework="pt") as file:
            yield file
    except SafetensorError as problem:
        raise ValueError(f"{shard} is broken ({problem}): delete it, and sample again") from problem


def draw(contributions: Tensor, count: int, seeds: list[int]) -> Tensor:
    """Draw positions without replacement with p ∝ max(R, 0) (appendix C).

    Parameters
    ----------
    contributions
        R, shape (N, H, W), or (N, P) of tokens.
    count
        Positions per picture; at most H · W of them are returned.
    seeds
        One seed per picture, so that a draw depends on its own picture alone.

    Returns
    -------
    Tensor
        Rows and columns, shape (N, count, 2), in the order drawn; of tokens their numbers.

    Raises
    ------
    ValueError
        If a contribution is NaN or infinite.

    Examples
    --------
    >>> relevance = torch.tensor([[[0.0, 3.0], [-5.0, 0.0]]])
    >>> draw(relevance, 1, seeds=[0]).tolist()  # one position alone contributes
    [[[0, 1]]]
    """
    if not torch.isfinite(contributions).all():
        raise ValueError("contributions hold NaN or infinite values")
    flat = contributions.flatten(1).double().cpu()
    own = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.rand(flat.shape[1], dtype=flat.dtype, generator=g) for g in own])
    # Efraimidis and Spirakis: the smallest of Exp(1)/p are a weighted draw without replacement.
    weight = flat.clamp(min=0)
    arrival = -torch.log1p(-noise) / weight
    arrival = torch.where(weight > 0, arrival, torch.finfo(torch.float64).max * noise)
    chosen = arrival.argsort(dim=1, stable=True)[:, :count]
    return torch.stack(torch.unravel_index(chosen, contributions.shape[1:]), dim=2)


class _Readable(Dataset):
    """Index, picture, and what was wrong with it: one broken picture must not end a batch."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __getitem__(self, index: int) -> tuple[int, Tensor, str]:
        try:
            return index, self.pictures[index], ""
        except UnreadablePicture as error:
            return index, torch.empty(0), str(error)


def _batches(network: Network, pictures: Pictures, indices: list[int], size: int) -> DataLoader:
    cuda = network.device.type == "cuda"
    options: dict = {"num_workers": _READERS[network.device.type], "pin_memory": cuda}
    return DataLoader(_Readable(pictures), size, sampler=indices, collate_fn=tuple, **options)


def _write_shard(
    path: Path, network: Network, pictures: Pictures, batches: Iterator, profile: Profile,
    rule: srd.Missing, size: int,
) -> None:  # fmt: skip
    skipped: dict[str, str] = {}
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        skipped |= {pictures.paths[index]: problem for index, _, problem in batch if problem}
        read = [(image, index) for index, image, problem in batch if not problem]
        for piece in (read[start:][:size] for start in range(0, len(read), size)):
            images, ids = torch.stack([image for image, _ in piece]), [i for _, i in piece]
            sampled = _sample_batch(network, images, torch.tensor(ids), pictures, profile, rule)
            parts.append(sampled)
    names = parts[0] if parts else ()
    tensors = {name: torch.cat([part[name] for part in parts]) for name in names}
    metadata = {"skipped": json.dumps(skipped, sort_keys=True)}
    artifacts.write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _sample_batch(
    network: Network, images: Tensor, ids: Tensor, pictures: Pictures, profile: Profile,
    rule: srd.Missing,
) -> dict[str, Tensor]:  # fmt: skip
    images, blocks = images.to(network.device, non_blocking=True), profile.blocks_of(network)
    with torch.no_grad():
        preactivations = network.preactivations(images, blocks)
        predictions = network.logits_from(preactivations[blocks[-1]], blocks[-1]).argmax(dim=1)
    relevance = srd.contributions(network, images, blocks, predictions, rule=rule)
    columns = {"pictures": ids, "predictions": predictions.cpu()}
    for block in blocks:
        seeds = [_seed(profile.seed, block, pictures, i) for i in ids.tolist()]
        positions = draw(relevance[block], profile.per_image, seeds)
        n = torch.arange(len(ids)).repeat_interleave(positions.shape[1])
        place, own = positions.flatten(0, 1), relevance[block]
        flat = network.positions(preactivations[block], block).unflatten(1, own.shape[1:])
        # Indexed where they are: a few vectors travel, not whole maps.
        columns[f"{block}.vectors"] = flat[(n, *place.unbind(dim=1))].cpu()
        columns[f"{block}.positions"] = place
        columns[f"{block}.contributions"] = own[(n, *place.unbind(dim=1))].cpu()
        columns[f"{block}.picture_ids"] = ids[n]
    return columns


def _seed(seed: int, block: str, pictures: Pictures, index: int) -> int:
    text = json.dumps([seed, block, pictures.paths[index], pictures.boxes[index]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _main() -> None:
    """One process's part of the profile's dataset; torchrun says which."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        # Two processes may share one GPU.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    profile = profiles.get()
    network = load_network(profile.network, profile.weights)
    sample_part(network, load_pictures(profile.pictures, network), profile, rank, world_size)


if __name__ == "__main__":
    _main()
