"""Where a traced graph can be cut, how its cut points are named, what a position there sees.

A cut point is a node through which everything flows; a block of section 3.1 is one with a name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .traced import (
    ACTIVATIONS,
    BATCH,
    MOVES,
    Node,
    Window,
    arguments,
    evaluate,
    live_inputs,
    operation,
)

_JOINS = {"cat", "slice_scatter", "select_scatter"}
_MIXES = {"matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "sort"}


def cut_points(live: Sequence[Node]) -> list[Node]:
    """Nodes after which no value made before them is needed, in order; not in the paper.

    Parameters
    ----------
    live
        The nodes whose values come of the pictures, as :func:`gig_helpers.traced.trace` gives them.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> nodes = trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()), (9, 9))[1]
    >>> cut_points(nodes)
    [conv2d, relu]
    """
    place = {node: n for n, node in enumerate(live)}
    cuts, reach = [], 0
    for n, node in enumerate(live[:-1]):
        if n and reach <= n and node.meta["cut"]:
            cuts.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return cuts


def named_blocks(
    live: Sequence[Node], names: Sequence[str] | None = None,
    placed: Mapping[Node, tuple[int, int]] | None = None,
) -> dict[str, Node]:  # fmt: skip
    """A network's blocks (section 3.1), in its order: the cut points of these names.

    Parameters
    ----------
    names
        Of modules or nodes, as :func:`cut_named` takes them; by default :func:`default_blocks`.
    placed
        As :func:`places` finds them.

    Raises
    ------
    KeyError
        If a name is no cut point.
    ValueError
        If none are named, and no cut point has positions.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()
    >>> named_blocks(trace(nn.Sequential(*layers), (9, 9))[1], ["3", "1"])
    {'1': conv2d, '3': conv2d_1}
    """
    cuts = cut_points(live)
    if names is None:
        named = default_blocks(cuts, placed or {})
    else:
        named = {n: cut_named(n, live, cuts) for n in names}
    return dict(sorted(named.items(), key=lambda item: cuts.index(item[1])))


def default_blocks(
    cuts: Sequence[Node], placed: Mapping[Node, tuple[int, int]]
) -> dict[str, Node]:  # fmt: skip
    """The cut points that are blocks where nobody names any; not in the paper.

    The sums at the ends of residual blocks, and behind these the ends of stages that have none;
    without sums, the ends of all stages, before their activation. Vectors, logits among them, are
    no blocks, and positions that lie in the picture (``placed``) come before others.

    Raises
    ------
    ValueError
        If no cut point has positions but what a pool makes; the message lists those that there are.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.Flatten()
    >>> default_blocks(cut_points(trace(nn.Sequential(*layers), (17, 17))[1]), {})
    {'0': conv2d, '3': conv2d_1}
    """
    spread = [n for n in cuts if own_size(n)]
    spread = [n for n in spread if n in placed] or spread
    sums = [n for n in spread if operation(n) == "add" and len(live_inputs(n)) > 1]
    sizes = {n: placed.get(n, own_size(n)) for n in spread}
    ends = {sizes[n]: n for n in spread if operation(n) not in ACTIVATIONS | MOVES}
    maps = [n for size, n in ends.items() if math.prod(size) > 1 and "pool" not in operation(n)]
    # The last sum of each module; sums that no module holds go by their own names.
    by_module = {name(n): n for n in sums}
    if len(by_module) > 1:
        behind = spread[spread.index(sums[0]) :]
        summed = {sizes[n] for n in sums}
        return by_module | {name(n): n for n in maps if n in behind and sizes[n] not in summed}
    if not maps:
        some = ", ".join(dict.fromkeys(map(name, cuts[:40])))
        raise ValueError(
            "no map and no tokens that all flows through: name the blocks yourself, as in "
            f"Network(model, blocks=[…]), out of {some or 'none, for there is no cut point at all'}"
        )
    return {name(n): n for n in maps}


def cut_named(wanted: str, live: Sequence[Node], cuts: Sequence[Node]) -> Node:
    """The cut point that goes by the name of a node, or ends a module; not in the paper.

    Raises
    ------
    KeyError
        If there is none; the message lists those that there are.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> nodes = trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()), (9, 9))[1]
    >>> cut_named("1", nodes, cut_points(nodes))  # what the ReLU takes
    conv2d
    """
    by_node = [n for n in cuts if n.name == wanted]
    inside = [n for n in live if any(f"{p}.".startswith(f"{wanted}.") for p in n.meta["paths"])]
    for node in by_node or inside[-1:]:
        while operation(node) in ACTIVATIONS and node.all_input_nodes[0] in cuts:
            node = node.all_input_nodes[0]
        if node in cuts:
            return node
    some = ", ".join(dict.fromkeys(map(name, cuts[:40])))
    what = "is no cut point: not all flows through it" if inside else "is no part of the model"
    raise KeyError(f"{wanted!r} {what}; choose from its cut points: {some}")


def name(node: Node) -> str:
    """The module that a node stands in, else the node's own name; not in the paper.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> [name(node) for node in trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), (9, 9))[1]]
    ['x', '0', '1']
    """
    return node.meta["paths"][0] or node.name


def own_size(node: Node, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """Sizes of a shape but for pictures and channels: of (N, C, H, W) (H, W), of (N, P, C) (P,).

    Parameters
    ----------
    shape
        Of a value of the node; by default of the traced one.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> conv = trace(nn.Sequential(nn.Conv2d(3, 2, 3)), (9, 9))[1][1]
    >>> own_size(conv), own_size(conv, (1, 2, 5, 4))
    ((7, 7), (5, 4))
    """
    sizes = enumerate(shape or node.meta["shape"])
    return tuple(size for dim, size in sizes if dim not in (0, *node.meta["channels"]))


def receptive_field(nodes: Sequence[Node]) -> tuple[int, int, int] | None:
    """Theoretical receptive field of the last node's positions (section 3.1): size, step, start.

    Parameters
    ----------
    nodes
        All that lead to it, the pictures first, in order.

    Returns
    -------
    tuple or None
        Pixels, as :meth:`gig_helpers.network.Network.receptive_field` explains.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Conv2d(2, 4, 3), nn.Flatten()
    >>> nodes = trace(nn.Sequential(*layers), (9, 9))[1]
    >>> receptive_field(nodes[:2]), receptive_field(nodes[:3]), receptive_field(nodes)
    ((3, 2, -1), (7, 2, -1), None)
    """
    seen: dict[Node, tuple[int, int, int]] = {nodes[0]: (1, 1, 0)}
    for node in nodes[1:]:
        below = [seen[n] for n in node.all_input_nodes if n in seen]
        if not below:
            continue
        kind, (size, step, start) = operation(node), below[0]
        if kind in ("conv2d", "max_pool2d", "avg_pool2d"):
            window = Window.of(node)
            kernel, stride, padding, dilation = (rows for rows, _ in window)
            size, start = size + (kernel - 1) * dilation * step, start - padding * step
            step *= stride
            alike = all(rows == columns for rows, columns in window)
        else:
            start = min(first for *_, first in below)
            size = max(first + width for width, _, first in below) - start
            alike = len({step for _, step, _ in below}) == 1 and (
                kind in (*ACTIVATIONS, "batch_norm", "add", "clone", "contiguous")
                or (kind == "cat" and arguments(node)["dim"] == 1)
            )
        if not alike:
            return None
        seen[node] = size, step, start
    return seen[nodes[-1]]


def places(program: fx.GraphModule) -> dict[Node, tuple[int, int]]:
    """Rows and columns of each value whose positions are the picture's, row by row.

    Every position is numbered by its place in a map, and the numbers go where the values go.
    Behind attention, which mixes positions, they are the shortcut's. Positions without a place,
    class tokens, may come first; of a value with other positions nothing is known.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 2, 2), nn.Flatten(2), nn.Linear(20, 20), nn.Flatten()
    >>> places(trace(nn.Sequential(*layers), (8, 10))[0])
    {x: (8, 10), conv2d: (4, 5), flatten: (4, 5)}
    """
    known: dict[Node, Any] = {}
    at: dict[Node, tuple[Tensor, tuple[int, int]]] = {}
    found: dict[Node, tuple[int, int]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            known[node] = program.get_buffer(node.target).cpu()
        elif operation(node) == "sym_size":
            known[node] = BATCH
        elif node.op == "call_function" and "shape" not in node.meta:
            value = evaluate(node, known)
            known[node] = value.cpu() if isinstance(value, Tensor) else value
        elif node.op != "output" and (here := _numbers(node, at, known, found)) is not None:
            at[node] = here
            if size := _grid(node, *here):
                found[node] = size
    return found


def _numbers(
    node: Node, at: Mapping[Node, tuple[Tensor, tuple[int, int]]], known: Mapping[Node, Any],
    found: Mapping[Node, tuple[int, int]],
) -> tuple[Tensor, tuple[int, int]] | None:  # fmt: skip
    """For each number in a node's value its place in a map, from 1 on, or 0; and the map's size."""
    name, shape, inputs = operation(node), node.meta["shape"], live_inputs(node)
    moves = name in MOVES or name in _JOINS
    window = name.startswith(("conv", "upsample")) or "pool2d" in name
    if not inputs or window:
        fits = len(shape) == 4 and node.meta["channels"] == (1,) and shape[0] == BATCH
        if not fits or any(_unpadded(n) not in found for n in inputs):
            return None
        numbers = torch.arange(1.0, math.prod(shape[2:]) + 1)
        return numbers.reshape(shape[2:]).expand(shape), shape[2:]
    told = [at[n] for n in inputs if n in at and (moves or at[n][0].shape == shape)]
    if name == "linear" and inputs[0] in at:
        numbers, size = at[inputs[0]]
        alike = bool((numbers == numbers[..., :1]).all())
        return (numbers[..., :1].expand(shape), size) if alike else None
    if not told or name in _MIXES or any(size != told[0][1] for _, size in told):
        return None
    if moves:
        if len(told) < len(inputs):
            return None
        values: dict[Node, Any] = {n: at[n][0] for n in inputs}
        for n in node.all_input_nodes:
            if n not in values:
                other = name in _JOINS and isinstance(known[n], Tensor)
                values[n] = torch.zeros(known[n].shape) if other else known[n]
        return _renumbered(node, evaluate(node, values), told[0][1])
    return told[0] if all(torch.equal(numbers, told[0][0]) for numbers, _ in told) else None


def _unpadded(node: Node) -> Node:
    """What a padding pads, whose places a window behind it sees in order."""
    while operation(node) in ("pad", "constant_pad_nd"):
        (node,) = live_inputs(node)
    return node


def _renumbered(
    node: Node, numbers: Tensor, size: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]] | None:
    """Where places have been joined, as in patches, each joint one is a place of a smaller map."""
    if len(node.meta["channels"]) != 1 or numbers.shape[0] != BATCH:
        return numbers, size
    (channel,) = node.meta["channels"]
    rows = numbers.movedim(channel, -1)
    if (rows == rows[..., :1]).all():
        return numbers, size
    real = rows > 0
    whole = torch.stack([(rows - 1).div(size[1], rounding_mode="floor"), (rows - 1) % size[1]])
    means = (whole * real).sum(-1) / real.sum(-1).clamp(min=1)
    at, none = means[:, 0].reshape(2, -1), ~real.any(-1)[0].flatten()
    smaller = _rows_and_columns(at[:, ~none], size)
    if smaller is None:
        return None
    fresh = torch.zeros(at.shape[1])
    fresh[~none] = torch.arange(1.0, math.prod(smaller) + 1)
    fresh = fresh.reshape(rows.shape[1:-1])[None, ..., None].expand(rows.shape)
    return fresh.movedim(-1, channel), smaller


def _grid(node: Node, numbers: Tensor, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of a value's positions, if they are those of a map, row by row."""
    if len(node.meta["channels"]) != 1 or numbers.shape[0] != BATCH:
        return None
    rows = numbers[0].movedim(node.meta["channels"][0] - 1, -1)
    if rows.shape[-1] == 0 or not (rows == rows[..., :1]).all():
        return None
    flat, own = rows[..., 0].flatten(), own_size(node)
    real = flat[int((flat == 0).sum()) :] - 1  # class tokens come first, or nothing is known
    at = torch.stack([real.div(size[1], rounding_mode="floor"), real % size[1]])
    found = _rows_and_columns(at, size) if (real >= 0).all() else None
    return found if len(own) < 2 or own == found else None


def _rows_and_columns(at: Tensor, size: tuple[int, int]) -> tuple[int, int] | None:
    """Of places (2, P) in a map of this size, if they are spread over all of it, row by row."""
    down, across = (values.unique() for values in at)
    grid = torch.cartesian_prod(down, across).T
    if at.shape[1] == 0 or grid.shape != at.shape or not torch.allclose(grid, at):
        return None
    for values, length in ((down, size[0]), (across, size[1])):
        step = (values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else length
        if values[0] >= step or length - 1 - values[-1] >= step:
            return None
    return len(down), len(across)
