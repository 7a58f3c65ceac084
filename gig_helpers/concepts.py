"""Concepts of a block: vectors V, shift β, and how PFVs are written with them (section 3.2).

The contract of everything that makes concepts: ``fit`` (a function of :data:`EXTRACTORS`) returns
:class:`Concepts`, which ``encode`` PFVs to codes and ``decode`` these. An autoencoder overrides
``encode`` alone; what it needs are further fields, tensors or JSON, which :func:`save` keeps.

Codes are those of *atoms*, as many as the paper says or the pictures allow: they reconstruct. What
one speaks of are *families*, where the concepts have a tree and a ``level``: sums of atoms, which
other photographs give again (:mod:`gig_helpers.families`). Without a level each atom is a concept.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pandas as pd
import torch
from safetensors import safe_open
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from . import clustering, families, lasso
from .clustering import BisectingSphericalKMeans, rows_of
from .data import artifacts
from .data.profiles import Profile
from .pfv import PFVDataset

Average = Literal["unit", "raw"]


@dataclass(frozen=True)
class Concepts:
    """Concepts of a block: all that is needed to write a PFV as x ≈ β + Σ_j u_j v_j (eqs. 1, 9).

    Attributes
    ----------
    vectors
        V (k, C), the atoms.
    beta
        β (C,), the shift that PFVs are centred by: μ_BN (eq. 8), or an extractor's own.
    labels
        (N,), the atom of each PFV that they come from.
    block
        Name of the block.
    lam
        λ of eq. 2, which :func:`tune` chooses; ``None``: not chosen yet.
    parents
        (k,), the tree of atoms; see :class:`gig_helpers.clustering.BisectingSphericalKMeans`.
    level
        Number of families K that the tree is cut into; ``None``: each atom is a concept.

    Raises
    ------
    ValueError
        If the shapes do not fit, a vector is NaN or infinite, or the tree has no such level.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.tensor([0, 0, 1]), "layer4.2")
    >>> len(concepts), concepts.members(0).tolist(), concepts.to("cpu", torch.float64).beta.dtype
    (2, [0, 1], torch.float64)
    >>> concepts.nearest(torch.tensor([[3.0, 1.0], [9.0, 1.0], [1.0, 5.0]]), 1).tolist()
    [[1], [2]]
    >>> concepts.class_entropy(torch.tensor([7, 8, 7])).tolist()  # two classes: one bit
    [1.0, 0.0]

    Three atoms of one, two and one PFVs, of which the last was split off the first:

    >>> tree = torch.tensor([0, 0, 0])
    >>> labels = torch.tensor([0, 1, 1, 2])
    >>> atoms = Concepts(torch.eye(3), torch.zeros(3), labels, parents=tree)
    >>> families = atoms.at(2)
    >>> len(families), families.family.tolist(), families.members(0).tolist()
    (2, [0, 1, 0], [0, 3])
    >>> families.directions.tolist(), families.gathered(torch.tensor([1.0, 5.0, 2.0])).tolist()
    ([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], [3.0, 5.0])
    >>> families.atoms(0).tolist(), len(families.at(None))
    ([0, 2], 3)
    """

    vectors: Tensor
    beta: Tensor
    labels: Tensor
    block: str = ""
    lam: float | None = None
    parents: Tensor | None = None
    level: int | None = None

    needs_lam: ClassVar[bool] = True
    """Whether :meth:`encode` solves eq. 2."""
    _kinds: ClassVar[dict[str, type["Concepts"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Concepts._kinds[cls.__qualname__] = cls

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.beta.shape != self.vectors.shape[1:]:
            raise ValueError(
                f"expected concepts (k, C) and beta (C,), got {tuple(self.vectors.shape)} and "
                f"{tuple(self.beta.shape)}"
            )
        if not (torch.isfinite(self.vectors).all() and torch.isfinite(self.beta).all()):
            raise ValueError("concepts hold NaN or infinite values")
        if self.level is not None:
            if self.parents is None:
                raise ValueError(
                    f"the concepts of {self.block!r} have no tree to be cut into families"
                )
            clustering.cut(self.parents, self.level)

    def __len__(self) -> int:
        return len(self.vectors) if self.level is None else self.level

    def at(self, level: int | None) -> "Concepts":
        """The same atoms, spoken of as so many families; ``None``: as themselves."""
        return replace(self, level=level)

    @cached_property
    def family(self) -> Tensor:
        """(k,), the family of each atom."""
        if self.level is None or self.parents is None:
            return torch.arange(len(self.vectors), device=self.vectors.device)
        return clustering.cut(self.parents, self.level)

    @cached_property
    def assigned(self) -> Tensor:
        """(N,), the concept of each PFV that they come from."""
        return self.family[self.labels]

    def atoms(self, concepts: int | Sequence[int] | Tensor) -> Tensor:
        """Numbers (m,) of the atoms of a concept, or of several."""
        wanted = torch.as_tensor(concepts, device=self.family.device).reshape(-1)
        return torch.isin(self.family, wanted).nonzero()[:, 0]

    def gathered(self, values: Tensor) -> Tensor:
        """Values of atoms (..., k) summed over each concept's (..., K), as relevances add up."""
        if self.level is None:
            return values
        sums = values.new_zeros(*values.shape[:-1], len(self))
        return sums.index_add_(-1, self.family.to(values.device), values)

    @cached_property
    def directions(self) -> Tensor:
        """(K, C), the vector of each concept: of a family that of all its PFVs (appendix B).

        The average of its atoms' vectors, each as often as it has PFVs.
        """
        if self.level is None:
            return self.vectors
        sizes = torch.bincount(self.labels, minlength=len(self.vectors)).to(self.vectors)
        sums = self.gathered((self.vectors * sizes[:, None]).T)
        return (sums / self.gathered(sizes)).T.contiguous()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that codes depend on: the class with its code, and every field."""
        tensors, plain = _parts(self)
        parts = {name: artifacts.digest(part) for name, part in tensors.items()}
        kind = type(self).__qualname__
        return artifacts.key(kind, parts | plain, artifacts.code_of(type(self)))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Concepts":
        """The same concepts on a device, and their vectors in a dtype."""
        parts = _parts(self)[0]
        moved: dict[str, Any] = {
            name: part.to(device, dtype if part.is_floating_point() else None)
            for name, part in parts.items()
        }
        # The same object keeps what it has found: its fingerprint, its families' directions.
        there = all(moved[name] is part for name, part in parts.items())
        return self if there else replace(self, **moved)

    def encode(self, x: Tensor, *, tol: float = 1e-5) -> Tensor:
        """Codes of PFVs: signed, by the Lasso (eq. 2) with the concepts' own β and λ.

        Parameters
        ----------
        x
            PFVs (..., C), not centred.
        tol
            Relative duality gap to reach; see :func:`gig_helpers.lasso.lasso_codes`.

        Returns
        -------
        Tensor
            (..., k), exactly 0 where a concept is not used.

        Raises
        ------
        ValueError
            If there is no λ yet, and as :func:`gig_helpers.lasso.lasso_codes`.

        Examples
        --------
        >>> concepts = Concepts(torch.eye(2), torch.ones(2), torch.arange(2), lam=1.0)
        >>> concepts.encode(torch.tensor([4.0, 1.5])).tolist()  # the rest, 0.5, is below λ
        [2.0, 0.0]
        """
        if self.lam is None:
            raise ValueError(f"the concepts of {self.block!r} have no λ yet: see concepts.tune")
        return lasso.lasso_codes(x, self.vectors, self.lam, beta=self.beta, tol=tol)

    def decode(self, codes: Tensor) -> Tensor:
        """X̃ = UV + β (eq. 9): codes (..., k) → PFVs (..., C).

        Examples
        --------
        >>> concepts = Concepts(2 * torch.eye(2), torch.ones(2), torch.arange(2))
        >>> concepts.decode(torch.tensor([3.0, 0.0])).tolist()
        [7.0, 1.0]
        """
        return codes @ self.vectors + self.beta

    def members(self, concept: int) -> Tensor:
        """Indices (m,) of the PFVs that belong to a concept.

        Raises
        ------
        IndexError
            If there is no such concept.
        """
        if not 0 <= concept < len(self):
            raise IndexError(f"no concept {concept}: there are {len(self)}, counted from 0")
        return torch.nonzero(self.assigned == concept)[:, 0]

    def nearest(self, x: Tensor, n: int, chosen: Sequence[int] | Tensor | None = None) -> Tensor:
        """Indices (K, n), on the CPU, of the PFVs nearest to each concept by cosine, best first.

        Parameters
        ----------
        x
            PFVs (N, C), not centred.
        chosen
            Numbers of the K concepts that are asked about; by default all.

        Raises
        ------
        ValueError
            If x holds fewer than n PFVs.
        """
        if not 1 <= n <= len(x):
            raise ValueError(f"n must lie between 1 and the {len(x)} PFVs given, got {n}")
        unit = F.normalize(x.to(self.beta) - self.beta, dim=1)
        of = slice(None) if chosen is None else torch.as_tensor(chosen, dtype=torch.long)
        parts = F.normalize(self.directions[of], dim=1).split(rows_of(len(x)))
        return torch.cat([(part @ unit.T).topk(n).indices for part in parts]).cpu()

    def class_entropy(self, classes: Tensor) -> Tensor:
        """Entropy (K,), in bits, over the classes of each concept's PFVs.

        0 is class-specific. A concept of m PFVs has at most log2(m), so compare concepts of
        similar size. NaN for a concept without PFVs.

        Parameters
        ----------
        classes
            (N,), the class of the picture each PFV comes from, counted from 0.

        Raises
        ------
        ValueError
            If there is not one class per PFV.
        """
        if classes.shape != self.labels.shape:
            raise ValueError(
                f"expected one class for each of {len(self.labels)} PFVs, "
                f"got shape {tuple(classes.shape)}"
            )
        table = pd.crosstab(self.assigned.cpu().numpy(), classes.cpu().numpy())
        counts = table.reindex(range(len(self)))  # a row of NaN for a concept without PFVs
        return torch.from_numpy(stats.entropy(counts, axis=1, base=2)).float()


Concepts._kinds["Concepts"] = Concepts


def _parts(concepts: Concepts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fields that are tensors, and those that JSON can hold."""
    every = {field.name: getattr(concepts, field.name) for field in fields(concepts)}
    tensors = {name: part for name, part in every.items() if isinstance(part, Tensor)}
    return tensors, {name: part for name, part in every.items() if name not in tensors}


