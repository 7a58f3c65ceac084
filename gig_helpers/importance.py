"""How much each concept matters for a class or a later concept, by GIG and by cheaper methods.

Section 4.2 orders concepts by GIG; the rivals are what its reviewers asked for. A new method is one
function, anywhere, decorated with :func:`method`: curves, studies and chapters find it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .codes import Decomposition
from .concepts import Concepts
from .data import artifacts
from .gig import choice, class_relevance, gig

Classes: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | Tensor
LaterConcepts: TypeAlias = tuple[str, Classes]
Target: TypeAlias = Classes | LaterConcepts
"""What is attributed to concepts: classes, or ``(block, numbers)`` of concepts of a later block.

Numbers are those of one target, (T,) of all pictures, or (N, T) of each its own.
"""


@dataclass(frozen=True)
class Question:
    """What a method is asked: the importance of a block's concepts for some targets (section 4.2).

    Attributes
    ----------
    decomposition, source
        Pictures written as concepts, and the block whose concepts are asked about.
    targets
        Classes (N, T), or numbers of concepts of the block ``later``.
    later
        The later block; ``None``: the targets are classes.
    seed, batch_size
        Of a random order; how many states pass the network at once.
    options
        Of :func:`gig_helpers.gig.integrate`, for methods that integrate.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers.network import Network
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.eye(512)[:2], torch.zeros(512), torch.arange(2), block)
    >>> d = Decomposition(
    ...     network, torch.zeros(1, 3, 64, 64), {block: concepts}, {block: torch.ones(1, 4, 2)}
    ... )
    >>> asked = Question(d, block, torch.tensor([[4]]))
    >>> asked.codes.shape, asked.directions, asked.respond(torch.ones(1, 4, 512)).shape
    (torch.Size([1, 4, 2]), tensor([[[0., 0., 0., 0., 1.]]]), torch.Size([1, 5]))
    >>> asked.gig(points=2).shape
    torch.Size([1, 1, 2])
    """

    decomposition: Decomposition
    source: str
    targets: Tensor
    later: str | None = None
    seed: int = 0
    batch_size: int = 16
    options: dict[str, Any] | None = None

    @property
    def codes(self) -> Tensor:
        """U (N, HW, k)."""
        return self.decomposition.codes[self.source]

    @property
    def concepts(self) -> Concepts:
        """The block's concepts."""
        return self.decomposition.concepts[self.source]

    @cached_property
    def vectors(self) -> Tensor:
        """Of later concepts: their vectors (N, T, C)."""
        assert self.later is not None
        return self.decomposition.concepts[self.later].directions[self.targets]

    @cached_property
    def directions(self) -> Tensor:
        """Unit vectors (N, T, D) of the targets, in the space of the responses."""
        if self.later is None:
            return F.one_hot(self.targets, self.decomposition.network.n_classes).to(self.codes)
        return F.normalize(self.vectors, dim=2)

    def respond(self, x: Tensor) -> Tensor:
        """PFVs (B, P, C) to what targets are directions of (B, D): logits, or summed later PFVs."""
        after = self.decomposition.network.segment(self.source, self.later)(x)
        return after if self.later is None else after.sum(dim=1)

    def gig(self, **options: Any) -> Tensor:
        """GIG of atoms (N, T, k), or with ``positions=True`` (N, T, HW, k) (eqs. 4, 5, 7).

        With ``rest=True`` k + 1 columns, along the path to the network's own X.
        """
        d, here = self.decomposition, self.concepts
        options = {"batch_size": self.batch_size, **(self.options or {}), **options}
        if options.pop("rest", False):
            options["rest"] = d.residual(self.source)
        given = d.network, self.codes, here.vectors, self.source
        if self.later is None:
            return class_relevance(*given, self.targets, beta=here.beta, **options)
        return gig(*given, self.later, self.vectors, beta=here.beta, **options)


