"""Where a traced graph can be cut, how its cut points are named, what a position there sees.

A cut point is a node through which everything flows; a block of section 3.1 is one with a name.
"""

import math
from collections.abc import Sequence

from .traced import ACTIVATIONS, MOVES, Node, Window, arguments, live_inputs, operation


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


def named_blocks(live: Sequence[Node], names: Sequence[str] | None = None) -> dict[str, Node]:
    """A network's blocks (section 3.1), in its order: the cut points of these names.

    Parameters
    ----------
    names
        Of modules or nodes, as :func:`cut_named` takes them; by default :func:`default_blocks`.

    Raises
    ------
    KeyError
        If a name is no cut point.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()
    >>> named_blocks(trace(nn.Sequential(*layers), (9, 9))[1], ["3", "1"])
    {'1': conv2d, '3': conv2d_1}
    """
    cuts = cut_points(live)
    named = default_blocks(cuts) if names is None else {n: cut_named(n, live, cuts) for n in names}
    return dict(sorted(named.items(), key=lambda item: cuts.index(item[1])))


def default_blocks(cuts: Sequence[Node]) -> dict[str, Node]:
    """The cut points that are blocks where nobody names any; not in the paper.

    The sums at the ends of residual blocks, else the ends of stages, before their activation.

    Examples
    --------
    >>> from torch import nn
    >>> from gig_helpers.traced import trace
    >>> layers = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.Flatten()
    >>> default_blocks(cut_points(trace(nn.Sequential(*layers), (17, 17))[1]))
    {'0': conv2d, '3': conv2d_1}
    """
    sums = [n for n in cuts if operation(n) == "add" and len(live_inputs(n)) > 1]
    # The last sum of each module; sums that no module holds go by their own names.
    by_module = {name(n): n for n in sums}
    if len(by_module) > 1:
        return by_module
    ends = {own_size(n): n for n in cuts if operation(n) not in ACTIVATIONS | MOVES}
    maps = [n for size, n in ends.items() if math.prod(size) > 1 and "pool" not in operation(n)]
    return {name(n): n for n in maps or cuts[-1:]}


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
