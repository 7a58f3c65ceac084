"""Sharing Ratio Decomposition (Han et al., ICLR 2024): contributions and iERFs, exact and batched.

A PFV v_j is a sum of parts v̂_{i→j}, one for each position i of the layer below. Position i's share
of it is the sharing ratio μ_{i→j} = ⟨v̂_{i→j}, v_j⟩ / ‖v_j‖², so that Σ_i μ_{i→j} = 1. Relevance
goes down by R_i = Σ_j μ_{i→j} R_j.

The traced graph is gone down operation by operation, with a rule for each (:data:`RULES`). What
works on each position alone hands relevance on. What moves values, such as a reshape, moves
relevance. What joins splits it: in a residual sum the target v is the sum, whose parts are what the
branches bring. What mixes positions shares it, with the sum that it enters for its target, if there
is one, and else its own output. What is added at every position alike, as a batch norm's shift b,
is shared in proportion to the norm of what each position brings; padding brings nothing; 0/0 is 0.
A class token, which no picture made, is such a shift for all positions that it is put beside.

The ratios do not depend on R. So one forward pass writes them all down, a single number for each
output position and kernel offset of a layer; after that a relevance map, or any number of them,
goes down to the pixels. Two facts make the forward pass cheap: a 1×1 convolution has one part,
which is the whole, and in a k×k one the part at offset o is a 1×1 convolution of the shifted input,
k² of which cost what the k×k one costs.

The paper uses it in section 3.1 and writes the shift of a batch norm in eq. 8. Max-pooling selects,
for each channel, one of the window's positions. Where 1×1 convolutions alone follow, it is fused
with them: the parts of their outputs are what the positions bring. Else the pooled vector is a
target of its own, and its parts are its channels from each position. A mean over the whole map is
fused with the linear layer that follows: that one's output is the mean of what it makes of each
position, its bias included. Attention's pattern a is held constant and fused with the projection O
that follows: the parts are what each token's value x brings through it, Σ_h a_ij^h O_h x_i^h. A
gate is held constant too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from .network import (
    ACTIVATIONS,
    MOVES,
    Network,
    Node,
    Window,
    arguments,
    evaluate,
    live_inputs,
    operation,
)

PIXELS = "pixels"
"""Name of the lowest level in :func:`contributions`, below every block."""

Missing = Literal["error", "gradient"]

_ATTENTION = "scaled_dot_product_attention"


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def contributions(
    network: Network, images: Tensor, blocks: Iterable[str] | None = None,
    classes: Tensor | Sequence[int] | None = None, batch_size: int = 8, rule: Missing = "error",
) -> dict[str, Tensor]:  # fmt: skip
    """Contribution of every PFV to a class's logit, at all blocks in one sweep (SRD; appendix C).

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    blocks
        Names of blocks, and ``"pixels"``; by default every block. The lowest sets the cost.
    classes
        A class a picture (N,); by default the predicted one.
    batch_size
        Pictures worked on at a time. It bounds the memory, and changes nothing else.
    rule
        For operations without one: ``"error"``, or ``"gradient"``, the share of the linearised
        operation, gradient × input there, which need not sum to the logit.

    Returns
    -------
    dict
        ``{block: (N, H_block, W_block)}``, of tokens (N, P), in the network's order, pixels first:
        signed relevance of the positions of the block's output. Each map sums to the logit, up to
        what ends in padding or in vectors that are zero.

    Raises
    ------
    KeyError
        If a block is unknown.
    ValueError
        If the pictures do not have the shape (N, 3, H, W) or hold NaN, if there are none, if there
        is not one class a picture, if a class does not exist, or if ``batch_size`` is below 1.
    TypeError
        If the classes are not integers.
    NotImplementedError
        If there is no rule for an operation.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(), device="cpu"), torch.rand(1, 3, 64, 64)
    >>> relevance = contributions(network, images, ["layer3.0"])["layer3.0"]
    >>> logit = network.logits(images).max()
    >>> relevance.shape, bool((relevance.sum() - logit).abs() < 0.01 * logit.abs())
    (torch.Size([1, 4, 4]), True)
    """
    levels = (PIXELS, *network.blocks)
    wanted = list(network.blocks if blocks is None else blocks)
    for name in wanted:
        if name != PIXELS:
            network.index(name)
    if not wanted:
        return {}
    lowest = min(levels.index(name) for name in wanted)
    images = _checked_images(network, images, batch_size)
    if classes is not None:
        classes = _checked_classes(network, classes, len(images))
    maps: dict[str, list[Tensor]] = {name: [] for name in levels if name in wanted}
    nodes = {name: network.node(name) for name in network.blocks}
    source = None if lowest == 0 else nodes[levels[lowest]]
    sweep = _Sweep(network, source, None, rule)
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].contiguous(memory_format=torch.channels_last)
        if source is not None:
            x = network.preactivations(x, [levels[lowest]])[levels[lowest]]
        chosen = None if classes is None else classes[start : start + batch_size]
        found = sweep.logits(x, chosen)
        for name, parts in maps.items():
            parts.append(found[nodes.get(name, sweep.source)][0])
    return {name: torch.cat(parts) for name, parts in maps.items()}


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def ierf(
    network: Network, images: Tensor, block: str, positions: Tensor, batch_size: int = 8,
    rule: Missing = "error",
) -> Tensor:  # fmt: skip
    """iERFs: the pixels' sharing ratios in PFVs (SRD; section 3.1, eq. 10).

    The positions of one picture share its forward pass. Where their receptive fields together are
    smaller than the picture, only these are computed: the picture is cut to them, in step with the
    strides, which changes nothing in the result.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    block
        Where the PFVs lie.
    positions
        Integers (N, 2), row and column of one PFV a picture; or (N, P, 2), P of them. Of tokens,
        their numbers, (N, 1) or (N, P, 1).
    batch_size
        Pictures worked on at a time. It bounds the memory, and changes nothing else.
    rule
        As in :func:`contributions`.

    Returns
    -------
    Tensor
        (N, H, W) or (N, P, H, W), signed; each sums to 1, up to what ends in padding or in vectors
        that are zero.

    Raises
    ------
    KeyError
        If the block is unknown.
    ValueError
        If the pictures or the positions have a wrong shape, the pictures hold NaN, there are none,
        a position lies outside of the block's map, or ``batch_size`` is below 1.
    TypeError
        If the positions are not integers.
    NotImplementedError
        If there is no rule for an operation.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(), device="cpu"), torch.rand(1, 3, 64, 64)
    >>> field = ierf(network, images, "layer1.1", torch.tensor([[8, 8]]))
    >>> field.shape, round(field.sum().item(), 3), field[0, :8].any().item()  # nothing from afar
    (torch.Size([1, 64, 64]), 1.0, False)
    """
    network.index(block)
    images = _checked_images(network, images, batch_size)
    count, _, *size = images.shape
    places = _checked_positions(network, block, positions, count, (size[0], size[1]))
    per_image = places.shape[1]

    field = network.receptive_field(block)
    window = size if field is None else [_crop_edge(edge, *field[:2]) for edge in size]
    if field is not None and per_image * window[0] * window[1] < size[0] * size[1]:
        # One crop a PFV; as many at a time as have the area of batch_size pictures.
        owner = [i for i in range(count) for _ in range(per_image)]
        corners, places = _corners(field, places.reshape(-1, 1, 2), size, window)
        batch_size = batch_size * size[0] * size[1] // (window[0] * window[1])
    else:
        owner, corners, window = list(range(count)), places.new_zeros(count, 2), size

    sweep = _Sweep(network, None, network.node(block), rule)
    found = images.new_zeros(len(owner), places.shape[1], *size)
    for start in range(0, len(owner), batch_size):
        here = slice(start, start + batch_size)
        views = [
            (..., slice(top, top + window[0]), slice(left, left + window[1]))
            for top, left in corners[here].tolist()
        ]
        chunk = torch.stack([images[i][v] for i, v in zip(owner[here], views, strict=True)])
        x = chunk.contiguous(memory_format=torch.channels_last)
        relevance = sweep.positions(x, places[here])[sweep.source]
        for index, view in enumerate(views):
            found[start + index][view] = relevance[:, index]
    return found.reshape(count, per_image, *size).reshape(*positions.shape[:-1], *size)


# ---------------------------------------------------------------------------- the rules

Down = Callable[[Tensor], Sequence[Tensor]]
"""Relevance (K, …) of K maps at an operation's output to that at its inputs.