@dataclass(frozen=True)
class Method:
    """A method of :data:`METHODS`: what it takes as importance, and its cost (section 4.2).

    Examples
    --------
    >>> METHODS["ablation"].cost, METHODS["ablation"].per_concept
    ('one forward pass per concept in use', True)
    """

    importance: Callable[[Question], Tensor]
    cost: str
    per_concept: bool = False

    def __call__(self, asked: Question) -> Tensor:
        """Importance (N, T, K) of concepts; where the method speaks of atoms, their sums."""
        values, here = self.importance(asked), asked.concepts
        k = len(here.vectors)
        if values.shape[-1] < k:
            return values
        return torch.cat([here.gathered(values[..., :k]), values[..., k:]], dim=-1)

    @property
    def fingerprint(self) -> Any:
        """Hash of its code."""
        return artifacts.fingerprint(self.importance)


METHODS: dict[str, Method] = {}
"""Methods by name; the first is the paper's."""


def method(
    name: str, *, cost: str, per_concept: bool = False
) -> Callable[[Callable[[Question], Tensor]], Callable[[Question], Tensor]]:
    """Register a way to say how much concepts matter (section 4.2): a function of a Question.

    It returns (N, T, k), of atoms, which are summed where the concepts are families, or of these.

    Parameters
    ----------
    name
        What :func:`attribute` calls it.
    cost
        What it costs a picture, in words.
    per_concept
        Whether that grows with the number of concepts.

    Examples
    --------
    >>> @method("energy", cost="nothing")
    ... def energy(asked):
    ...     return asked.codes.square().sum(dim=1, keepdim=True).expand(*asked.targets.shape, -1)
    >>> METHODS.pop("energy").cost
    'nothing'
    """

    def add(importance: Callable[[Question], Tensor]) -> Callable[[Question], Tensor]:
        METHODS[name] = Method(importance, cost, per_concept)
        return importance

    return add


def attribute(
    d: Decomposition, source: str, target: Target, *, method: str = "gig", seed: int = 0,
    batch_size: int = 16, **options: Any,
) -> Tensor:  # fmt: skip
    """How much every concept of a block matters for classes or later concepts (eqs. 5 and 7).

    Parameters
    ----------
    source
        The block whose concepts are asked about.
    target
        Classes: a number, (T,) of all pictures, or (N, T). Or ``(block, numbers)``: concepts of a
        later block of the decomposition.
    method
        One of :data:`METHODS`.
    seed
        Of random orders.
    batch_size
        How many states pass the network at once.
    **options
        Of GIG: ``tolerance``, ``points``, ``baseline``, ``output``, and ``positions``, which keeps
        the attribution of every position; see :func:`gig_helpers.gig.class_relevance`. With
        ``rest=True`` the path ends in the network's own map, not in the reconstruction, and what
        the concepts leave of it is one more source.

    Returns
    -------
    Tensor
        (N, T, K), one value per concept; of GIG with ``positions=True`` (N, T, HW, K), and with
        ``rest=True`` K + 1 of them, the rest last.

    Raises
    ------
    KeyError
        If a block is unknown.
    ValueError
        If the method, a class or a concept is unknown, or the later block does not come later.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers.network import Network
    >>> network, images = Network(resnet18(num_classes=5), device="cpu"), torch.zeros(1, 3, 64, 64)
    >>> concepts, codes = {}, {}
    >>> for block in ("layer4.0", "layer4.1"):
    ...     concepts[block] = Concepts(
    ...         torch.eye(512)[:3], network.bn_shift(block), torch.arange(3), block
    ...     )
    ...     codes[block] = torch.tensor([[[1.0, 0.0, -2.0]] * 4])
    >>> d = Decomposition(network, images, concepts, codes)
    >>> attribute(d, "layer4.0", 3).shape, attribute(d, "layer4.0", ("layer4.1", [0, 2])).shape
    (torch.Size([1, 1, 3]), torch.Size([1, 2, 3]))
    >>> attribute(d, "layer4.0", [4], method="activation").tolist()
    [[[4.0, 0.0, 8.0]]]
    """
    choice(method, "method", *METHODS)
    return METHODS[method](question(d, source, target, seed, batch_size, options))


