"""SRD's rules: how relevance goes down an operation, one rule for each kind of operation.

What works on each position alone hands relevance on. What moves values, such as a reshape, moves
relevance. What joins splits it: in a residual sum the target v is the sum, whose parts are what the
branches bring. What mixes positions shares it, with the sum that it enters for its target, if there
is one, and else its own output. What is added at every position alike, as a batch norm's shift b,
is shared in proportion to the norm of what each position brings; padding brings nothing; 0/0 is 0.
One rule, :func:`share`, is for all that is linear and has none of its own: it asks the operation's
vector-Jacobian product what each position brings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .traced import ACTIVATIONS, MOVES, Node, Window, arguments, pair
from .traced import operation as _name
from .windows import (
    compressed,
    length,
    offset_parts,
    offsets,
    pool_parts,
    quotient,
    seen_at,
    sharing_ratios,
    squared,
)

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

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 2.0]])
    >>> relu = Operation(None, {}, (x,), x.relu(), ((1,), (1,)), x.relu(), torch.relu)
    >>> RULES["relu"](relu)(torch.ones(1, 1, 1))  # handed on
    [tensor([[[1.]]])]
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
"""Rules by the name of an operation (:func:`gig_helpers.traced.operation`); add your own."""


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
    fused: dict[str, Rule] = {
        "mean and linear": mean_of_linear, "attention and linear": attention,
        "linear along positions": mixer, "whatever else is linear or a product": share,
    }  # fmt: skip
    for name, make in (RULES | fused).items():
        rows.setdefault((make.__doc__ or "").split("\n")[0], []).append(name)
    return [(rule, ", ".join(names)) for rule, names in rows.items()]


@_rule(
    *sorted(ACTIVATIONS), "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm",
    "softmax", "clamp", "to", "type_as", "neg", "abs", "sqrt", "rsqrt", "pow", "exp", "log",
    "square",
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
def linear(operation: Operation) -> Down:
    """R_i = R_i: each position alone, unless it mixes them.

    Examples
    --------
    >>> x = torch.ones(1, 2, 3)  # two tokens
    >>> linear(Operation(None, {}, (x,), x, ((2,), (2,)), x, None))(torch.ones(1, 1, 2, 3))
    [tensor([[[[3.],
              [3.]]]])]
    """
    if operation.inputs[0].ndim - 1 not in operation.channels[0]:
        return mixer(operation)
    return lambda relevance: [level(relevance, operation.channels[-1])]


@_rule("mul", "div", "addcmul")
def gate(operation: Operation) -> Down:
    """R_i = R_i for what is gated: smaller factors, divisors held constant; equal ones take half.

    Examples
    --------
    >>> x = torch.ones(1, 2)
    >>> two = Operation(None, {}, (x, x), x, ((1,), (1,), (1,)), x, None)
    >>> gate(two)(torch.ones(1, 1, 1))
    [tensor([[[0.5000]]]), tensor([[[0.5000]]])]
    """
    count, single = len(operation.inputs), _single(operation)
    return lambda relevance: [level(relevance / count, dims) for dims in single]


@_rule(*sorted(MOVES))
def _move(operation: Operation) -> Down:
    """R goes back where values came from, in vectors as squares lie; padding's by norm to all."""
    pull = _pull(operation.again, *operation.inputs)
    square, channels = operation.output.square(), operation.channels[-1]
    whole = squared(operation.output, channels)
    even = 1 / max(square.numel() // max(whole.numel(), 1), 1)
    share = torch.where(whole == 0, even, square / whole)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        relevance = relevance if relevance.shape[1:] == share.shape else relevance * share
        parts = pull(relevance)
        if not operation.node or "pad" not in _name(operation.node):
            return parts
        return _with_rest(parts, relevance, operation)

    return down


@_rule("add", "sub")
def _sum(operation: Operation) -> Down:
    """μ = ⟨x, v⟩/‖v‖² for each branch x of the sum v; a constant takes nothing."""
    if len(operation.inputs) == 1:
        return hand_on(operation)
    v, channels = operation.target, operation.channels[-1]
    square = squared(v, channels)
    subtracted = operation.node.target is torch.ops.aten.sub.Tensor
    factors = 1, operation.given["alpha"] * (-1 if subtracted else 1)
    along = [level((part * v)[None], channels)[0] for part in operation.inputs]
    ratios = [quotient(f * each, square) for f, each in zip(factors, along, strict=True)]
    single = _single(operation)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        relevance = level(relevance, channels)
        return [level(relevance * r, dims) for r, dims in zip(ratios, single, strict=True)]

    return down


@_rule("cat")
def _cat(operation: Operation) -> Down:
    """μ = ‖x‖²/‖v‖² for each part x of the joined v; constant tokens are shared by norm."""
    channels, x = operation.channels[-1], operation.inputs
    dim, parts = operation.given["dim"] % x[0].ndim, operation.given["tensors"]
    if dim in channels:
        whole = squared(operation.target, channels)
        ratios = [quotient(squared(part, channels), whole) for part in x]
        return lambda relevance: [level(relevance, channels) * ratio for ratio in ratios]
    mine = [n for n, part in enumerate(parts) if any(part is own for own in x)]
    norms = [length(part, channels) for part in x]
    sizes = [part.shape[dim] for part in parts]
    places = [d for d in range(1, x[0].ndim) if d not in channels]
    total: Any = sum(each.sum(places, keepdim=True) for each in norms)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        pieces = level(relevance, channels).split(sizes, dim + 1)
        above = [d + 1 for d in places]
        lost = sum(p.sum(above, keepdim=True) for n, p in enumerate(pieces) if n not in mine)
        kept = zip((pieces[n] for n in mine), norms, strict=True)
        return [piece + lost * quotient(norm, total) for piece, norm in kept]

    return down


@_rule(
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum", "matmul",
    "scaled_dot_product_attention",
)  # fmt: skip
def share(operation: Operation) -> Down:
    """μ_i = ⟨v̂_i, v⟩/‖v‖², v̂_i what position i brings to v, the same of each factor of a product.

    What is added, such as a bias, is shared by the norm of all that comes in.

    Raises
    ------
    NotImplementedError
        If the operation is no sum of what its positions bring: the gradient says so.

    Examples
    --------
    The mean of two positions, of which the second holds three times the first.

    >>> x = torch.tensor([[[[1.0, 3.0]]]])
    >>> mean = lambda x: x.mean(3, keepdim=True)
    >>> pooled = Operation(None, {}, (x,), mean(x), ((1,), (1,)), mean(x), mean)
    >>> share(pooled)(torch.ones(1, 1, 1, 1, 1))[0].flatten()
    tensor([0.2500, 0.7500])
    """
    x, v = operation.inputs, operation.target
    added = operation.again(*map(torch.zeros_like, x))
    wanted = ((v - added) * v).sum()
    found = sum(
        (a * b[0]).sum() for a, b in zip(x, _pull(operation.again, *x)(v[None]), strict=True)
    )
    degree = max(1, min(len(x), round(float(quotient(found, wanted)))))
    if not (found - degree * wanted).abs() <= 1e-3 * (v.square().sum() + added.square().sum()):
        raise NotImplementedError(_no_rule(operation))
    parts = gradient(operation)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        brought = [part / degree for part in parts(relevance)]
        return _with_rest(brought, relevance, operation) if added.any() else brought

    return down


def gradient(operation: Operation) -> Down:
    """μ_i = ⟨v̂_i, v⟩/‖v‖², v̂_i the linearised operation of position i; its sum may not be 1.

    Examples
    --------
    >>> x, square = torch.tensor([[3.0]]), torch.square
    >>> made = Operation(None, {}, (x,), square(x), ((1,), (1,)), square(x), square)
    >>> gradient(made)(torch.ones(1, 1, 1))  # 3 · 6 of 9
    [tensor([[[2.]]])]
    """
    v, channels = operation.target, operation.channels
    unit = quotient(v, squared(v, channels[-1]))
    pull = _pull(operation.again, *operation.inputs)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        found = pull(level(relevance, channels[-1]) * unit)
        parts = zip(operation.inputs, found, channels, strict=False)
        return [level(x * part, own) for x, part, own in parts]

    return down


def mixer(operation: Operation) -> Down:
    """μ_i = (W_ji ⟨x_i, v_j⟩ + ⟨b_j, v_j⟩ · ‖W_ji x_i‖/Σ‖W_ji x_i‖)/‖v_j‖², W along positions.

    Examples
    --------
    Two positions in one, of which the second holds three times the first; of 8 the bias is 4.

    >>> given = {"weight": torch.ones(1, 2), "bias": torch.tensor([4.0])}
    >>> x, v = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[8.0]]])
    >>> mixer(Operation(None, given, (x,), v, ((1,), (1,)), v, None))(torch.ones(1, 1, 1, 1))
    [tensor([[[[0.2500, 0.7500]]]])]
    """
    weight, bias, (channels, _) = (
        operation.given["weight"],
        operation.given["bias"],
        operation.channels,
    )
    (channel,) = channels
    x, v = (t.movedim(channel, -2) for t in (operation.inputs[0], operation.target))
    ratios = weight * (v.mT @ x)
    if bias is not None:
        norm = weight.abs() * torch.linalg.vector_norm(x, dim=-2, keepdim=True)
        shift = (bias * v.sum(-2))[..., None]
        ratios = ratios + shift * quotient(norm, norm.sum(-1, keepdim=True))
    ratios = quotient(ratios, v.square().sum(-2)[..., None])

    def down(relevance: Tensor) -> Sequence[Tensor]:
        here = level(relevance, channels).movedim(channel + 1, -2)
        return [(here @ ratios).movedim(-2, channel + 1)]

    return down


def mean_of_linear(operation: Operation) -> Down:
    """μ_i = ⟨W x_i + b, v⟩/(P ‖v‖²), v the mean of what a linear layer makes of P positions.

    Examples
    --------
    A weight of 1 and a bias of 2: the two positions bring 1 + 2 and 3 + 2 of 8.

    >>> x = torch.tensor([[[[1.0, 3.0]]]])
    >>> head = lambda x: x.mean((2, 3)) + 2
    >>> logit = Operation(None, {}, (x,), head(x), ((1,), (1,)), head(x), head)
    >>> mean_of_linear(logit)(torch.ones(1, 1, 1))[0].flatten()
    tensor([0.3750, 0.6250])
    """
    parts = gradient(operation)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        (found,) = parts(relevance)
        rest = relevance.flatten(2).sum(2) - found.flatten(2).sum(2)  # the bias's
        count = found[0, 0].numel()
        return [found + rest.reshape(*rest.shape, *[1] * (found.ndim - 2)) / count]

    return down


@_rule("conv2d")
def conv(operation: Operation) -> Down:
    """μ_i = (⟨W_i x_i, v⟩ + ⟨b, v⟩ · ‖W_i x_i‖/Σ‖W_i x_i‖)/‖v‖² for each offset i of the kernel.

    Examples
    --------
    A kernel of two ones over two positions, of which the second holds three times the first.

    >>> from .traced import trace
    >>> _, node = trace(torch.nn.Conv2d(1, 1, (1, 2)), (1, 1, 2))[1]
    >>> given = {"weight": torch.ones(1, 1, 1, 2), "bias": None, "groups": 1}
    >>> x, v = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0]]]])
    >>> made = Operation(node, given, (x,), v, ((1,), (1,)), v, None)
    >>> conv(made)(torch.ones(1, 1, 1, 1, 1))[0].flatten()
    tensor([0.2500, 0.7500])
    """
    given, (x,), v = operation.given, operation.inputs, operation.target
    weight, groups = given["weight"], given["groups"]
    window = given.get("window") or Window.of(operation.node)
    if operation.fused is None and window.kernel == (1, 1):
        seen = x[..., :: window.stride[0], :: window.stride[1]]
        ratios = (squared(seen, (1,)) != 0).to(x)  # one part, the whole, or nothing
    else:
        directions = [v]
        if groups == 1 and 2 * weight.shape[1] <= weight.shape[0]:
            weight, directions = compressed(weight, v)
        if operation.fused is None:
            parts = offset_parts(x, weight, window, groups, v.shape[2:])
        else:
            window = Window.of(operation.fused)
            over = arguments(operation.fused)["ceil_mode"]
            parts = (F.conv2d(part, weight) for part in pool_parts(x, window, over))
        ratios = sharing_ratios(parts, given["bias"], v, directions)
    (rows, columns), room = x.shape[2:], window.room(x.shape[2:])

    def down(relevance: Tensor) -> Sequence[Tensor]:
        here = level(relevance, (1,))[:, :, 0]
        (top, left), below = window.padding, here.new_zeros(*here.shape[:2], *room)
        for offset, ratio in zip(offsets(window), ratios.unbind(1), strict=True):
            seen_at(window, below, offset, here.shape[2:]).addcmul_(ratio, here)
        return [below[:, :, None, top : top + rows, left : left + columns]]

    return down


@_rule("conv_transpose2d")
def _transposed(operation: Operation) -> Down:
    """The rule of conv2d, on a map with zeros between its positions and the kernel turned round."""
    given, (x,) = operation.given, operation.inputs
    steps, last, dilation, padding = (
        pair(given[name]) for name in ("stride", "output_padding", "dilation", "padding")
    )
    turned = given["weight"].unflatten(0, (given["groups"], -1)).transpose(1, 2)
    weight = turned.flatten(0, 1).flip(2, 3)
    kernel = pair(list(weight.shape[2:]))
    rows, columns = ((n - 1) * s + 1 + e for n, s, e in zip(x.shape[2:], steps, last, strict=True))
    wide, (down_by, right_by) = x.new_zeros(*x.shape[:2], rows, columns), steps
    edges = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]

    def own(values: Tensor) -> Tensor:
        return values[..., ::down_by, ::right_by][..., : x.shape[2], : x.shape[3]]

    own(wide).copy_(x)
    window = Window(kernel, (1, 1), pair(edges), dilation)
    changed = given | {"weight": weight, "window": window}
    down = conv(replace(operation, inputs=(wide,), given=changed))
    return lambda relevance: [own(down(relevance)[0])]