def save(concepts: Concepts, path: Path) -> None:
    """Write concepts of any kind as safetensors, atomically; not in the paper.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), "layer4.2", lam=0.5)
    >>> with TemporaryDirectory() as here:
    ...     save(concepts, Path(here) / "concepts.safetensors")
    ...     read = load(Path(here) / "concepts.safetensors")
    >>> read.lam, read.fingerprint == concepts.fingerprint
    (0.5, True)
    """
    tensors, plain = _parts(concepts)
    # One entry: safetensors writes several in any order, and equal concepts are equal bytes.
    about = json.dumps({"kind": type(concepts).__qualname__, **plain}, sort_keys=True)
    artifacts.write_tensors(path, tensors, {"about": about})


def load(path: Path) -> Concepts:
    """Read what :func:`save` wrote, as the class that it was; not in the paper.

    Raises
    ------
    LookupError
        If no such class has been defined, or imported, in this process.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     path = Path(here) / "it.safetensors"
    ...     save(Concepts(torch.eye(2), torch.zeros(2), torch.arange(2)), path)
    ...     len(load(path))
    2
    """
    with safe_open(path, framework="pt") as file:
        plain: dict[str, Any] = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if (kind := plain.pop("kind")) not in Concepts._kinds:
        raise LookupError(f"{path.name} holds a {kind}: import the module that defines it first")
    plain = {name: tuple(part) if isinstance(part, list) else part for name, part in plain.items()}
    return Concepts._kinds[kind](**tensors, **plain)


