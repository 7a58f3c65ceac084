"""Pictures written as concepts: codes U with x ≈ β + Σ_j u_j v_j (eqs. 1, 2, 9), and what they say.

A :class:`Decomposition` holds a network, some pictures, and their concepts and codes at some
blocks. Attributions, curves and graphs are asked of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from .concepts import Concepts
from .data import artifacts
from .network import Network

Removal = Mapping[str, int | Sequence[int]]
"""Concepts to take out, by block: the number of one, or of several."""


@dataclass(frozen=True)
class Decomposition:
    """Some pictures of a network, written as concepts of some blocks (section 3.2).

    Attributes
    ----------
    network
        The network that the pictures pass.
    images
        Normalised pictures (N, 3, H, W), on the network's device.
    concepts
        ``{block: Concepts}`` in the network's order.
    codes
        ``{block: U}`` of the same blocks: coefficients (N, H·W, k) of the atoms; positions
        row-major, or tokens.
    rests
        ``{block: ε}`` (N, H·W, C) where :meth:`residual` is not X − X̃: codes were set to 0 there.

    Raises
    ------
    ValueError
        If pictures, concepts, codes and network do not fit each other, or codes hold NaN.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.randn(3, 512), network.bn_shift(block), torch.arange(3), block)
    >>> codes = {block: torch.ones(2, 4, 3)}
    >>> d = Decomposition(network, torch.randn(2, 3, 64, 64), {block: concepts}, codes)
    >>> len(d), d.blocks, len(d[[1]]), d.logits().shape
    (2, ('layer4.1',), 1, torch.Size([2, 5]))
    >>> d.reconstruction(block).shape, d.residual(block).shape
    (torch.Size([2, 4, 512]), torch.Size([2, 4, 512]))
    >>> d.without({block: [0, 2]}).codes[block][0, 0], d.at(block).blocks
    (tensor([0., 1., 0.]), ('layer4.1',))
    """

    network: Network
    images: Tensor
    concepts: Mapping[str, Concepts]
    codes: Mapping[str, Tensor]
    rests: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        network, order = self.network, sorted(self.concepts, key=self.network.index)
        if list(self.concepts) != order or list(self.codes) != order:
            raise ValueError(
                f"concepts of {list(self.concepts)} and codes of {list(self.codes)}: both must "
                "hold the same blocks in the network's order"
            )
        for block, u in self.codes.items():
            here, channels = self.concepts[block], network.channels(block)
            expected = (len(self.images), here.vectors.shape)
            if u.ndim != 3 or (len(u), (u.shape[2], channels)) != expected:
                raise ValueError(
                    f"{block}: codes (N, HW, k) {tuple(u.shape)} and concepts (k, C) "
                    f"{tuple(here.vectors.shape)} do not fit {len(self.images)} pictures and "
                    f"{channels} channels"
                )
            if not torch.isfinite(u).all():
                raise ValueError(f"{block}: codes hold NaN or infinite values")
        like = network.device, network.dtype
        object.__setattr__(self, "images", self.images.to(*like))
        moved = {block: here.to(*like) for block, here in self.concepts.items()}
        object.__setattr__(self, "concepts", moved)
        object.__setattr__(self, "codes", {block: u.to(*like) for block, u in self.codes.items()})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Sequence[int]) -> "Decomposition":
        """Some of the pictures."""
        codes, rests = (
            {block: part[rows] for block, part in of.items()} for of in (self.codes, self.rests)
        )
        return replace(self, images=self.images[rows], codes=codes, rests=rests)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Its blocks, in the network's order."""
        return tuple(self.concepts)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of network, pictures, concepts and codes."""
        parts = [self.network, self.images, self.concepts, self.codes, self.rests]
        return artifacts.key("decomposition", artifacts.fingerprint(parts))

    def at(self, *blocks: str) -> "Decomposition":
        """The same pictures at some of the blocks."""
        concepts = {block: self.concepts[block] for block in blocks}
        return replace(self, concepts=concepts, codes={b: self.codes[b] for b in blocks})

    def reconstruction(self, block: str) -> Tensor:
        """X̃ = UV + β (N, H·W, C) of eq. 9."""
        return self.concepts[block].decode(self.codes[block])

    @cached_property
    def _maps(self) -> dict[str, Tensor]:
        """X (N, H·W, C) at each block: one forward pass a picture for all of them."""
        with torch.no_grad():
            maps = self.network.preactivations(self.images, self.blocks)
        return {block: self.network.positions(x, block) for block, x in maps.items()}

    def residual(self, block: str) -> Tensor:
        """The rest ε = X − X̃ (N, H·W, C) of eq. 1: what the concepts miss."""
        if block in self.rests:
            return self.rests[block]
        return self._maps[block] - self.reconstruction(block)

    def without(self, removed: Removal) -> "Decomposition":
        """The same with these concepts' codes set to 0; the rest stays as it was."""
        codes, rests = dict(self.codes), dict(self.rests)
        for block, numbers in removed.items():
            codes[block] = codes[block].index_fill(2, self.concepts[block].atoms(numbers), 0.0)
            rests[block] = self.residual(block)
        return replace(self, codes=codes, rests=rests)

    @torch.no_grad()
    def logits(self, without: Removal | None = None) -> Tensor:
        """The network's logits (N, classes), with these concepts taken out on the way.

        In each block u_pq v_q, of a family those of its atoms, is subtracted at every position; all
        else stays, the residual included. Above a block that has lost something the codes are those
        of what arrives, found anew.
        """
        blocks = [b for b in self.blocks if b in (without or {})]
        if not blocks:
            return self.network.logits(self.images)
        x = self._maps[blocks[0]]
        for block, above in zip(blocks, [*blocks[1:], None], strict=True):
            here = self.concepts[block]
            atoms = here.atoms((without or {})[block])
            u = self.codes[block] if block == blocks[0] else here.encode(x)
            x = self.network.segment(block, above)(x - u[:, :, atoms] @ here.vectors[atoms])
        return x

    @torch.no_grad()
    def circuit(self, kept: Removal, *, rest: bool = True) -> Tensor:
        """The network's logits (N, classes), with these concepts alone in each of the blocks.

        All others' codes are set to 0 in all blocks at once (Marks et al., 2025); above the first
        block codes are those of what arrives. What the concepts miss is kept, or with
        ``rest=False`` dropped.

        Examples
        --------
        >>> from torchvision.models import resnet18
        >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
        >>> beta = network.bn_shift(block)
        >>> concepts = {block: Concepts(torch.randn(3, 512), beta, torch.arange(3), block)}
        >>> images = torch.randn(1, 3, 64, 64)
        >>> d = Decomposition(network, images, concepts, {block: torch.ones(1, 4, 3)})
        >>> torch.allclose(d.circuit({block: [0, 1, 2]}), d.logits(), atol=1e-4)
        True
        """
        x = self._maps[self.blocks[0]]
        for block, above in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            here = self.concepts[block]
            u = self.codes[block] if block == self.blocks[0] else here.encode(x)
            others = torch.ones(u.shape[2], dtype=torch.bool, device=u.device)
            others[here.atoms(kept[block])] = False
            only = here.decode(u.masked_fill(others, 0.0))
            x = self.network.segment(block, above)(only + (x - here.decode(u) if rest else 0.0))
        return x