A map has the shape of the values, with size 1 along the channels: a number for each position. Only
what moves values leaves one for each value.
"""


@dataclass(frozen=True)
class Operation:
    """An operation of a forward pass, as its rule sees it (section 3.1).

    Attributes
    ----------
    node
        Of the traced graph.
    given
        Its arguments by name, with values (N, …); of attention also its pattern a (N, heads, P, P),
        the bias in its values, and the way that what it makes is moved.
    inputs, output
        The values (N, …) that relevance goes down to, and what the operation made of them.
    channels
        The channels' dimensions in each input and, last, in the output.
    target
        v (N, …), the vectors that the output's parts are compared with: the output itself, or the
        sum that it enters.
    again
        The operation as a function of its inputs; what else it depends on is held constant.
    fused
        The operation before it that it is fused with.
    """

    node: Node
    given: dict[str, Any]
    inputs: tuple[Tensor, ...]
    output: Tensor
    channels: tuple[tuple[int, ...], ...]
    target: Tensor
    again: Callable[..., Tensor]
    fused: Node | None = None


Rule = Callable[[Operation], Down]

RULES: dict[str, Rule] = {}
"""Rules by the name of an operation (:func:`gig_helpers.network.operation`); add your own."""


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(make: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, make))
        return make

    return add


def table() -> list[tuple[str, str]]:
    """Rules as rows: what is done, and by which operations (section 3.1); for the page.

    Examples
    --------
    >>> [names for rule, names in table() if rule.startswith("μ = ‖x‖²")]
    ['cat']
    """
    rows: dict[str, list[str]] = {}
    fused = {"mean and linear": _mean_of_linear, "attention and linear": _attention}
    for name, make in (RULES | fused).items():
        rows.setdefault((make.__doc__ or "").split("\n")[0], []).append(name)
    return [(rule, ", ".join(names)) for rule, names in rows.items()]


@_rule(
    *sorted(ACTIVATIONS), "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm",
    "softmax", "clamp", "to", "neg", "abs", "sqrt", "rsqrt", "pow", "exp",
    "log", "square",
)  # fmt: skip
def hand_on(operation: Operation) -> Down:
    """R_i = R_i: each position alone, a norm's statistics held constant.

    Examples
    --------
    >>> RULES["erf"] = hand_on  # an operation of one's own network
    >>> RULES.pop("erf") is hand_on
    True
    """
    return lambda relevance: [relevance]


@_rule("linear")
def _linear(operation: Operation) -> Down:
    """R_i = R_i, 0 where the input is: each position alone."""
    alive = operation.inputs[0].any(dim=-1, keepdim=True)
    return lambda relevance: [_level(relevance, operation.channels[-1]) * alive]


@_rule("mul", "div", "addcmul")
def _gate(operation: Operation) -> Down:
    """R_i = R_i for what is gated, the smaller factor held constant; equal factors take half."""
    count = len(operation.inputs)
    return lambda relevance: [relevance / count] * count


@_rule(*sorted(MOVES))
def _move(operation: Operation) -> Down:
    """Relevance goes back where each value came from; within a vector it lies as squares do."""
    pull = _pull(operation.again, *operation.inputs)
    square, channels = operation.output.square(), operation.channels[-1]
    whole = square.sum(channels, keepdim=True)
    share = torch.where(
        whole == 0, 1 / max(square.numel() // max(whole.numel(), 1), 1), square / whole
    )

    def down(relevance: Tensor) -> Sequence[Tensor]:
        return pull(relevance if relevance.shape[1:] == share.shape else relevance * share)

    return down


@_rule("add", "sub")
def _sum(operation: Operation) -> Down:
    """μ = ⟨x, v⟩/‖v‖² for each branch x of the sum v; a constant takes nothing."""
    if len(operation.inputs) == 1:
        return hand_on(operation)
    v, channels = operation.target, operation.channels[-1]
    square = v.square().sum(channels, keepdim=True)
    x, y = operation.inputs
    signed = (x, -y if operation.node.target is torch.ops.aten.sub.Tensor else y)
    ratios = [_quotient((part * v).sum(channels, keepdim=True), square) for part in signed]

    def down(relevance: Tensor) -> Sequence[Tensor]:
        relevance = _level(relevance, channels)
        found = []
        for ratio, part in zip(ratios, operation.inputs, strict=True):
            shared = relevance * ratio
            wide = [d for d, s in enumerate(part.shape, 1) if s == 1 < shared.shape[d]]
            found.append(shared.sum(wide, keepdim=True) if wide else shared)
        return found

    return down


@_rule("cat")
def _cat(operation: Operation) -> Down:
    """μ = ‖x‖²/‖v‖² for each part x of the joined v; constant tokens are shared by norm."""
    channels, x = operation.channels[-1], operation.inputs
    dim, parts = operation.given["dim"] % x[0].ndim, operation.given["tensors"]
    if dim in channels:
        whole = operation.target.square().sum(channels, keepdim=True)
        ratios = [_quotient(part.square().sum(channels, keepdim=True), whole) for part in x]
        return lambda relevance: [_level(relevance, channels) * ratio for ratio in ratios]
    known = [any(part is own for own in x) for part in parts]
    norms = [torch.linalg.vector_norm(part, dim=channels, keepdim=True) for part in x]
    places = [d for d in range(1, x[0].ndim) if d not in channels]
    total = sum(norm.sum(places, keepdim=True) for norm in norms)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        pieces = _level(relevance, channels).split([part.shape[dim] for part in parts], dim + 1)
        above = [d + 1 for d in places]
        lost = sum(
            p.sum(above, keepdim=True) for p, own in zip(pieces, known, strict=True) if not own
        )
        kept = [piece for piece, own in zip(pieces, known, strict=True) if own]
        return [p + lost * _quotient(n, total) for p, n in zip(kept, norms, strict=True)]

    return down


@_rule(
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "mean",
    "upsample_bilinear2d",
    "upsample_nearest2d",
)
def _share(operation: Operation) -> Down:
    """μ_i = ⟨v̂_i, v⟩/‖v‖², v̂_i what position i brings to the pooled vector v."""
    v, channels = operation.target, operation.channels
    unit = _quotient(v, v.square().sum(channels[-1], keepdim=True))
    pull = _pull(operation.again, *operation.inputs)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        found = pull(_level(relevance, channels[-1]) * unit)
        parts = zip(operation.inputs, found, channels, strict=False)
        return [_level(x * part, own) for x, part, own in parts]

    return down


def _mean_of_linear(operation: Operation) -> Down:
    """μ_i = ⟨W x_i + b, v⟩/(P ‖v‖²), v the mean of what a linear layer makes of P positions."""
    share = _share(operation)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        (found,) = share(relevance)
        rest = relevance.flatten(2).sum(2) - found.flatten(2).sum(2)  # the bias's
        count = found[0, 0].numel()
        return [found + rest.reshape(*rest.shape, *[1] * (found.ndim - 2)) / count]

    return down


@_rule("conv2d")
def _conv(operation: Operation) -> Down:
    """μ_i = (⟨W_i x_i, v⟩ + ⟨b, v⟩ · ‖W_i x_i‖/Σ‖W_i x_i‖)/‖v‖² for each offset i of the kernel."""
    given, (x,), v = operation.given, operation.inputs, operation.target
    window, weight, groups = Window.of(operation.node), given["weight"], given["groups"]
    rows, columns = x.shape[2:]
    if operation.fused is None and window.kernel == (1, 1):
        seen = x[..., :: window.stride[0], :: window.stride[1]]
        ratios = seen.any(dim=1, keepdim=True).to(x)  # one part, the whole, or nothing
    else:
        directions = [v]
        if groups == 1 and 2 * weight.shape[1] <= weight.shape[0]:
            weight, directions = _compressed(weight, v)
        if operation.fused is None:
            parts = _offset_parts(x, weight, window, groups, v.shape[2:])
        else:
            window = Window.of(operation.fused)
            over = arguments(operation.fused)["ceil_mode"]
            parts = (F.conv2d(part, weight) for part in _pool_parts(x, window, over))
        ratios = _ratios(parts, given["bias"], v, directions)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        here = _level(relevance, (1,))[:, :, 0]
        if window.kernel == window.stride == (1, 1):
            return [(ratios[:, 0] * here)[:, :, None]]
        (top, left), ends = window.padding, window.ends(here.shape[2:])
        edges = (max(rows + top, ends[0]), max(columns + left, ends[1]))
        below = here.new_zeros(*here.shape[:2], *edges)
        for offset, ratio in zip(_offsets(window), ratios.unbind(1), strict=True):
            _seen(window, below, offset, here.shape[2:]).addcmul_(ratio, here)
        return [below[:, :, None, top : top + rows, left : left + columns]]

    return down


def _attention(operation: Operation) -> Down:
    """μ_i = (⟨Σ_h a_ij^h O_h x_i^h, v_j⟩ + the shift's by norm)/‖v_j‖², the pattern a constant.

    x are the tokens' values without their bias. What is left of v is the shift.
    """
    given, v, channels = operation.given, operation.target, operation.channels[-1]
    a, moved, weight, x = given["pattern"], given["moved"], given["weight"], operation.inputs[0]
    x = x - given["added"]
    unit = _quotient(v, v.square().sum(channels, keepdim=True))
    mixed = a @ x
    whole = moved(mixed)
    (back,) = torch.func.vjp(lambda y: moved(y) @ weight.T, mixed)[1](unit)
    along = (a * (back @ x.mT)).sum(1, keepdim=True)
    brought = torch.einsum("nhpd,ohd->npho", x, weight.unflatten(1, (x.shape[1], -1)))
    gram = brought @ brought.mT
    square = torch.einsum("nhjp,ngjp,nphg->njp", a, a, gram)
    norm = square.clamp(min=0).sqrt()[:, None]
    left = 1 - along.sum(-1, keepdim=True)
    ratios = along + left * _quotient(norm, norm.sum(-1, keepdim=True))
    pull = _pull(moved, mixed)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        even = _level(relevance, channels) / whole.shape[-1]
        (there,) = pull(even.expand(len(even), *whole.shape))
        return [ratios.mT @ there.sum((2, 4), keepdim=True)]

    return down


# ---------------------------------------------------------------------------- their parts


def _pull(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[Tensor], Any]:
    """What takes gradients (K, …) by a function's output to those by its inputs."""
    return torch.vmap(torch.func.vjp(function, *inputs)[1])


def _level(relevance: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Relevance (K, …) of positions, whatever lies along the channels summed."""
    dims = [d + 1 for d in channels if relevance.shape[d + 1] > 1]
    return relevance.sum(dims, keepdim=True) if dims else relevance


def _plus(a: Tensor | None, b: Tensor, channels: tuple[int, ...]) -> Tensor:
    if a is None:
        return b
    return a + b if a.shape == b.shape else _level(a, channels) + _level(b, channels)


def _offsets(window: Window) -> Iterator[tuple[int, int]]:
    rows, columns = (
        range(0, kernel * dilation, dilation)
        for kernel, dilation in zip(window.kernel, window.dilation, strict=True)
    )
    return product(rows, columns)


def _seen(window: Window, padded: Tensor, offset: tuple[int, int], size: Sequence[int]) -> Tensor:
    """View of what each of ``size`` output positions sees at this offset."""
    rows, columns = (
        slice(first, first + stride * (count - 1) + 1, stride)
        for first, stride, count in zip(offset, window.stride, size, strict=True)
    )
    return padded[..., rows, columns]


def _offset_parts(
    x: Tensor, weight: Tensor, window: Window, groups: int, size: Sequence[int]
) -> Iterator[Tensor]:
    """What each kernel offset of a convolution brings to its output, before the shift."""
    rows, columns = window.padding
    padded = F.pad(x, (columns, columns, rows, rows))
    for offset, tap in zip(_offsets(window), weight.flatten(2).unbind(2), strict=True):
        seen = _seen(window, padded, offset, size)
        depthwise = groups == len(weight) == x.shape[1]  # which a CPU convolves slowly
        yield (
            seen * tap[:, :, None]
            if depthwise
            else F.conv2d(seen, tap[..., None, None], groups=groups)
        )


def _pool_parts(x: Tensor, window: Window, over: bool) -> Iterator[Tensor]:
    """What max-pooling takes from each offset of its window, (N, C, H, W)."""
    pooled, index = F.max_pool2d(x, *window, over, return_indices=True)
    place = []
    for dim, along in ((0, index // x.shape[3]), (1, index % x.shape[3])):
        first = window.stride[dim] * torch.arange(index.shape[2 + dim], device=x.device)
        first = first[:, None] if dim == 0 else first
        place.append((along + window.padding[dim] - first) // window.dilation[dim])
    chosen = place[0] * window.kernel[1] + place[1]
    for number in range(math.prod(window.kernel)):
        yield torch.where(chosen == number, pooled, 0)


def _compressed(weight: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A weight with as few outputs as inputs, and the target's directions for its parts.

    At an offset with s·W = QR, R x has the length of s·W x, and ⟨s·W x, v⟩ = ⟨R x, Qᵀv⟩.
    """
    outputs, inputs, *kernel = weight.shape
    q, r = torch.linalg.qr(weight.flatten(2).permute(2, 0, 1))
    turned = F.conv2d(target, q.transpose(1, 2).reshape(-1, outputs, 1, 1))
    return r.permute(1, 2, 0).reshape(inputs, inputs, *kernel), list(turned.split(inputs, 1))


def _ratios(
    parts: Iterable[Tensor], shift: Tensor | None, target: Tensor,
    directions: Iterable[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """μ of each part (N, C, H, W) in the target, (N, parts, H, W).

    μ = (⟨part, v⟩ + ⟨b, v⟩ · ‖part‖ / Σ‖part‖) / ‖v‖²; 0/0 is 0. The inner products are taken with
    the directions in turn, where given.
    """
    along, norms = [], []
    for part, direction in zip(parts, cycle(directions or [target]), strict=False):
        along.append((part * direction).sum(1))
        norms.append(torch.linalg.vector_norm(part, dim=1))
    ratios = torch.stack(along, 1)
    if shift is not None:
        norm = torch.stack(norms, 1)
        bias = torch.einsum("c,nchw->nhw", shift, target)
        ratios += bias[:, None] * _quotient(norm, norm.sum(1, keepdim=True))
    return _quotient(ratios, target.square().sum(1, keepdim=True))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, 0, numerator / denominator)


# ---------------------------------------------------------------------------- the sweep


@dataclass
class _Step:
    """How one node's relevance goes down: to which nodes, by which rule.

    ``inside`` are the nodes that the rule takes as one, ``joint`` is the sum that they enter, and
    ``values`` lead to attention's values from the bias in them.
    """

    node: Node
    rule: Rule
    inputs: list[Node]
    inside: list[Node]
    joint: Node
    values: Sequence[Node] = ()

    @property
    def needs(self) -> set[Node]:
        """The nodes whose values the rule looks at."""
        own = {self.node, *self.inputs, *self.inside, *self.values}
        return own | {n for node in (*self.inside, *self.values) for n in node.all_input_nodes}


class _Sweep:
    """The way down from one cut point, by default the logits, to another, the pictures."""

    def __init__(
        self, network: Network, source: Node | None, sink: Node | None, missing: Missing
    ):  # fmt: skip
        self.network, self.missing, self.to_logits = network, missing, sink is None
        self.nodes = network.nodes(source, sink)
        self.source, self.sink = self.nodes[0], self.nodes[-1]
        self.stops = {network.node(block) for block in network.blocks}
        self.steps: dict[Node, _Step] = {}
        wanted = {self.sink}
        for node in reversed(self.nodes[1:]):
            if node in wanted:
                self.steps[node] = self._step(node)
                wanted.update(self.steps[node].inputs)

    def _step(self, node: Node) -> _Step:
        rule = RULES.get(operation(node), _share if self.missing == "gradient" else None)
        if rule is None:
            raise _no_rule(node)
        step = _Step(node, rule, live_inputs(node), [node], node)
        chain = _chain(step.inputs[0])
        below, kind = chain[0], operation(chain[0])
        alone = all(len(n.users) == 1 for n in chain)
        if rule is _gate:
            most = max(map(_numel, step.inputs))
            step.inputs = [n for n in step.inputs if _numel(n) == most]
        elif rule is _linear and alone and kind in ("mean", "adaptive_avg_pool2d"):
            if _numel(below) == math.prod(
                below.meta["shape"][d] for d in (0, *below.meta["channels"])
            ):
                step.rule, step.inputs, step.inside = (
                    _mean_of_linear,
                    live_inputs(below),
                    [*chain, node],
                )
        elif rule is _linear and alone and (kind == _ATTENTION or _is_pattern(below)):
            if len(below.meta["shape"]) != 4:
                raise _no_rule(below)
            value = below.args[1 if kind == "matmul" else 2]
            step.rule, step.inputs, step.inside = _attention, [value], [*chain, node]
            values = _chain(value)
            if operation(values[0]) == "linear" and arguments(values[0])["bias"]:
                step.values = values
        elif rule is _conv:
            pooled = len(chain) == 1 and kind == "max_pool2d" and _all_pointwise(below)
            if pooled:
                step.inputs, step.inside = live_inputs(below), [below, node]
            (user, *others) = node.users
            parts = live_inputs(user)
            enters = operation(user) == "add" or (operation(user) == "sub" and user.args[0] is node)
            alike = len(parts) == 2 and parts[0].meta["shape"] == parts[1].meta["shape"]
            if enters and alike and not others and user in self.nodes:
                if pooled or Window.of(node).kernel != (1, 1):
                    step.joint = user
        return step

    def logits(self, x: Tensor, classes: Tensor | None) -> dict[Node, Tensor]:
        """Relevance (1, N, …) of blocks, and of the source, for a class a picture."""
        downs, y, chosen = self._up(x, classes)
        return self._down(downs, (y * chosen)[None])

    def positions(self, x: Tensor, places: Tensor) -> dict[Node, Tensor]:
        """Relevance (P, N, …) of the source for positions (N, P, dims) of the sink."""
        downs, y, _ = self._up(x, None)
        (channel,) = self.sink.meta["channels"]
        own = [s for d, s in enumerate(y.shape) if d not in (0, channel)]
        start = y.new_zeros(places.shape[1], len(y), *own)
        n, p = torch.arange(len(y))[:, None], torch.arange(places.shape[1])
        start[(p, n, *places.unbind(-1))] = 1
        return self._down(downs, start.unsqueeze(channel + 1))

    def _up(self, x: Tensor, classes: Tensor | None) -> tuple[dict[Node, Down], Tensor, Tensor]:
        """The forward pass, which leaves each node's way down; the sink's value; its classes."""
        last = _chain(self.sink)[0]  # where a class is a direction: logits, before they are flat
        order = {node: n for n, node in enumerate(self.nodes)}
        until = dict.fromkeys(self.nodes, 0)  # the place after which nothing needs a value
        for node in self.nodes[1:]:
            until.update({n: order[node] for n in node.all_input_nodes if n in order})
        ready: dict[Node, list[_Step]] = {}
        for step in self.steps.values():
            ready.setdefault(step.joint, []).append(step)
            place = order[step.joint]
            until.update({n: max(until[n], place) for n in step.needs if n in order})
        until[self.sink] = len(order)
        done: dict[int, list[Node]] = {}
        for node, place in until.items():
            done.setdefault(place, []).append(node)
        values, seed = {self.source: x}, x
        downs: dict[Node, Down] = {}
        for place, node in enumerate(self.nodes):
            if place:
                values[node] = self.network.value(node, values, len(x))
            if node is last and self.to_logits:
                flat = values[node].flatten(1)
                chosen = flat.argmax(1) if classes is None else classes
                seed = F.one_hot(chosen, flat.shape[1]).to(flat)
            for step in ready.get(node, ()):
                seeded = node is last and self.to_logits
                v = values[node] * seed.reshape(values[node].shape) if seeded else values[node]
                downs[step.node] = step.rule(self._operation(step, values, v))
            for passed in done.get(place, ()):
                values.pop(passed, None)
        return downs, values[self.sink], seed

    def _operation(self, step: _Step, values: dict[Node, Any], target: Tensor) -> Operation:
        here = {node: values[node] for node in step.needs if node in values}

        def run(nodes: Sequence[Node], known: dict[Node, Any]) -> Tensor:
            known = here | known
            for node in nodes:
                known[node] = evaluate(node, known)
            return known[nodes[-1]] if nodes else next(reversed(known.values()))

        def again(*inputs: Tensor) -> Tensor:
            return run(step.inside, dict(zip(step.inputs, inputs, strict=True)))

        given = dict(fx.node.map_arg(arguments(step.node), here.__getitem__))
        x = tuple(here[n] for n in step.inputs)
        core, *between, _ = [*step.inside, step.node] if len(step.inside) == 1 else step.inside
        if step.rule is _attention:
            pattern, added = here[core.args[0]], torch.zeros_like(x[0])
            if operation(core) == _ATTENTION:  # what it makes of unit vectors are its weights
                unit = torch.eye(x[0].shape[2]).to(x[0]).expand(*x[0].shape[:2], -1, -1)
                pattern = run([core], {step.inputs[0]: unit})
            if step.values:
                first, *rest = step.values
                bias = here[arguments(first)["bias"]]
                added = run(rest, {first: bias.expand(here[first].shape)})
            given |= {"pattern": pattern, "added": added}
            given["moved"] = lambda y: run(between, {core: y})
        channels = tuple(n.meta["channels"] for n in (*step.inputs, step.node))
        fused = core if core is not step.node else None
        return Operation(step.node, given, x, here[step.node], channels, target, again, fused)

    def _down(self, downs: dict[Node, Down], start: Tensor) -> dict[Node, Tensor]:
        """Relevance of the blocks and the source, as (K, N, …) without channels."""
        relevance, kept = {self.sink: start}, {}
        for node in reversed(self.nodes):
            if node not in relevance:
                continue
            here = relevance.pop(node)
            if node is self.source or node in self.stops:
                (channel,) = node.meta["channels"]
                kept[node] = _level(here, (channel,)).squeeze(channel + 1)
            if node is self.source:
                break
            inputs = self.steps[node].inputs
            found = downs[node](here)
            for below, part in zip(inputs, found, strict=True):
                # A convolution that enters the sum shares the sum's relevance by itself.
                joint = below in self.steps and self.steps[below].joint is node
                part = _level(here, node.meta["channels"]) if joint else part
                relevance[below] = _plus(relevance.get(below), part, below.meta["channels"])
        return kept


def _numel(node: Node) -> int:
    return math.prod(node.meta["shape"])


def _chain(node: Node) -> list[Node]:
    """A node and what moved its value, from where that was made on."""
    chain = [node]
    while operation(chain[0]) in MOVES and len(live_inputs(chain[0])) == 1:
        chain.insert(0, live_inputs(chain[0])[0])
    return chain


def _all_pointwise(pool: Node) -> bool:
    """Whether 1×1 convolutions are all that takes what a pool makes."""
    return all(
        operation(user) == "conv2d" and set(Window.of(user)[:2]) == {(1, 1)} for user in pool.users
    )


def _is_pattern(node: Node) -> bool:
    """Whether a node multiplies with what a softmax made, but for moves."""
    return operation(node) == "matmul" and operation(_chain(node.args[0])[0]) == "softmax"


def _no_rule(node: Node) -> NotImplementedError:
    name = operation(node)
    return NotImplementedError(
        f"SRD has no rule for {name} (node {node.name}, in {node.meta['paths'][0] or 'the model'}"
        f'): give it one, such as srd.RULES["{name}"] = srd.hand_on, or ask for rule="gradient"'
    )


# ---------------------------------------------------------------------------- crops and checks


def _crop_edge(edge: int, size: int, step: int) -> int:
    """Pixels of the shortest crop that holds any receptive field of this size and stays in step."""
    shortest = size + step - 1
    return min(edge, shortest + (edge - shortest) % step)


def _corners(
    field: tuple[int, int, int], positions: Tensor, size: list[int], window: list[int]
) -> tuple[Tensor, Tensor]:
    """Upper left corners (M, 2) of the crops, and the positions within them.

    A corner is a multiple of the step, so that every stride falls as in the whole picture, and a
    receptive field that reaches over the picture's edge gets a crop that ends there: padding is
    where it was.
    """
    _, step, start = field
    room = torch.tensor(size) - torch.tensor(window)
    corners = (start + step * positions[:, 0]).clamp(min=0) // step * step
    corners = torch.minimum(corners, room)
    return corners, positions - corners[:, None] // step


def _checked_images(network: Network, images: Tensor, batch_size: int) -> Tensor:
    images = network.checked(images)
    if len(images) == 0:
        raise ValueError("there are no pictures: the first dimension is 0")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return images


def _checked_classes(network: Network, classes: Tensor | Sequence[int], count: int) -> Tensor:
    known = len(network.classes)
    classes = torch.as_tensor(classes, device=network.device)
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise TypeError(f"classes must be integers, got {classes.dtype}")
    if classes.shape != (count,):
        raise ValueError(f"expected a class a picture ({count},), got {tuple(classes.shape)}")
    if ((classes < 0) | (classes >= known)).any():
        raise ValueError(f"classes must lie in 0 … {known - 1}, got {classes.tolist()}")
    return classes.long()


def _checked_positions(
    network: Network, block: str, positions: Tensor, count: int, size: tuple[int, int]
) -> Tensor:
    """Positions as (N, P, 2) or (N, P, 1), on the CPU."""  # noqa: DOC501
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise TypeError(f"positions must be integers, got {positions.dtype}")
    own = network.own_size(block, size)
    dims = len(own)
    if positions.ndim not in (2, 3) or (positions.shape[0], positions.shape[-1]) != (count, dims):
        raise ValueError(
            f"expected positions ({count}, {dims}) or ({count}, P, {dims}), "
            f"{'row and column' if dims == 2 else 'the number'} for each of the {count} pictures, "
            f"got {tuple(positions.shape)}"
        )
    places = positions.cpu().long().reshape(count, -1, dims)
    if ((places < 0) | (places >= torch.tensor(own))).any():
        raise ValueError(f"a position lies outside of {block}'s map of {' × '.join(map(str, own))}")
    return places