class Extractor(NamedTuple):
    """A way to make concepts, as :data:`EXTRACTORS` lists it (section 4, appendix F).

    ``fit`` takes ``(x, beta, k, seed)`` and ``block=``: PFVs (N, C), not centred, β (C,), the
    number of concepts, a seed, the block's name; and returns :class:`Concepts`.

    Examples
    --------
    >>> EXTRACTORS["bisecting"].title, EXTRACTORS["bisecting"].fit is extract
    ('bisecting', True)
    """

    fit: Callable[..., Concepts]
    title: str


EXTRACTORS: dict[str, Extractor] = {}
"""Ways to make concepts, by name; the first is the paper's, the others stand in ``extractors/``."""


def extractor(name: str, title: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a way to make concepts (section 4); ``title`` is what tables call it.

    Examples
    --------
    >>> @extractor("first PFVs")
    ... def first(x, beta, k, seed=0, *, block=""):
    ...     return Concepts(x[:k] - beta, beta, torch.zeros(len(x)).long(), block)
    >>> EXTRACTORS.pop("first PFVs").fit(torch.eye(3), torch.zeros(3), 2).vectors.shape
    torch.Size([2, 3])
    """

    def add(fit: Callable[..., Any]) -> Callable[..., Any]:
        EXTRACTORS[name] = Extractor(fit, title or name)
        return fit

    return add


@extractor("bisecting")
def extract(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "", average: Average = "unit"
) -> Concepts:  # fmt: skip
    """Concepts of a block from its PFVs, as appendix B does it: bisecting clustering, averages.

    Parameters
    ----------
    x
        PFVs (N, C), pre-activation, not centred.
    beta
        β (C,), ``Network.bn_shift(block)``.
    k
        Number of concepts; the paper takes 8 C.
    average
        See :func:`concept_vectors`.

    Raises
    ------
    ValueError
        As :meth:`gig_helpers.clustering.BisectingSphericalKMeans.fit`; a PFV equal to beta has no
        direction.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.1], [5.0, -0.5], [0.1, 2.0], [-0.1, 1.0]])
    >>> extract(x, torch.zeros(2), 2).vectors.shape
    torch.Size([2, 2])
    """
    model = BisectingSphericalKMeans(k, random_state=seed, copy_x=False).fit(x - beta)
    labels, parents = (
        torch.from_numpy(part).to(x.device) for part in (model.labels_, model.parents_)
    )
    vectors = concept_vectors(x, labels, beta, average)
    return Concepts(vectors, beta, labels, block, parents=parents)


def concept_vectors(x: Tensor, labels: Tensor, beta: Tensor, average: Average = "unit") -> Tensor:
    """Average (k, C) of the vectors within each cluster, "the concept vector" of appendix B.

    The paper does not say of which vectors. ``"unit"`` averages (v − β)/‖v − β‖, whose length
    is how tight the cluster is; ``"raw"`` averages v − β, so that a concept keeps the length
    its PFVs have. Lasso (eq. 2) taxes coefficients, so the longer an atom, the cheaper its use:
    among raw averages, clusters of long PFVs are used for their length. Unit averages left a
    smaller Rel-ℓ2 at equal non-zeros where it was tried (layer1.2, layer3.5).

    Parameters
    ----------
    x
        PFVs (N, C), not centred.
    labels
        (N,), cluster of each PFV; every label from 0 to the largest must occur.
    beta
        (C,)

    Raises
    ------
    ValueError
        If ``average`` is neither, or a cluster is empty.

    Examples
    --------
    >>> x = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    >>> concept_vectors(x, torch.tensor([0, 0, 1]), torch.zeros(2), "raw").tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    if average not in ("unit", "raw"):
        raise ValueError(f'average must be "unit" or "raw", got {average!r}')
    counts = torch.bincount(labels)
    if not counts.all():
        raise ValueError(f"no PFV has the label {int(counts.argmin())}: label clusters from 0 on")
    centred = x - beta
    if average == "unit":
        F.normalize(centred, dim=1, out=centred)
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype, device=x.device)
    return sums.index_add_(0, labels, centred) / counts[:, None]