def attention(operation: Operation) -> Down:
    """μ_i = (⟨Σ_h a_ij^h O_h x_i^h, v_j⟩ + the shift's by norm)/‖v_j‖², the pattern a constant.

    x are the tokens' values without their bias. What is left of v is the shift.

    Examples
    --------
    A token that looks at two alike, of which the second holds three times the first.

    >>> given = {"pattern": torch.full((1, 1, 1, 2), 0.5), "weight": torch.eye(1)}
    >>> given |= {"added": torch.zeros(1, 1, 2, 1), "moved": lambda y: y[:, 0]}
    >>> x, v = torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[2.0]]])
    >>> made = Operation(None, given, (x,), v, ((1, 3), (2,)), v, None)
    >>> attention(made)(torch.ones(1, 1, 1, 1))[0].flatten()
    tensor([0.2500, 0.7500])
    """
    given, v, channels = operation.given, operation.target, operation.channels[-1]
    a, moved, weight, x = given["pattern"], given["moved"], given["weight"], operation.inputs[0]
    x = x - given["added"]
    unit = quotient(v, squared(v, channels))
    mixed = a @ x
    shape = moved(mixed).shape
    (back,) = torch.func.vjp(lambda y: moved(y) @ weight.T, mixed)[1](unit)
    along = (a * (back @ x.mT)).sum(1, keepdim=True)
    brought = torch.einsum("nhpd,ohd->npho", x, weight.unflatten(1, (x.shape[1], -1)))
    gram = brought @ brought.mT
    square = torch.einsum("nhjp,ngjp,nphg->njp", a, a, gram)
    norm = square.clamp(min=0).sqrt()[:, None]
    left = 1 - along.sum(-1, keepdim=True)
    ratios = along + left * quotient(norm, norm.sum(-1, keepdim=True))
    pull = _pull(moved, mixed)

    def down(relevance: Tensor) -> Sequence[Tensor]:
        even = level(relevance, channels) / shape[-1]
        (there,) = pull(even.expand(len(even), *shape))
        return [ratios.mT @ there.sum((2, 4), keepdim=True)]

    return down


