"""How much each concept matters for a class or a later concept, by GIG and by cheaper methods.

Section 4.2 orders concepts by GIG; the rivals are what its reviewers asked for. A new method is one
function here, decorated with its name and what it costs: curves, studies and chapters find it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .codes import reconstruct
from .concepts import Concepts
from .gig import Classes, choice, class_relevance, gig
from .network import Network


@dataclass(frozen=True)
class Question:
    """What a method is asked: the importance of a block's concepts for some targets (section 4.2).

    Attributes
    ----------
    codes
        U (N, HW, k) of the concepts, on the network's device.
    directions
        Unit vectors (N, T, D) of the targets, in the space of the responses.
    attribute
        GIG to the targets, by its options: → (N, T, k).
    respond
        Pre-activations (B, P, C) of the concepts' block → what the targets are directions of,
        (B, D): the logits, or the later block's PFVs summed over positions.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), "layer4.1")
    >>> def respond(x):
    ...     return x.sum(dim=1)
    >>> codes, directions = torch.ones(1, 4, 2), torch.tensor([[[1.0, 0.0]]])
    >>> asked = Question(codes, concepts, directions, None, respond, seed=0, batch_size=8)
    >>> asked.respond(torch.ones(1, 4, 2))
    tensor([[4., 4.]])
    """

    codes: Tensor
    concepts: Concepts
    directions: Tensor
    attribute: Callable[..., Tensor]
    respond: Callable[[Tensor], Tensor]
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Method:
    """A method of :data:`METHODS`: what it takes as importance, and its cost (section 4.2).

    Examples
    --------
    >>> METHODS["ablation"].cost, METHODS["ablation"].affordable
    ('one forward pass per concept in use', False)
    """

    importance: Callable[[Question], Tensor]
    cost: str

    @property
    def affordable(self) -> bool:
        """Whether the cost of a picture does not grow with its concepts."""
        return "per concept" not in self.cost


METHODS: dict[str, Method] = {}
"""Methods by name; the first is the paper's."""


def _method(name: str, cost: str) -> Callable[[Callable[[Question], Tensor]], Method]:
    def add(importance: Callable[[Question], Tensor]) -> Method:
        return METHODS.setdefault(name, Method(importance, cost))

    return add


@_method("gig", "a forward and a backward pass per quadrature point")
def _gig(asked: Question) -> Tensor:
    """Γ_q of equations 5 and 7: the gradient integrated along the path, times the code."""
    return asked.attribute()


@_method("gradient", "one forward and one backward pass")
def _gradient(asked: Question) -> Tensor:
    """Gradient × code at the reconstruction, the end of GIG's path: no integral."""
    return asked.attribute(method="endpoint")


@_method("activation", "nothing")
def _activation(asked: Question) -> Tensor:
    """Σ_p |u_pq|: blind to the target and to the network above."""
    return asked.codes.abs().sum(dim=1, keepdim=True).expand(-1, asked.directions.shape[1], -1)


@_method("random", "nothing")
def _random(asked: Question) -> Tensor:
    """A random order, seeded."""
    generator = torch.Generator().manual_seed(asked.seed)
    size = *asked.directions.shape[:2], len(asked.concepts)
    return torch.rand(size, generator=generator).to(asked.codes)


@_method("random in use", "nothing")
def _random_in_use(asked: Question) -> Tensor:
    """A random order of the concepts that the picture uses, the others after them."""
    return _random.importance(asked) * asked.codes.any(dim=1, keepdim=True)


@_method("cosine", "one forward pass per concept, once for all pictures")
@torch.no_grad()
def _cosine(asked: Question) -> Tensor:
    """The network's response to the concept alone, on one position; no picture."""
    beta = asked.concepts.beta
    alone = torch.cat([beta[None], beta + asked.concepts.vectors])[:, None]
    found = torch.cat([asked.respond(part) for part in alone.split(asked.batch_size)])
    return asked.directions @ F.normalize(found[1:] - found[0], dim=1).T


@_method("ablation", "one forward pass per concept in use")
@torch.no_grad()
def _ablation(asked: Question) -> Tensor:
    """What the target loses when the concept alone is taken out of the reconstruction."""
    vectors = asked.concepts.vectors
    found = vectors.new_zeros(*asked.directions.shape[:2], len(vectors))
    for n, u in enumerate(asked.codes):
        full = reconstruct(u, asked.concepts)
        whole = asked.respond(full[None])
        for part in u.any(dim=0).nonzero()[:, 0].split(asked.batch_size):
            without = full - u.T[part, :, None] * vectors[part, None]
            lost = whole - asked.respond(without)
            found[n, :, part] = asked.directions[n] @ lost.T
    return found