def tune(concepts: Concepts, x: Tensor, nonzeros: float | None = None, seed: int = 0) -> Concepts:
    """The same concepts with the λ (eq. 2) at which PFVs have so many non-zero codes on average.

    Within 2 %, or one code of one PFV where these are few, but never more than a tenth.

    Parameters
    ----------
    x
        PFVs (N, C), not centred; 200 of them, drawn with the seed, are enough.
    nonzeros
        By default :func:`gig_helpers.lasso.wanted_nonzeros` of the block.

    Raises
    ------
    ValueError
        If no λ gives that many; see :func:`gig_helpers.lasso.lambda_for`.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(4), torch.zeros(4), torch.arange(4))
    >>> x = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    >>> 2 <= tune(concepts, x, nonzeros=2).lam < 4
    True
    """
    if nonzeros is None:
        nonzeros = lasso.wanted_nonzeros(concepts.block, *concepts.vectors.shape)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:200]
    some = x[chosen].to(concepts.vectors)
    # Where PFVs and codes are few, one code of one PFV may be more than two hundredths.
    rtol = min(max(0.02, 1 / (nonzeros * len(some))), 0.1)
    lam = lasso.lambda_for(some, concepts.vectors, nonzeros, beta=concepts.beta, rtol=rtol)
    return replace(concepts, lam=lam)