# ---------------------------------------------------------------------------- their parts


def _no_rule(made: Operation) -> str:
    """What to do about an operation that is not linear, as far as its values tell."""
    v, (x, *others) = made.target, made.inputs
    suggested = "a function of rules.Operation"
    if not others and x.shape == v.shape:
        places = tuple(1 if d in made.channels[-1] else s for d, s in enumerate(v.shape))
        here = (
            torch.arange(math.prod(places), device=v.device).reshape(places)
            == math.prod(places) // 2
        )
        found = _pull(made.again, x)(here.expand_as(v)[None].to(v))[0][0]
        if not found.masked_fill(here, 0).any():
            suggested = "rules.hand_on, for it is of each position alone"
    name = _name(made.node) if made.node else "this"
    return (
        f"SRD has no rule for {name} (node {made.node}), which is not linear: give it one, "
        f'rules.RULES["{name}"] = {suggested}, or ask for rule="gradient", whose shares may not '
        "add up"
    )


def _pull(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[Tensor], Any]:
    """What takes gradients (K, …) by a function's output to those by its inputs."""
    return torch.vmap(torch.func.vjp(function, *inputs)[1])


def level(relevance: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Relevance (K, …) of positions, whatever lies along the channels summed.

    Examples
    --------
    >>> level(torch.ones(1, 2, 3), (1,)).tolist()  # one map, two pictures, three channels
    [[[3.0], [3.0]]]
    """
    dims = [d + 1 for d in channels if relevance.shape[d + 1] > 1]
    return relevance.sum(dims, keepdim=True) if dims else relevance


def _with_rest(
    parts: Sequence[Tensor], relevance: Tensor, operation: Operation
) -> Sequence[Tensor]:
    """Parts, and what relevance they leave, which is shared by the norm of all that comes in."""
    pairs = zip(operation.inputs, operation.channels, strict=False)
    norms = [length(x, own) for x, own in pairs]
    left = relevance.flatten(2).sum(2) - sum(part.flatten(2).sum(2) for part in parts)
    total: Any = sum(norm.flatten(1).sum(1) for norm in norms)
    each = quotient(left, total)
    shares = [each.reshape(*each.shape, *[1] * (n.ndim - 1)) * n for n in norms]
    found = zip(parts, shares, operation.channels, strict=False)
    return [plus(part, share, own) for part, share, own in found]


def _single(operation: Operation) -> list[tuple[int, ...]]:
    """Where each input has size 1: what was broadcast takes the sum of its places' relevance."""
    return [tuple(d for d, s in enumerate(x.shape) if s == 1) for x in operation.inputs]


def plus(a: Tensor | None, b: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Relevance that reaches a value from one more operation; not in the paper.

    Examples
    --------
    >>> plus(torch.ones(1, 1, 2), torch.ones(1, 1, 1), (1,)).tolist()
    [[[3.0]]]
    """
    if a is None:
        return b
    return a + b if a.shape == b.shape else level(a, channels) + level(b, channels)