def class_importance(
    method: str, network: Network, codes: Tensor, concepts: Concepts, classes: Classes,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Importance of every concept of a block for some classes (eq. 7 and its rivals).

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    codes
        U (N, HW, k)
    classes
        (T,) class numbers, or (N, T) where each picture has its own.
    **options
        ``seed`` of the random order, 0 by default; ``tolerance``, ``batch_size`` and others of
        :func:`gig_helpers.gig.class_relevance`.

    Returns
    -------
    Tensor
        (N, T, k)

    Raises
    ------
    ValueError
        If the method is unknown, or shapes do not fit.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> block = "layer3.0"
    >>> concepts = Concepts(torch.eye(256)[:3], network.bn_shift(block), torch.arange(3), block)
    >>> codes = torch.tensor([[[1.0, 0.0, -2.0]] * 4])
    >>> class_importance("activation", network, codes, concepts, [0]).tolist()
    [[[4.0, 0.0, 8.0]]]
    """
    u, concepts = fitting(network, codes, concepts)
    wanted = torch.as_tensor(classes)
    wanted = wanted.expand(len(u), -1) if wanted.ndim == 1 else wanted
    directions = F.one_hot(wanted, len(network.class_vectors)).to(u)
    explain = partial(class_relevance, network, u, concepts.vectors, concepts.block, wanted)

    def respond(x: Tensor) -> Tensor:
        return network.propagate(network.arranged(x, concepts.block), concepts.block)

    return _answer(method, u, concepts, directions, explain, respond, options)


def interlayer_importance(
    method: str, network: Network, codes: Tensor, concepts: Concepts, target: str, vectors: Tensor,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Importance of every concept of a block for some concepts of a later one (eq. 5, rivals).

    Parameters
    ----------
    target, vectors
        The later block, and the vectors of its concepts, (T, C_b) or (N, T, C_b).

    Notes
    -----
    The other parameters, what is returned and what is raised are those of
    :func:`class_importance`, with options of :func:`gig_helpers.gig.gig`.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> block, codes = "layer4.0", torch.tensor([[[1.0, 0.0, -2.0]] * 4])
    >>> concepts = Concepts(torch.eye(512)[:3], network.bn_shift(block), torch.arange(3), block)
    >>> given = (network, codes, concepts, "layer4.1", torch.ones(1, 512))
    >>> interlayer_importance("activation", *given).tolist()
    [[[4.0, 0.0, 8.0]]]
    """
    network.span(concepts.block, target)
    u, concepts = fitting(network, codes, concepts)
    wanted = vectors.to(u).expand(len(u), *vectors.shape[-2:])

    def respond(x: Tensor) -> Tensor:
        w = network.propagate(network.arranged(x, concepts.block), concepts.block, target)
        return network.positions(w, target).sum(dim=1)

    explain = partial(gig, network, u, concepts.vectors, concepts.block, target, wanted)
    return _answer(method, u, concepts, F.normalize(wanted, dim=2), explain, respond, options)


def _answer(
    method: str, u: Tensor, concepts: Concepts, directions: Tensor, explain: Callable[..., Any],
    respond: Callable[[Tensor], Tensor], options: dict[str, Any],
) -> Tensor:  # fmt: skip
    choice(method, "method", *METHODS)
    seed = options.pop("seed", 0)
    attribute = partial(explain, beta=concepts.beta, **options)
    batch_size = options.get("batch_size", 16)
    asked = Question(u, concepts, directions, attribute, respond, seed, batch_size)
    return METHODS[method].importance(asked)


def fitting(network: Network, codes: Tensor, concepts: Concepts) -> tuple[Tensor, Concepts]:
    """Codes (N, HW, k) and concepts in the network's dtype and on its device; not in the paper.

    Raises
    ------
    ValueError
        If codes, concepts and network do not fit each other, or the codes hold NaN.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu").double()
    >>> own = Concepts(torch.eye(512)[:2], torch.zeros(512), torch.arange(2), "layer4.1")
    >>> fitting(network, torch.ones(1, 4, 2), own)[0].dtype
    torch.float64
    """
    like, channels = network.class_vectors, network.channels(concepts.block)
    if codes.ndim != 3 or codes.shape[-1] != len(concepts) or len(concepts.beta) != channels:
        raise ValueError(
            f"codes (N, HW, k) {tuple(codes.shape)} and concepts (k, C) "
            f"{tuple(concepts.vectors.shape)} do not fit {concepts.block} with {channels} "
            "channels"
        )
    if not torch.isfinite(codes).all():
        raise ValueError("codes hold NaN or infinite values")
    fitted = replace(concepts, vectors=concepts.vectors.to(like), beta=concepts.beta.to(like))
    return codes.to(like), fitted