@torch.no_grad()
def decompose(
    network: Network, images: Tensor, concepts: Mapping[str, Concepts]
) -> Decomposition:  # fmt: skip
    """Write pictures as concepts (eqs. 1 and 2); codes come from disk where an equal run left them.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W), such as ``pictures[[0, 3]]``.
    concepts
        ``{block: Concepts}``

    Raises
    ------
    ValueError
        If there are no pictures, or of another shape, and as :meth:`Concepts.encode`.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(num_classes=5), device="cpu"), torch.randn(2, 3, 64, 64)
    >>> vectors = torch.randn(3, 512)
    >>> concepts = Concepts(vectors, torch.zeros(512), torch.arange(3), "layer4.1", lam=1.0)
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     made, read = (decompose(network, images, {"layer4.1": concepts}) for _ in range(2))
    ...     len(os.listdir(here))  # a file for each picture and block
    2
    >>> made.codes["layer4.1"].shape, torch.equal(made.codes["layer4.1"], read.codes["layer4.1"])
    (torch.Size([2, 4, 3]), True)
    """
    if not len(images):
        raise ValueError("there is no picture to decompose")
    images = network.checked(images).to(network.dtype)
    fitting = {
        block: replace(concepts[block], block=block).to(network.device, network.dtype)
        for block in sorted(concepts, key=network.index)
    }
    codes: dict[str, list[Tensor]] = {block: [] for block in fitting}
    for image in images:
        maps = _maps(network, image, fitting)
        for block, here in fitting.items():
            stored = _sparse_codes(network, image, here.at(None), maps)  # alike at every level
            place, shape = stored["place"].T, stored["shape"].tolist()
            sparse = torch.sparse_coo_tensor(place, stored["values"], shape, check_invariants=True)
            codes[block].append(sparse.to_dense().to(here.vectors))
    return Decomposition(network, images, fitting, {b: torch.stack(u) for b, u in codes.items()})


def _maps(
    network: Network, image: Tensor, blocks: Mapping[str, Concepts]
) -> Callable[[], dict[str, Tensor]]:
    """Pre-activations of a picture at all blocks: one pass for all, if any codes are missing."""
    return cache(lambda: network.preactivations(image[None], blocks))


@artifacts.cached("codes", ignore=("maps",))
def _sparse_codes(
    network: Network, image: Tensor, concepts: Concepts, maps: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    codes = concepts.encode(network.positions(maps()[concepts.block], concepts.block))[0]
    sparse = codes.to_sparse()
    place, values = sparse.indices().T.int(), sparse.values()
    return {"place": place, "values": values, "shape": torch.tensor(codes.shape)}


def relative_l2(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖ / ‖x‖ of each PFV (section 4.2.2); (..., C) → (...,).

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> relative_l2(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])).item()
    0.20000000298023224
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(x_hat.shape)}")
    return (x - x_hat).norm(dim=-1) / x.norm(dim=-1)


def l0_ratio(codes: Tensor) -> Tensor:
    """Share of zero codes of each PFV (section 4.2.2); (..., k) → (...,).

    Examples
    --------
    >>> l0_ratio(torch.tensor([0.0, 2.0, 0.0, 0.0])).item()
    0.75
    """
    return (codes == 0).float().mean(-1)