def question(
    d: Decomposition, source: str, target: Target, seed: int = 0, batch_size: int = 16,
    options: dict[str, Any] | None = None,
) -> Question:  # fmt: skip
    """The question of :func:`attribute`, its targets checked; not in the paper.

    Raises
    ------
    KeyError
        If a block is not decomposed.
    ValueError
        If a class or a concept is unknown, or the later block does not come later.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers.network import Network
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.eye(512)[:2], torch.zeros(512), torch.arange(2), block)
    >>> d = Decomposition(
    ...     network, torch.zeros(1, 3, 64, 64), {block: concepts}, {block: torch.ones(1, 4, 2)}
    ... )
    >>> question(d, block, 5)
    Traceback (most recent call last):
    ValueError: classes [5] leave 0 … 4
    """
    later, numbers = _parted(target)
    for block in (source, later):
        if block is not None and block not in d.concepts:
            raise KeyError(f"{block!r} is not decomposed: there are {', '.join(d.blocks)}")
    d.network.segment(source, later)  # which says so where the later block does not come later
    count = d.network.n_classes if later is None else len(d.concepts[later])
    wanted = torch.as_tensor(numbers)
    if wanted.is_floating_point() or wanted.numel() == 0:
        raise ValueError(f"targets are numbers (T,) or (N, T), got {numbers}")
    wanted = wanted.reshape(1) if wanted.ndim == 0 else wanted
    if wanted.ndim > 2 or (wanted.ndim == 2 and len(wanted) != len(d)):
        raise ValueError(f"targets {tuple(wanted.shape)}: expected (T,), or (N, T) of {len(d)}")
    if wanted.min() < 0 or wanted.max() >= count:
        what = "classes" if later is None else f"concepts of {later}"
        raise ValueError(f"{what} {wanted.unique().tolist()} leave 0 … {count - 1}")
    wanted = wanted.expand(len(d), -1).to(d.network.device)
    return Question(d, source, wanted, later, seed, batch_size, options)


def _parted(target: Target) -> tuple[str | None, Classes]:
    """The later block, if the target names one, and the numbers."""
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str):
        return target[0], target[1]
    return None, target


@method("gig", cost="a forward and a backward pass per quadrature point")
def _gig(asked: Question) -> Tensor:
    """Γ_q of equations 5 and 7: the gradient integrated along the path, times the code."""
    return asked.gig()


@method("gradient", cost="one forward and one backward pass")
def _gradient(asked: Question) -> Tensor:
    """Gradient × code at the reconstruction, the end of GIG's path: no integral."""
    return asked.gig(rule="endpoint")


@method("activation", cost="nothing")
def _activation(asked: Question) -> Tensor:
    """Σ_p |u_pq|: blind to the target and to the network above."""
    return asked.codes.abs().sum(dim=1, keepdim=True).expand(*asked.targets.shape, -1)


@method("random", cost="nothing")
def _random(asked: Question) -> Tensor:
    """A random order, seeded."""
    generator = torch.Generator().manual_seed(asked.seed)
    size = *asked.targets.shape, len(asked.concepts)
    return torch.rand(size, generator=generator).to(asked.codes)


@method("random in use", cost="nothing")
def _random_in_use(asked: Question) -> Tensor:
    """A random order of the concepts that the picture uses, the others after them."""
    in_use = asked.codes.any(dim=1, keepdim=True).to(asked.codes)
    return _random(asked) * (asked.concepts.gathered(in_use) > 0)


@method("cosine", cost="one forward pass per concept, once for all pictures", per_concept=True)
@torch.no_grad()
def _cosine(asked: Question) -> Tensor:
    """The network's response to the concept alone, on one position; no picture."""
    beta = asked.concepts.beta
    alone = torch.cat([beta[None], beta + asked.concepts.directions])[:, None]
    answers = torch.cat([asked.respond(part) for part in alone.split(asked.batch_size)])
    return asked.directions @ F.normalize(answers[1:] - answers[0], dim=1).T


@method("ablation", cost="one forward pass per concept in use", per_concept=True)
@torch.no_grad()
def _ablation(asked: Question) -> Tensor:
    """What the target loses when the concept alone is taken out of the reconstruction."""
    here = asked.concepts
    every = here.vectors.new_zeros(*asked.targets.shape, len(here))
    for n, u in enumerate(asked.codes):
        full = here.decode(u)
        whole = asked.respond(full[None])
        for part in here.family[u.any(dim=0)].unique().split(asked.batch_size):
            of_part = [here.atoms(q) for q in part]
            without = torch.stack([full - u[:, atoms] @ here.vectors[atoms] for atoms in of_part])
            lost = whole - asked.respond(without)
            every[n, :, part] = asked.directions[n] @ lost.T
    return every