def fit_concepts(
    pfvs: PFVDataset, profile: Profile | None = None, blocks: Iterable[str] | None = None, *,
    extractor: str = "bisecting", k: int | None = None, seed: int | None = None,
    held_out: bool = False, per_image: int | None = None,
) -> dict[str, Concepts]:  # fmt: skip
    """Concepts with their λ from sampled PFVs (section 3.2), or what an equal run made.

    Parameters
    ----------
    profile
        Says how many, unless ``k`` does, and the seed, unless ``seed`` does; by default
        ``Profile()``.
    blocks
        By default those of the profile.
    extractor
        One of :data:`EXTRACTORS`.
    held_out
        Leave the PFVs of every fourth photograph out (:meth:`PFVDataset.held_out`).
    per_image
        PFVs of each picture, the first drawn; by default all.

    Returns
    -------
    dict
        ``{block: Concepts}``, on the network's device.

    Raises
    ------
    KeyError
        If there are no PFVs of a block.
    ValueError
        If there is no such extractor; as its fit does, and :func:`tune`.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Network, load_pictures, sample
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> profile = Profile(blocks=("layer4.1",), pfvs_per_concept=4, families=None)
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, load_pictures("sample").subset([0]), profile)
    ...     concepts = fit_concepts(pfvs, profile)["layer4.1"]
    >>> concepts.vectors.shape, concepts.labels.shape, concepts.lam > 0
    (torch.Size([4, 512]), torch.Size([16]), True)
    """
    if extractor not in EXTRACTORS:
        raise ValueError(f"unknown extractor {extractor!r}: choose {' or '.join(EXTRACTORS)}")
    network, profile = pfvs.network, profile or Profile()
    seed = profile.seed if seed is None else seed
    concepts = {}
    for block in profile.blocks_of(network) if blocks is None else blocks:
        kept = _kept(pfvs, block, held_out)
        if per_image is not None:
            kept &= pfvs.among_first(block, per_image)
        count = k or profile.n_concepts(network.channels(block), int(kept.sum()))
        nonzeros = lasso.wanted_nonzeros(block, count, network.channels(block))
        fit = EXTRACTORS[extractor].fit
        given = [pfvs, block, fit, count, seed, nonzeros, held_out, per_image]
        depends = artifacts.fingerprint(given)
        name = artifacts.key("concepts", depends, artifacts.code_of(fit_concepts))
        path = artifacts.folder() / f"concepts-{name}.safetensors"
        if not path.exists():
            x = pfvs.vectors(block)[kept].to(network.device)
            beta = network.shift(block)
            # Where no batch norm says what "no concepts" is, the mean PFV does.
            beta = x.mean(dim=0) if beta is None else beta
            made = fit(x, beta, count, seed, block=block)
            save(tune(made, x, nonzeros, seed) if made.needs_lam else made, path)
        concepts[block] = load(path).to(network.device)
        level = profile.families if concepts[block].parents is not None else None
        if level == "supported":
            level = _supported(pfvs, concepts[block], held_out)
        concepts[block] = concepts[block].at(level and min(level, count))
    return concepts


