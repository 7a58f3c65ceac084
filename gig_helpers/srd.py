"""Sharing Ratio Decomposition (Han et al., ICLR 2024): contributions and iERFs, exact and batched.

A PFV v_j is a sum of parts v̂_{i→j}, one for each position i of the layer below. Position i's share
of it is the sharing ratio μ_{i→j} = ⟨v̂_{i→j}, v_j⟩ / ‖v_j‖², so that Σ_i μ_{i→j} = 1. Relevance
goes down by R_i = Σ_j μ_{i→j} R_j.

The traced graph is gone down operation by operation, with a rule for each kind
(:mod:`gig_helpers.rules`). A class token, which no picture made, is a shift for all positions that
it is put beside.

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
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from . import rules
from .cuts import own_size
from .network import Network, exact_convolutions
from .rules import RULES, Down, Operation, Rule, level, plus
from .traced import (
    MOVES,
    Node,
    Window,
    arguments,
    evaluate,
    is_pattern,
    live_inputs,
    operation,
)  # fmt: skip
from .windows import crop_corners, crop_edge

_TOLERANCE = 0.01
"""How far off its logit, of which it is a share, relevance may sum without a warning."""

PIXELS = "pixels"
"""Name of the lowest level in :func:`contributions`, below every block."""

Missing = Literal["error", "gradient"]

_ATTENTION = "scaled_dot_product_attention"
_SHARED = {"div": 0, _ATTENTION: 2}
"""The argument that relevance goes to, where the others are held constant."""


@torch.no_grad()
@exact_convolutions()
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
        One class per picture (N,); by default the predicted one.
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
        what ends in vectors that are zero; a warning tells where that is more than 1 %.

    Raises
    ------
    KeyError
        If a block is unknown.
    ValueError
        If the pictures do not have the shape (N, 3, H, W) or hold NaN, if there are none, if there
        is not one class per picture, if a class does not exist, or if ``batch_size`` is below 1.
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
    nodes = {PIXELS: network.nodes(None, None)[0]} | {b: network.node(b) for b in network.blocks}
    wanted = set(network.blocks if blocks is None else blocks)
    for name in wanted - {PIXELS}:
        network.index(name)
    maps: dict[str, list[Tensor]] = {name: [] for name in nodes if name in wanted}
    if not maps:
        return {}
    lowest = next(iter(maps))
    images = _checked_images(network, images, batch_size)
    if classes is not None:
        classes = _checked_classes(network, classes, len(images))
    sweep = _Sweep(network, nodes[lowest], None, rule)
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].contiguous(memory_format=torch.channels_last)
        if lowest != PIXELS:
            x = network.preactivations(x, [lowest])[lowest]
        chosen = None if classes is None else classes[start : start + batch_size]
        relevance, logits = sweep.logits(x, chosen)
        for name, parts in maps.items():
            parts.append(relevance[nodes[name]][0])
        _check_sums(maps[lowest][-1], logits, lowest, start)
    return {name: torch.cat(parts) for name, parts in maps.items()}


@torch.no_grad()
@exact_convolutions()
def ierf(
    network: Network, images: Tensor, block: str, positions: Tensor, batch_size: int = 8,
    rule: Missing = "error", direction: Tensor | None = None,
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
        Integers (N, 2), row and column of one PFV per picture; or (N, P, 2), P of them. Of tokens,
        their numbers, (N, 1) or (N, P, 1).
    batch_size
        Pictures worked on at a time. It bounds the memory, and changes nothing else.
    rule
        As in :func:`contributions`.
    direction
        Of one latent, such as a row (C,) of a sparse autoencoder's encoder: what the pixels bring
        to the vector along it, ⟨v̂_i, d⟩/⟨v, d⟩, in place of ⟨v̂_i, v⟩/‖v‖². The block's own
        operation is asked so; where this is a residual sum, its branches. Not in the paper.

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
        a position lies outside of the block's map, a direction does not have the block's
        channels, or ``batch_size`` is below 1.
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

    if direction is not None and direction.shape != (network.channels(block),):
        raise ValueError(
            f"expected a direction ({network.channels(block)},), got {tuple(direction.shape)}"
        )
    field = network.receptive_field(block)
    window = size if field is None else [crop_edge(edge, *field[:2]) for edge in size]
    if field is not None and per_image * window[0] * window[1] < size[0] * size[1]:
        # One crop per PFV; as many at a time as have the area of batch_size pictures.
        owner = [i for i in range(count) for _ in range(per_image)]
        corners, places = crop_corners(field, places.reshape(-1, 1, 2), size, window)
        batch_size = batch_size * size[0] * size[1] // (window[0] * window[1])
    else:
        owner, corners, window = list(range(count)), places.new_zeros(count, 2), size

    sweep = _Sweep(network, None, network.node(block), rule)
    fields = images.new_zeros(len(owner), places.shape[1], *size)
    for start in range(0, len(owner), batch_size):
        here = slice(start, start + batch_size)
        views = [
            (..., slice(top, top + window[0]), slice(left, left + window[1]))
            for top, left in corners[here].tolist()
        ]
        chunk = torch.stack([images[i][v] for i, v in zip(owner[here], views, strict=True)])
        x = chunk.contiguous(memory_format=torch.channels_last)
        relevance = sweep.positions(x, places[here], direction)[sweep.source]
        for index, view in enumerate(views):
            fields[start + index][view] = relevance[:, index]
    return fields.reshape(count, per_image, *size).reshape(*positions.shape[:-1], *size)


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
        name = operation(node)
        # A value that only tells a shape takes no part, and what weighs or divides is a constant.
        inputs = live_inputs(node)[: 1 if name.endswith("_as") else None]
        if name in _SHARED and node.args[_SHARED[name]] in inputs:
            inputs = [node.args[_SHARED[name]]]
        rule = RULES.get(name, rules.gradient if self.missing == "gradient" else rules.share)
        if rule in (rules.gate, rules.share):
            inputs = [n for n in inputs if not is_pattern(n)] or inputs
        step = _Step(node, rule, inputs, [node], node)
        chain = _chain(step.inputs[0])
        below, kind = chain[0], operation(chain[0])
        alone = all(len(n.users) == 1 for n in chain)
        if rule is rules.gate:
            most = max(map(_numel, step.inputs))
            step.inputs = [n for n in step.inputs if _numel(n) == most]
        elif rule is rules.linear and alone and kind in ("mean", "adaptive_avg_pool2d"):
            if math.prod(own_size(below)) == 1:
                step.rule, step.inputs = rules.mean_of_linear, live_inputs(below)
                step.inside = [*chain, node]
        elif rule is rules.linear and alone and (value := _attended(below)):
            step.rule, step.inputs, step.inside = rules.attention, [value], [*chain, node]
            values = _chain(value)
            if operation(values[0]) == "linear" and arguments(values[0])["bias"]:
                step.values = values
        elif rule is rules.conv:
            pooled = kind == "max_pool2d" and _all_pointwise(below)
            if pooled:
                step.inputs, step.inside = live_inputs(below), [below, node]
            (user, *others) = node.users
            parts = live_inputs(user)
            enters = operation(user) == "add" or (operation(user) == "sub" and user.args[0] is node)
            enters = enters and arguments(user)["alpha"] == 1
            alike = len(parts) == 2 and parts[0].meta["shape"] == parts[1].meta["shape"]
            if enters and alike and not others and user in self.nodes:
                if pooled or Window.of(node).kernel != (1, 1):
                    step.joint = user
        return step

    def logits(self, x: Tensor, classes: Tensor | None) -> tuple[dict[Node, Tensor], Tensor]:
        """Relevance (1, N, …) of blocks and the source for one class per picture; the logits."""
        downs, y, chosen = self._up(x, classes)
        return self._down(downs, (y * chosen)[None]), (y * chosen).flatten(1).sum(1)

    def positions(self, x: Tensor, places: Tensor, direction: Tensor | None) -> dict[Node, Tensor]:
        """Relevance (P, N, …) of the source for positions (N, P, dims) of the sink."""
        downs, y, _ = self._up(x, None, direction)
        (channel,) = self.sink.meta["channels"]
        own = [s for d, s in enumerate(y.shape) if d not in (0, channel)]
        start = y.new_zeros(places.shape[1], len(y), *own)
        n, p = torch.arange(len(y))[:, None], torch.arange(places.shape[1])
        start[(p, n, *places.unbind(-1))] = 1
        return self._down(downs, start.unsqueeze(channel + 1))

    def _up(
        self, x: Tensor, classes: Tensor | None, direction: Tensor | None = None
    ) -> tuple[dict[Node, Down], Tensor, Tensor]:
        """The forward pass, which leaves each node's way down; the sink's value; its classes."""
        last = _chain(self.sink)[0]  # where a class is a direction: logits, before they are flat
        order = {node: n for n, node in enumerate(self.nodes)}
        until = {self.sink: len(order)}  # the place after which nothing needs a value
        for node in self.nodes[1:]:
            until |= dict.fromkeys(node.all_input_nodes, order[node])
        ready: dict[Node, list[_Step]] = {}
        for step in self.steps.values():
            ready.setdefault(step.joint, []).append(step)
            until |= {n: max(until.get(n, 0), order[step.joint]) for n in step.needs}
        values, seed = {self.source: x}, x
        downs: dict[Node, Down] = {}
        for place, node in enumerate(self.nodes):
            if place:
                values[node] = self.network.value(node, values, len(x))
            v = values[node]
            if node is last and self.to_logits:
                flat = v.flatten(1)
                chosen = flat.argmax(1) if classes is None else classes
                seed = F.one_hot(chosen, flat.shape[1]).to(flat)
                v = v * seed.reshape(v.shape)
            elif node is self.sink and direction is not None:  # its part of the vector
                (channel,), unit = node.meta["channels"], F.normalize(direction.to(v), dim=0)
                v = ((v.movedim(channel, -1) @ unit)[..., None] * unit).movedim(-1, channel)
            for step in ready.get(node, ()):
                downs[step.node] = step.rule(self._operation(step, values, v))
            values = {n: value for n, value in values.items() if until.get(n, 0) > place}
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
        if step.rule is rules.attention:
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
        relevance = {self.sink: start}
        for node, step in self.steps.items():
            here = relevance[node] if node in self.stops else relevance.pop(node)
            for below, part in zip(step.inputs, downs[node](here), strict=True):
                # A convolution that enters the sum shares the sum's relevance by itself.
                joint = below in self.steps and self.steps[below].joint is node
                part = level(here, node.meta["channels"]) if joint else part
                relevance[below] = plus(relevance.get(below), part, below.meta["channels"])
        channels = {node: node.meta["channels"] for node in relevance}
        return {n: level(r, channels[n]).squeeze(channels[n][0] + 1) for n, r in relevance.items()}


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


def _attended(node: Node) -> Node | None:
    """The values (N, heads, P, d) that a node weighs by a softmax's pattern, if it is attention."""
    if operation(node) not in ("matmul", _ATTENTION):
        return None
    value, pattern = node.args[-1 if operation(node) == "matmul" else 2], node.args[0]
    fits = value in live_inputs(node) and value.meta["channels"] == node.meta["channels"] == (1, 3)
    known = operation(node) == _ATTENTION or is_pattern(pattern)
    return value if fits and known and len(node.meta["shape"]) == 4 else None


# ---------------------------------------------------------------------------- checks


def _check_sums(maps: Tensor, logits: Tensor, level: str, first: int) -> None:
    """Warn where relevance (N, …) is no share of the logit, by more than float32's rounding."""
    total, size = maps.flatten(1).sum(1), maps.flatten(1).abs().sum(1)
    off = (total - logits).abs()
    wrong = (off > torch.maximum(_TOLERANCE * logits.abs(), 1e-4 * size)).nonzero().flatten()
    if len(wrong):
        n = int(wrong[0])
        warnings.warn(
            f"SRD's relevance at {level} sums to {total[n]:.4g} where the logit is "
            f"{logits[n]:.4g}, in {len(wrong)} of {len(maps)} pictures, first number {first + n}: "
            "its shares are no parts of the logit; a vector that is zero passes none on, and "
            'rule="gradient" does not add up',
            stacklevel=5,
        )


def _checked_images(network: Network, images: Tensor, batch_size: int) -> Tensor:
    images = network.checked(images)
    if len(images) == 0:
        raise ValueError("there are no pictures: the first dimension is 0")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return images


def _checked_classes(network: Network, classes: Tensor | Sequence[int], count: int) -> Tensor:
    known = len(network.classes)
    classes = torch.as_tensor(classes)
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
