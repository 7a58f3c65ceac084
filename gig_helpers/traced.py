"""A model as a graph of operations: traced once, tidied, its channels found.

``torch.export`` follows one forward pass; what stands here makes of that a graph in which a network
can be cut and relevance can go down. Not in the paper.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves, tree_map_only

Node: TypeAlias = Any
"""A node of a traced graph (``torch.fx.Node``), whose types would make every argument a union."""

ACTIVATIONS = frozenset(
    "relu relu6 hardtanh gelu silu elu selu celu leaky_relu rrelu prelu mish softplus sigmoid tanh "
    "hardswish hardsigmoid log_sigmoid softshrink hardshrink threshold".split()
)
"""Operations that are an activation function of each value alone."""

MOVES = frozenset(
    "reshape reshape_as view_as flatten unflatten squeeze unsqueeze permute transpose movedim "
    "moveaxis swapaxes swapdims adjoint mT mH t slice select narrow roll flip pad constant_pad_nd "
    "expand expand_as broadcast_to repeat repeat_interleave tile stack index index_select "
    "pixel_shuffle pixel_unshuffle channel_shuffle clone contiguous".split()
)
"""Operations that put values in another place."""

BATCH = 2
"""Pictures of the traced batch."""

_PRODUCTS = {"matmul", "bmm", "einsum", "scaled_dot_product_attention"}
_PIECES = {"unbind", "split", "split_with_sizes", "chunk"}
_NOTHING = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias"}


class Window(NamedTuple):
    """How a layer's kernel moves over its input (the receptive fields of section 3.1).

    Kernel, stride, padding and dilation, rows and columns of each.

    Examples
    --------
    >>> Window(kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)).stride
    (2, 2)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, node: Node) -> "Window":
        """The window of a convolution or a pooling.

        Examples
        --------
        >>> conv = nn.Sequential(nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.Flatten())
        >>> Window.of(trace(conv, (9, 9))[1][1])
        Window(kernel=(7, 7), stride=(2, 2), padding=(3, 3), dilation=(1, 1))
        """
        given = arguments(node)
        kernel = given.get("kernel_size") or given["weight"].meta["size"][2:]
        # Without a stride a pooling takes its kernel's size; an average pooling has no dilation.
        dilation, padding = pair(given.get("dilation", 1)), given["padding"]
        if isinstance(padding, str):
            reach = [
                d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)
            ]
            padding = [r // 2 for r in reach]  # an odd one goes to the end, where there is room
        return cls(pair(kernel), pair(given["stride"] or kernel), pair(padding), dilation)

    def room(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of a map of this size, padded, and beyond it as far as a window reaches.

        Examples
        --------
        >>> Window((3, 3), (2, 2), (1, 1), (1, 1)).room((8, 9))
        (12, 13)
        """
        parts = zip(size, self.padding, self.kernel, self.dilation, strict=True)
        rows, columns = (count + 2 * p + (k - 1) * d for count, p, k, d in parts)
        return rows, columns


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns, of one number for both; not in the paper.

    Examples
    --------
    >>> pair(3), pair([2, 1])
    ((3, 3), (2, 1))
    """
    rows, columns = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return rows, columns


def operation(node: Node) -> str:
    """Name of the operation that a node calls, such as ``"conv2d"``; not in the paper.

    Examples
    --------
    >>> [operation(node) for node in trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), (9, 9))[1]]
    ['placeholder', 'conv2d', 'relu']
    """
    if node.op != "call_function":
        return node.op
    return node.target.__name__.split(".")[0]


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, defaults among them; values of other nodes are these nodes.

    Examples
    --------
    >>> arguments(trace(nn.Conv2d(3, 2, 3, padding=1), (9, 9))[1][1])["padding"]
    [1, 1]
    """
    known = node.target._schema.arguments
    given = dict(zip((argument.name for argument in known), node.args, strict=False))
    return {a.name: a.default_value for a in known} | given | dict(node.kwargs)


def evaluate(node: Node, values: dict[Node, Any]) -> Any:
    """What a node's operation makes of its inputs' values; not in the paper.

    Examples
    --------
    >>> x, relu = trace(nn.ReLU(), (9, 9))[1]
    >>> evaluate(relu, {x: torch.tensor([-1.0, 2.0])})
    tensor([0., 2.])
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)


def live_inputs(node: Node) -> list[Node]:
    """The inputs of a node whose values come of the pictures; not in the paper.

    Examples
    --------
    >>> x, conv = trace(nn.Conv2d(3, 2, 3), (9, 9))[1]
    >>> live_inputs(conv) == [x], len(conv.all_input_nodes)  # the weight and the bias are others
    (True, 3)
    """
    return [n for n in node.all_input_nodes if "shape" in n.meta]


def is_pattern(node: Node) -> bool:
    """Whether a value is weights: all of it has passed a softmax; not in the paper.

    Examples
    --------
    >>> layers = nn.ReLU(), nn.Softmax(1), nn.Flatten()
    >>> x, relu, softmax, flat = trace(nn.Sequential(*layers), (4, 4))[1]
    >>> is_pattern(relu), is_pattern(flat)
    (False, True)
    """
    left, seen = [node], set[Node]()
    while left:
        here = left.pop()
        if operation(here) != "softmax" and here not in seen:
            if not (below := live_inputs(here)):
                return False
            left += below
        seen.add(here)
    return True


def trace(
    model: nn.Module, input_size: Sequence[int], *, functional: bool = False
) -> tuple[fx.GraphModule, list[Node]]:
    """A model's graph, and those of its nodes whose values come of the pictures; not in the paper.

    These hold in ``meta`` the shape of their value, the dimensions of its channels, the modules
    that they stand in, and whether it can be a block's. What does not depend on the pictures is
    computed; a convolution and its batch norm are one; a linear layer of a flattened map is the
    convolution that it is. The graph's own ``meta`` holds what its ``"operations"`` are, in text,
    and ``"constants"`` that are no weights.

    Parameters
    ----------
    input_size
        Rows and columns of pictures of three channels; or channels, rows and columns.
    functional
        Whether ``torch.export`` is asked to make writes into a view (``y[:, :4] = 0``) operations
        of their own, which else are lost. It takes some layers apart.

    Raises
    ------
    TypeError
        If the model cannot be traced.

    Examples
    --------
    >>> program, nodes = trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).eval(), (9, 9))
    >>> nodes[-1].name, nodes[-1].meta["shape"], nodes[-1].meta["channels"]  # made one
    ('conv2d', (2, 2, 7, 7), (1,))
    """
    like = next(model.parameters(), torch.empty(0))
    images = like.new_zeros(BATCH, *(3, *input_size)[-3:])
    # Attention that also returns its weights is traced with heads and pictures in one dimension.
    without: Any = lambda _, args, kwargs: (args, kwargs | {"need_weights": False})  # noqa: E731
    hooks = [
        module.register_forward_pre_hook(without, with_kwargs=True)
        for module in model.modules() if isinstance(module, nn.MultiheadAttention)
    ]  # fmt: skip
    try:
        batch = {0: torch.export.Dim.AUTO}
        program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
        program = program.run_decompositions({}) if functional else program
        traced: Any = program.module(check_guards=False)
    except Exception as error:
        why = str(error).split("\n")[0]
        raise TypeError(
            f"{type(model).__name__} cannot be traced with pictures {tuple(images.shape)}; its "
            f"forward must take one batch of pictures and not depend on their values: {why}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    building = _Building(images)
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            building.made[node] = operator.attrgetter(node.target)(traced)
        elif node.op == "placeholder":
            building.made[node] = building.images
        elif node.op == "call_function" and node.users:  # without, an assertion
            building.made[node] = building.stand_in(node)
        elif node.op == "output":
            building.graph.output(building.made[node.all_input_nodes[0]])
    building.graph.eliminate_dead_code()
    nodes = [node for node in building.graph.nodes if "shape" in node.meta]
    for node in building.graph.nodes:  # done with: weights from before they were made one
        for name in ("known", "numbers"):
            node.meta.pop(name, None)
    graph = fx.GraphModule(building.root, building.graph)
    calls = [n.format_node() for n in program.graph.nodes if n.op == "call_function"]
    graph.meta |= {"operations": calls, "constants": program.constants}
    return graph, nodes


class _Building:
    """A graph being made of a traced one; ``made`` holds what stands for each of its nodes."""

    def __init__(self, images: Tensor):
        self.graph, self.root = fx.Graph(), nn.Module()
        self.like = images
        self.images = self.graph.placeholder("x")
        self.images.meta = {
            "shape": tuple(images.shape), "channels": (1,), "paths": [""], "cut": False
        }  # fmt: skip
        self.count = self.add(torch.ops.aten.sym_size.int, (self.images, 0))
        self.made: dict[Node, Any] = {}

    def stand_in(self, node: Node) -> Any:
        """A node of the new graph, a constant, or for pieces a list, in place of a traced node."""
        name, value = operation(node).rstrip("_"), node.meta["val"]
        if name.startswith("_assert"):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.made.__getitem__)
        if isinstance(value, torch.SymInt):
            times = int(value) // BATCH
            return self.count if times == 1 else self.add(operator.mul, (self.count, times))
        if name.startswith("new_"):
            args = (self.like, *args[1:])
        if name in _NOTHING or name == "getitem":
            alone = name in _NOTHING or isinstance(args[0], fx.Node)
            return args[0] if alone else args[0][args[1]]
        if not any(isinstance(n, fx.Node) for n in tree_leaves((args, kwargs))):
            return node.target(*args, **kwargs)
        target = node.target
        if name == "_native_batch_norm_legit_no_training":  # batch_norm, made functional
            name, target = "batch_norm", torch.ops.aten.batch_norm.default
            args, value = (*args[:5], False, *args[5:], False), value[0]
        path = [(module,) for module, _ in node.meta.get("nn_module_stack", {}).values()]
        paths = [path[-1][0].split("@")[0]] if path else [""]
        if name in _PIECES:
            return self.pieces(args[0], name, value, arguments(node)["dim"], paths)
        if name == "batch_norm" and (fused := self.fused(node, args, paths)):
            return fused
        if name == "linear" and (whole := self.convolution(args, value, paths)):
            return whole
        # Written over, a value would be lost to whoever else takes it; a view needs its layout.
        name = "reshape" if name in ("view", "_unsafe_view") else name
        target = getattr(getattr(torch.ops.aten, name), target._overloadname)
        return self.add(target, args, kwargs, value, paths)

    def add(
        self, target: Any, args: tuple, kwargs: dict | None = None, value: Any = None,
        paths: Sequence[str] = ("",),
    ) -> Node:  # fmt: skip
        """A new node; ``value`` has the shape of what it makes."""
        args, kwargs = tree_map_only(Tensor, self.constant, (args, kwargs or {}))
        name = target.__name__.split(".")[0]
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        if value is None or not live_inputs(node):
            below = {n: n.meta["known"] for n in node.all_input_nodes if n is not self.images}
            node.meta["known"] = evaluate(node, below) if below else BATCH
        else:
            shape = tuple(s if isinstance(s, int) else s.node.hint for s in value.shape)
            own = [not isinstance(s, int) for s in value.shape]
            node.meta["shape"] = shape
            channels = self.channels(node)
            fit = own[0] and shape[0] == BATCH and not any(own[1:]) and len(shape) in (2, 3, 4)
            cut = fit and len(channels) == 1 and value.dtype.is_floating_point
            node.meta |= {"channels": channels, "paths": list(paths), "cut": cut}
        return node

    def constant(self, tensor: Tensor) -> Node:
        """A node for a constant, which lies so that a CPU convolves fastest."""
        name = f"constant_{len(list(self.root.buffers()))}"
        if tensor.ndim == 4 and tensor.device.type == "cpu":
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        self.root.register_buffer(name, tensor.detach())
        node = self.graph.get_attr(name)
        node.meta |= {"known": tensor, "size": tensor.shape}
        return node

    def pieces(self, x: Node, name: str, values: Any, dim: int, paths: Sequence[str]) -> list[Node]:
        """What a value is taken apart into."""
        aten, found, start = torch.ops.aten, [], 0
        for n, value in enumerate(values):
            if name == "unbind":
                found.append(self.add(aten.select.int, (x, dim, n), None, value, paths))
                continue
            stop = start + int(value.shape[dim])
            found.append(self.add(aten.slice.Tensor, (x, dim, start, stop), None, value, paths))
            start = stop
        return found

    def fused(self, norm: Node, args: tuple, paths: list[str]) -> Node | None:
        """The convolution before a batch norm, made to be both: weight s·W, bias the shift.

        A quarter of GIG's time less. Eq. 8 names the shift.
        """
        conv, (*before, mean, var) = args[0], args[1:5]
        if operation(conv) != "conv2d" or len(norm.all_input_nodes[0].users) > 1 or mean is None:
            return None
        given = {k: getattr(v, "meta", {}).get("known", v) for k, v in arguments(conv).items()}
        both = fuse_conv_bn_weights(given["weight"], given["bias"], mean, var, args[7], *before)
        with self.graph.inserting_before(conv):
            conv.args = (conv.args[0], *map(self.constant, both), *conv.args[3:])
        conv.meta["norm"] = True
        conv.meta["paths"] += paths
        return conv

    def convolution(self, args: tuple, value: Any, paths: list[str]) -> Node | None:
        """The convolution that a linear layer of a flattened map is, flattened in its turn."""
        below = next(iter(args[0].all_input_nodes), args[0])
        shape, weight = below.meta.get("shape", ()), args[1]
        flat = operation(args[0]) in ("flatten", "reshape") and below.meta.get("channels") == (1,)
        fits = len(shape) == 4 and weight.shape[1:] == (math.prod(shape[1:]),)
        if not flat or not fits or shape[2] * shape[3] == 1:
            return None
        kernel = weight.unflatten(1, shape[1:])
        made: Any = torch.ops.aten.conv2d.default, torch.ops.aten.flatten.using_ints
        conv = self.add(made[0], (below, kernel, *args[2:]), None, value[..., None, None], paths)
        return self.add(made[1], (conv, 1), None, value, paths)

    def channels(self, node: Node) -> tuple[int, ...]:
        """The dimensions of a node's value that are its channels'."""
        name, shape = operation(node), node.meta["shape"]
        inputs = live_inputs(node)
        own = inputs[0].meta["channels"]
        if "conv" in name or name in ("batch_norm", "group_norm", "instance_norm"):
            return (1,)
        if "pool" in name or "pad" in name:
            return own
        if name in ("linear", "layer_norm", "rms_norm"):
            # The channels stay where they are, even where a layer mixes positions.
            return own if len(own) == 1 else (len(shape) - 1,)
        alike = name == "cat" or len(inputs) > 1 or inputs[0].meta["shape"] == shape
        if alike and name not in MOVES | _PRODUCTS:
            return max(inputs, key=lambda n: math.prod(n.meta["shape"])).meta["channels"]
        # Numbered along its channels, a value tells where they go, even through a dimension that
        # pictures and channels share. What it is multiplied with treats all of it alike.
        values: dict[Node, Any] = {n: n.meta.get("known") for n in node.all_input_nodes}
        if name in _PRODUCTS:
            sizes_of = {n: n.meta.get("shape") or n.meta["known"].shape for n in values}
            device = self.like.device
            values = {n: torch.ones(size, device=device) for n, size in sizes_of.items()}
            inputs = [n for n in inputs if not is_pattern(n)][-1:] or inputs[-1:]
        for n in inputs:
            dims, shape = n.meta["channels"], n.meta["shape"]
            sizes = [s if d in dims else 1 for d, s in enumerate(shape)]
            fresh = torch.arange(1.0, math.prod(sizes) + 1).reshape(sizes).expand(shape)
            values[n] = n.meta.get("numbers", fresh.to(self.like.device))
        node.meta["numbers"] = found = evaluate(node, values)
        steps = [
            (found.narrow(d, 1, s - 1), found.narrow(d, 0, s - 1))
            for d, s in enumerate(found.shape)
        ]
        return tuple(
            d for d, (a, b) in enumerate(steps)
            if (((a - b).abs() > 0.01) & (a * b != 0)).any()  # more than rounding, no padding
        )  # fmt: skip