def _kept(pfvs: PFVDataset, block: str, held_out: bool) -> Tensor:
    """Which of a block's PFVs (N,) make its concepts."""
    return ~pfvs.held_out(block) if held_out else torch.ones(pfvs.count(block)).bool()


def _supported(pfvs: PFVDataset, concepts: Concepts, held_out: bool) -> int | None:
    table = support_of(pfvs, concepts, held_out=held_out)
    level = families.supported(table)
    if level is None and len(table):
        level = int(table.index.min())
        warnings.warn(
            f"{concepts.block}: {pfvs.pictures} support no number of families, so the smallest "
            f"tried, {level}, is taken: give more photographs",
            stacklevel=3,
        )
    return level


def support_of(
    pfvs: PFVDataset, concepts: Concepts, *, held_out: bool = False
) -> pd.DataFrame:  # fmt: skip
    """What speaks for each number of families of a block; not in the paper.

    The table of :func:`gig_helpers.families.support`, indexed by level.

    Parameters
    ----------
    concepts
        As :func:`fit_concepts` made them of these PFVs, with a tree.
    held_out
        Whether every fourth photograph was left out.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Network, load_pictures, sample
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> profile = Profile(blocks=("layer4.1",), pfvs_per_concept=2, families=None)
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, load_pictures("sample").subset([0, 5, 10]), profile)
    ...     table = support_of(pfvs, fit_concepts(pfvs, profile)["layer4.1"])
    >>> table.index.tolist(), bool(table["supported"].any())  # of three photographs: none
    ([4, 8, 12, 16, 24], False)
    """
    assert concepts.parents is not None
    ids = pfvs.picture_ids(concepts.block)
    photographs = pfvs.photographs[ids[_kept(pfvs, concepts.block, held_out)]]
    excess = torch.empty(0, len(families.LEVELS))
    if len(photographs.unique()) >= families.SMALL:
        excess = _agreement(pfvs, concepts.block, concepts.beta, held_out)["excess"]
    return families.support(concepts.labels.cpu(), concepts.parents.cpu(), photographs, excess)


@artifacts.cached("agreement")
def _agreement(pfvs: PFVDataset, block: str, beta: Tensor, held_out: bool) -> dict[str, Tensor]:
    ids, kept = pfvs.picture_ids(block), _kept(pfvs, block, held_out)
    x, ids = pfvs.vectors(block)[kept].to(beta), ids[kept]
    return {"excess": families.agreement(x, beta, pfvs.photographs[ids], pfvs.classes()[ids])}


def nearest_concept(x: Tensor, concepts: Concepts) -> Tensor:
    """Concept (N,) with the largest cosine to each PFV (N, C), not centred (appendix B).

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.ones(2), torch.arange(2))
    >>> nearest_concept(torch.tensor([[9.0, 2.0], [1.0, 3.0]]), concepts).tolist()
    [0, 1]
    """
    return clustering.nearest_centre(x - concepts.beta, concepts.directions)
