"""An image classifier as named blocks: pre-activations, the network between two, the logits.

The model is traced once, by ``torch.export``, into a graph (``torch.fx``) of PyTorch's own
operations. A *cut point* is a node of it through which everything flows, and a block is a named cut
point: in a ResNet the input of a block's last ReLU, the sum of the main branch and the shortcut. A
point-wise feature vector (PFV; section 3.1) is that tensor's channel vector at one position.
"""

import copy
import hashlib
import math
import operator
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .data import weights as pretrained
from .data.pictures import class_names
from .data.weights import IMAGENET, Preprocessing

Node: TypeAlias = Any
"""A node of a traced graph (``torch.fx.Node``), whose types would make every argument a union."""

ACTIVATIONS = frozenset(
    "relu relu6 hardtanh gelu silu elu selu celu leaky_relu prelu mish softplus sigmoid tanh "
    "hardswish hardsigmoid log_sigmoid softshrink hardshrink threshold".split()
)
"""Operations that are an activation function of each value alone."""

MOVES = frozenset(
    "reshape flatten unflatten squeeze unsqueeze permute transpose movedim slice select narrow "
    "roll flip pad constant_pad_nd expand repeat stack index index_select pixel_shuffle "
    "pixel_unshuffle channel_shuffle clone contiguous".split()
)
"""Operations that put values in another place."""

_PIECES = {"unbind", "split", "split_with_sizes", "chunk"}
_NOTHING = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias"}


class Window(NamedTuple):
    """How a layer's kernel moves over its input (the receptive fields of section 3.1).

    Kernel, stride, padding and dilation, rows and columns of each.
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
        >>> Window.of(Network(conv, device="cpu", input_size=(9, 9), blocks=["0"]).node("0"))
        Window(kernel=(7, 7), stride=(2, 2), padding=(3, 3), dilation=(1, 1))
        """
        given = arguments(node)
        kernel = given.get("kernel_size") or given["weight"].meta["size"][2:]
        # Without a stride a pooling takes its kernel's size; an average pooling has no dilation.
        dilation, padding = _pair(given.get("dilation", 1)), given["padding"]
        if isinstance(padding, str):
            reach = [
                d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)
            ]
            if any(r % 2 for r in reach):
                raise NotImplementedError(f"a padding that is not symmetric: {node.format_node()}")
            padding = [r // 2 for r in reach]
        return cls(_pair(kernel), _pair(given["stride"] or kernel), _pair(padding), dilation)

    def ends(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns that the windows of so many positions reach over, with the padding."""
        parts = zip(size, self.stride, self.kernel, self.dilation, strict=True)
        rows, columns = ((count - 1) * s + (k - 1) * d + 1 for count, s, k, d in parts)
        return rows, columns


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else (*value, *value)[:2]
    return rows, columns


class Network:
    """A frozen image classifier whose blocks are addressed by name (section 3.1).

    Parameters
    ----------
    model
        Any module that maps pictures (N, channels, H, W) to logits (N, classes) and that
        ``torch.export`` can trace: of torchvision, timm, or one's own.
    name, weights
        For the provenance line: architecture, and where the weights come from.
    device
        ``None``: CUDA where there is a GPU, else the CPU.
    blocks
        Cut points, by the name of a module (what it ends with, before its activation) or of a node.
        By default the ends of residual blocks before their activation, each named like the module
        that adds; without these, the ends of stages: for each size of the map, the last cut point
        before its activation.
    input_size
        Rows and columns that the model is traced with; by default what the model says of itself,
        else 224 × 224.
    classes
        Names of the classes; by default "class 0" and so on.
    preprocessing
        How pictures are made ready for it; by default as ImageNet's are.

    Raises
    ------
    TypeError
        If the model is no module or cannot be traced.
    KeyError
        If a name in ``blocks`` is no cut point.
    ValueError
        If there is not one name a class.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu", input_size=(64, 64))
    >>> images = torch.zeros(1, 3, 64, 64)
    >>> network.checked(images).shape, network.logits(images).shape, network.classes[3]
    (torch.Size([1, 3, 64, 64]), torch.Size([1, 5]), 'class 3')
    >>> found = network.preactivations(images, ["layer2.0", "layer4.1"])
    >>> x = found["layer2.0"]
    >>> x.shape, network.channels("layer2.0"), network.map_size("layer2.0")
    (torch.Size([1, 128, 8, 8]), 128, (8, 8))
    >>> torch.allclose(network.between(x, "layer2.0", "layer4.1"), found["layer4.1"], atol=1e-4)
    True
    >>> torch.equal(network.logits_from(x, "layer2.0"), network.propagate(x, "layer2.0"))
    True
    >>> flat = network.positions(x, "layer2.0")
    >>> flat.shape, torch.equal(network.arranged(flat, "layer2.0"), x)
    (torch.Size([1, 64, 128]), True)
    >>> network.own_size("layer2.0"), network.placeless("layer2.0")
    ((8, 8), 0)
    >>> network.index("layer2.0"), network.span("layer2.0", "layer4.1")
    (2, (2, 7))
    >>> network.shift("layer2.0").shape, network.receptive_field("layer1.0")
    (torch.Size([128]), (27, 4, -13))
    >>> operation(network.node("layer2.0")), network.double().shift("layer2.0").dtype
    ('add', torch.float64)
    >>> [operation(node) for node in network.nodes(network.node("layer4.1"), None)][1:3]
    ['relu', 'adaptive_avg_pool2d']
    """

    def __init__(
        self, model: nn.Module, name: str = "", weights: str = "given",
        device: str | torch.device | None = None, *, blocks: Sequence[str] | None = None,
        input_size: tuple[int, int] | None = None, classes: Sequence[str] | None = None,
        preprocessing: Preprocessing = IMAGENET,
    ):  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
        self.name, self.weights = name or type(model).__name__.lower(), weights
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # TensorFloat-32 keeps 10 bits of a convolution's inputs: sums would not add up.
        torch.backends.cudnn.allow_tf32 = False
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.preprocessing, self.input_size = preprocessing, input_size or _own_input_size(model)
        self.program, self._live = trace(self.model, self.input_size)
        self._order = {node: place for place, node in enumerate(self.program.graph.nodes)}
        count = self._live[-1].meta["shape"][-1]
        self.classes = tuple(classes or (f"class {n}" for n in range(count)))
        if len(self.classes) != count:
            raise ValueError(f"{len(self.classes)} names for {count} classes")
        self._cuts = self._cut_points()
        self._given = blocks
        found = self._default_blocks() if blocks is None else {n: self._named(n) for n in blocks}
        self._block = dict(sorted(found.items(), key=lambda item: self._order[item[1]]))
        self.blocks: tuple[str, ...] = tuple(self._block)
        self._segments: dict[tuple[Node, Node], fx.GraphModule] = {}
        self._sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"Network({self.name}, weights: {self.weights}, {self.version}, {self.device})"

    def double(self) -> "Network":
        """The same network in float64, in which sums agree to more digits; not in the paper."""
        return Network(
            copy.deepcopy(self.model).double(), self.name, self.weights, self.device,
            blocks=self._given, input_size=self.input_size, classes=self.classes,
            preprocessing=self.preprocessing,
        )  # fmt: skip

    @property
    def version(self) -> str:
        """``"v1"`` if a ResNet's stage strides in its first 1×1 convolution, else ``"v1.5"``.

        ``"basic"`` if its blocks have no such choice; of another network the kind of model.
        """
        if not isinstance(self.model, torchvision.models.ResNet):
            return type(self.model).__name__
        first = self.model.layer2[0]
        if isinstance(first, torchvision.models.resnet.BasicBlock):
            return "basic"
        return "v1" if first.conv1.stride != (1, 1) else "v1.5"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the architecture and of every weight."""
        digest = hashlib.sha256(f"{self.model}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def index(self, name: str) -> int:
        """Place of a block in ``blocks``.

        Raises
        ------
        KeyError
            If the network has no such block; the message lists those it has.
        """
        if name not in self.blocks:
            raise KeyError(f"{self.name} has no block {name!r}; it has {', '.join(self.blocks)}")
        return self.blocks.index(name)

    def span(self, source: str, target: str) -> tuple[int, int]:
        """Places of two blocks in ``blocks``.

        Raises
        ------
        KeyError
            If a block is unknown.
        ValueError
            If ``target`` does not come after ``source``.
        """
        start, stop = self.index(source), self.index(target)
        if stop <= start:
            raise ValueError(f"target {target} must come after source {source}")
        return start, stop

    def node(self, block: str) -> Node:
        """The graph's node that a block names; SRD goes down the graph node by node."""
        self.index(block)
        return self._block[block]

    def channels(self, block: str) -> int:
        """Number of channels C of a block's PFVs."""
        node = self.node(block)
        return int(node.meta["shape"][node.meta["channels"][0]])

    @property
    def class_vectors(self) -> Tensor:
        """Rows (classes, C) of the last layer's weight: the direction that a class is read from.

        Raises
        ------
        TypeError
            If the network has no linear layer.
        """
        for node in reversed(self._live):
            if operation(node) in ("linear", "conv2d"):
                return self.program.get_buffer(arguments(node)["weight"].target).flatten(1)
        raise TypeError(f"{self.name} has no linear layer")

    def shift(self, block: str) -> Tensor | None:
        """Net shift of batch normalisation μ_BN (eq. 8), also β of eq. 9; shape (C,).

        A block's pre-activation is a sum, for which the paper defines no shift. Taken here: the
        shift of the main branch's last BN, plus that of the shortcut's BN where there is one.
        ``None`` where no batch norm enters: the mean PFV can stand in for it.
        """
        node, found = self.node(block), []
        for part in node.all_input_nodes if operation(node) == "add" else [node]:
            if "norm" in part.meta:
                found.append(self.program.get_buffer(arguments(part)["bias"].target))
            elif operation(part) == "batch_norm":  # the norm of nothing is its shift
                nothing = {n: self.value(n, {}, 1) for n in part.all_input_nodes[1:]}
                x = torch.zeros_like(nothing[arguments(part)["running_mean"]])[None, :, None, None]
                found.append(evaluate(part, {part.args[0]: x, **nothing}).flatten())
        return torch.stack(found).sum(0) if found else None

    def bn_shift(self, block: str) -> Tensor:
        """:meth:`shift` (C,), of a block that has one.

        Raises
        ------
        ValueError
            If no batch norm enters the block.
        """
        if (shift := self.shift(block)) is None:
            raise ValueError(f"no batch norm enters {block}: give β, such as its mean PFV")
        return shift

    # ------------------------------------------------------------------------ running it

    def preactivations(
        self, images: Tensor, blocks: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """Pre-activations of some blocks, by default of all.

        Parameters
        ----------
        images
            Normalised pictures (N, 3, H, W).

        Returns
        -------
        dict
            ``{block: (N, C, H_block, W_block)}``, in the network's order; where channels lie last,
            or positions are tokens, (N, H_block, W_block, C) or (N, P, C).

        Raises
        ------
        KeyError
            If a block is unknown.
        ValueError
            If the pictures do not have the shape (N, 3, H, W) or hold NaN.
        """
        wanted = self.blocks if blocks is None else tuple(blocks)
        last = max(self.index(name) for name in wanted)
        x, below = self.checked(images), self._live[0]
        found: dict[str, Tensor] = {}
        for name in self.blocks[: last + 1]:
            x, below = self._segment(below, self._block[name])(x), self._block[name]
            if name in wanted:
                found[name] = x
        return found

    def between(self, x: Tensor, source: str, target: str) -> Tensor:
        """F_ab of section 3.3: pre-activation of ``source`` in, pre-activation of ``target`` out.

        It begins with the ReLU of ``source`` and ends before that of ``target``; differentiable.

        Parameters
        ----------
        x
            (N, C_a, H_a, W_a), or in the block's own layout.

        Returns
        -------
        Tensor
            (N, C_b, H_b, W_b), or in the block's own layout.

        Raises
        ------
        KeyError
            If a block is unknown.
        ValueError
            If ``target`` does not come after ``source``, or ``x`` has the wrong shape.
        """
        self.span(source, target)
        return self.propagate(self.checked(x, source), source, target)

    def logits_from(self, x: Tensor, block: str) -> Tensor:
        """Logits (N, classes) from a block's pre-activation (N, C, H, W); differentiable.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If ``x`` has the wrong shape.
        """
        return self.propagate(self.checked(x, block), block)

    def propagate(self, x: Tensor, source: str, target: str | None = None) -> Tensor:
        """:meth:`between`, or without a target :meth:`logits_from`, of input known to be good.

        Looking for NaN in (N, C, H, W) makes a GPU wait, so what runs in a loop comes here.
        """
        stop = len(self.blocks) if target is None else self.index(target) + 1
        below = self.node(source)
        for name in self.blocks[self.index(source) + 1 : stop]:
            x, below = self._segment(below, self._block[name])(x), self._block[name]
        return x if target else self._segment(below, self._live[-1])(x)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised pictures (N, 3, H, W)."""
        return self.model(self.checked(images))

    def checked(self, x: Tensor, block: str | None = None) -> Tensor:
        """Pictures, or a block's pre-activations, on the network's device.

        Raises
        ------
        ValueError
            If they do not have the shape (N, C, H, W), or hold NaN or infinite values.
        """
        node = self._live[0] if block is None else self.node(block)
        (channel,), shape, what = node.meta["channels"], node.meta["shape"], block or "pictures"
        if x.ndim != len(shape) or x.shape[channel] != shape[channel]:
            names = ["N", "H", "W"] if len(shape) == 4 else ["N", "P"][: len(shape) - 1]
            names.insert(channel, str(shape[channel]))
            raise ValueError(f"{what}: expected ({', '.join(names)}), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{what}: the input holds NaN or infinite values")
        return x.to(self.device)

    def nodes(self, source: Node | None, target: Node | None) -> list[Node]:
        """The nodes that lead from one cut point, by default the pictures, to another, the logits.

        The first is the source, the last the target. Constants are among them, and the number of
        pictures, which is made anew of the source.
        """
        source, target = source or self._live[0], target or self._live[-1]
        found, todo = {source}, [target]
        while todo:
            if (node := todo.pop()) not in found:
                found.add(node)
                todo += [] if operation(node) == "sym_size" else node.all_input_nodes
        return [source, *sorted(found - {source}, key=self._order.__getitem__)]

    def value(self, node: Node, values: dict[Node, Any], count: int) -> Any:
        """A node's value from its inputs' values, in a batch of so many pictures."""
        if node.op == "get_attr":
            return self.program.get_buffer(node.target)
        return count if operation(node) == "sym_size" else evaluate(node, values)

    def _segment(self, source: Node, target: Node) -> fx.GraphModule:
        """The graph between two cut points as a module; values are freed after their last use."""
        if (source, target) not in self._segments:
            graph = fx.Graph()
            copies = {source: graph.placeholder("x")}
            for node in self.nodes(source, target)[1:]:
                if operation(node) == "sym_size":
                    copies[node] = graph.call_function(node.target, (copies[source], 0))
                else:
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            graph.output(copies[target])
            self._segments[source, target] = fx.GraphModule(self.program, graph)
        return self._segments[source, target]

    # ------------------------------------------------------------------------ positions

    def positions(self, x: Tensor, block: str) -> Tensor:
        """A block's values in its own layout, such as (N, C, H, W), as (N, P, C), row by row."""
        return x.movedim(self.node(block).meta["channels"][0], -1).flatten(1, -2)

    def arranged(self, flat: Tensor, block: str) -> Tensor:
        """Values (N, P, C) in the block's own layout, such as (N, C, H, W).

        A map has the size that it has for the network's input size, or, where there are not so many
        positions, the one of the same aspect.

        Raises
        ------
        ValueError
            If no such map has so many positions.
        """
        size, count = self.own_size(block), flat.shape[1]
        if len(size) == 2 and math.prod(size) != count:
            rows = math.isqrt(count * size[0] // size[1])
            size = (rows, rows * size[1] // size[0])
        if math.prod(size) != count:
            raise ValueError(
                f"{block}: {count} positions are no map of the shape of {self.own_size(block)}; "
                "build Network(model, input_size=(H, W)) for pictures of another shape"
            )
        # A permuted view of (N, C, H, W) is channels_last, in which CPU and GPU convolve fastest.
        channel = self.node(block).meta["channels"][0]
        return flat.unflatten(1, size).movedim(-1, channel) if size else flat[:, 0]

    def own_size(self, block: str, image_size: Sequence[int] | None = None) -> tuple[int, ...]:
        """Sizes of a block's layout but for pictures and channels: (H, W), or (P,) of tokens.

        Raises
        ------
        KeyError
            If the block is unknown.
        """
        node, size = self.node(block), tuple(image_size or self.input_size)
        if (block, size) not in self._sizes:
            shape = node.meta["shape"]
            if size != self.input_size:
                black = self.class_vectors.new_zeros(1, self._live[0].meta["shape"][1], *size)
                shape = self.preactivations(black, [block])[block].shape
            self._sizes[block, size] = _own(shape, node)
        return self._sizes[block, size]

    def map_size(self, block: str, image_size: Sequence[int] | None = None) -> tuple[int, int]:
        """Rows and columns of a block's places in pictures of this height and width.

        Tokens lie as the map lay that they were made of, behind the class tokens; see
        :meth:`placeless`.

        Parameters
        ----------
        image_size
            By default the network's input size.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If tokens have no place in the picture.
        """
        own = self.own_size(block, image_size)
        if len(own) == 2:
            return own
        count, before = math.prod(own), self._live[: self._live.index(self.node(block))]
        maps = [n.meta["shape"][2:] for n in before if n.meta["channels"] == (1,)]
        for rows, columns in (m for m in reversed(maps) if len(m) == 2):
            if rows * columns <= count < 2 * rows * columns:
                return rows, columns
        raise ValueError(f"the tokens of {block} have no known place in the picture")

    def placeless(self, block: str) -> int:
        """How many of a block's positions have no place in the picture: class tokens, the first.

        They take part in the path and hold concepts, codes and relevance like the others.
        """
        return math.prod(self.own_size(block)) - math.prod(self.map_size(block))

    def receptive_field(self, block: str) -> tuple[int, int, int] | None:
        """Theoretical receptive field of a block's positions: size, step and start, in pixels.

        Position p of a row or column sees the pixels from start + step · p on, size of them;
        the start is negative, and what lies outside of the picture is padding. ``None``: a position
        may see the whole picture.
        """
        seen: dict[Node, tuple[int, int, int]] = {self._live[0]: (1, 1, 0)}
        for node in self.nodes(None, self.node(block))[1:]:
            below = [seen[n] for n in node.all_input_nodes if n in seen]
            name = operation(node)
            if not below:
                continue
            size, step, start = below[0]
            if name in ("conv2d", "max_pool2d", "avg_pool2d"):
                window = Window.of(node)
                kernel, stride, padding, dilation = (rows for rows, _ in window)
                size, start = size + (kernel - 1) * dilation * step, start - padding * step
                step *= stride
                alike = all(rows == columns for rows, columns in window)
            else:
                end = max(first + width for width, _, first in below)
                start = min(first for *_, first in below)
                size = end - start
                alike = len({step for _, step, _ in below}) == 1 and (
                    name in (*ACTIVATIONS, "batch_norm", "add", "clone", "contiguous")
                    or (name == "cat" and arguments(node)["dim"] == 1)
                )
            if not alike:
                return None
            seen[node] = size, step, start
        return seen[self.node(block)]

    # ------------------------------------------------------------------------ cut points

    def _cut_points(self) -> list[Node]:
        """Nodes after which no value made before them is needed, in order."""
        place = {node: n for n, node in enumerate(self._live)}
        found, reach = [], 0
        for n, node in enumerate(self._live[:-1]):
            if n and reach <= n and node.meta["cut"]:
                found.append(node)
            reach = max([reach, *(place[user] for user in node.users if user in place)])
        return found

    def _default_blocks(self) -> dict[str, Node]:
        sums = [n for n in self._cuts if operation(n) == "add" and len(live_inputs(n)) > 1]
        # The last sum of each module; sums that no module holds go by their own names.
        found = {n.meta["paths"][0] or n.name: n for n in sums}
        if len(found) > 1:
            return found
        idle = ACTIVATIONS | MOVES
        ends = {_own(n.meta["shape"], n): n for n in self._cuts if operation(n) not in idle}
        maps = [n for size, n in ends.items() if math.prod(size) > 1 and "pool" not in operation(n)]
        return {_name(n): n for n in maps or self._cuts[-1:]}

    def _named(self, name: str) -> Node:
        """The cut point of this name."""  # noqa: DOC501
        by_node = [n for n in self._cuts if n.name == name]
        inside = [
            n for n in self._live if any(f"{p}.".startswith(f"{name}.") for p in n.meta["paths"])
        ]
        for node in by_node or inside[-1:]:
            while operation(node) in ACTIVATIONS and node.all_input_nodes[0] in self._cuts:
                node = node.all_input_nodes[0]
            if node in self._cuts:
                return node
        some = ", ".join(dict.fromkeys(_name(n) for n in self._cuts[:40]))
        what = "is no cut point: not all flows through it" if inside else "is no part of the model"
        raise KeyError(f"{name!r} {what}; cut points of {self.name} are {some}")


# ---------------------------------------------------------------------------- the traced graph


def operation(node: Node) -> str:
    """Name of the operation that a node calls, such as ``"conv2d"``; not in the paper."""
    if node.op != "call_function":
        return node.op
    return node.target.__name__.split(".")[0]


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, defaults among them; values of other nodes are these nodes."""
    known = node.target._schema.arguments
    given = dict(zip((argument.name for argument in known), node.args, strict=False))
    return {a.name: a.default_value for a in known} | given | dict(node.kwargs)


def evaluate(node: Node, values: dict[Node, Any]) -> Any:
    """What a node's operation makes of its inputs' values; not in the paper."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)


def live_inputs(node: Node) -> list[Node]:
    """The inputs of a node whose values come of the pictures; not in the paper."""
    return [n for n in node.all_input_nodes if "shape" in n.meta]


def _own(shape: Sequence[int], node: Node) -> tuple[int, ...]:
    return tuple(s for d, s in enumerate(shape) if d not in (0, *node.meta["channels"]))


def _name(node: Node) -> str:
    return node.meta["paths"][0] or node.name


def _own_input_size(model: nn.Module) -> tuple[int, int]:
    told = getattr(model, "default_cfg", {}).get("input_size")  # timm
    return _pair(told[-2:] if told else getattr(model, "image_size", 224))  # torchvision's ViT


def trace(model: nn.Module, input_size: tuple[int, int]) -> tuple[fx.GraphModule, list[Node]]:
    """A model's graph, and those of its nodes whose values come of the pictures; not in the paper.

    These hold in ``meta`` the shape of their value, the dimensions of its channels, the modules
    that they stand in, and whether it can be a block's. What does not depend on the pictures is
    computed; a convolution and its batch norm are one; a linear layer of a flattened map is the
    convolution that it is.

    Raises
    ------
    TypeError
        If the model cannot be traced.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    like = next(model.parameters(), torch.empty(0))
    images = like.new_zeros(_BATCH, 3 if first is None else first.in_channels, *input_size)
    # Attention that also returns its weights is traced with heads and pictures in one dimension.
    without: Any = lambda _, args, kwargs: (args, kwargs | {"need_weights": False})  # noqa: E731
    hooks = [
        module.register_forward_pre_hook(without, with_kwargs=True)
        for module in model.modules() if isinstance(module, nn.MultiheadAttention)
    ]  # fmt: skip
    try:
        batch = {0: torch.export.Dim.AUTO}
        program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
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
        elif node.op == "call_function":
            building.made[node] = building.stand_in(node)
        elif node.op == "placeholder":
            building.made[node] = building.images
        else:
            building.graph.output(building.made[node.all_input_nodes[0]])
    building.graph.eliminate_dead_code()
    nodes = [node for node in building.graph.nodes if "shape" in node.meta]
    for node in building.graph.nodes:  # done with: weights from before they were made one
        for name in ("known", "numbers"):
            node.meta.pop(name, None)
    return fx.GraphModule(building.root, building.graph), nodes


_BATCH = 2
"""Pictures of the traced batch."""


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
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.made.__getitem__)
        if isinstance(value, torch.SymInt):
            times = int(value) // _BATCH
            return self.count if times == 1 else self.add(operator.mul, (self.count, times))
        if name.startswith("new_"):
            args = (self.like, *args[1:])
        if name in _NOTHING or name == "getitem":
            return args[0] if name in _NOTHING else args[0][args[1]]
        if not any(isinstance(n, fx.Node) for n in _flat((args, kwargs))):
            return node.target(*args, **kwargs)
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
        target = getattr(getattr(torch.ops.aten, name), node.target._overloadname)
        return self.add(target, args, kwargs, value, paths)

    def add(
        self, target: Any, args: tuple, kwargs: dict | None = None, value: Any = None,
        paths: Sequence[str] = ("",),
    ) -> Node:  # fmt: skip
        """A new node; ``value`` has the shape of what it makes."""
        args, kwargs = torch.utils._pytree.tree_map_only(
            Tensor, self.constant, (args, kwargs or {})
        )
        name = target.__name__.split(".")[0]
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        if value is None or not live_inputs(node):
            below = {n: n.meta["known"] for n in node.all_input_nodes if n is not self.images}
            node.meta["known"] = evaluate(node, below) if below else _BATCH
        else:
            shape = tuple(s if isinstance(s, int) else s.node.hint for s in value.shape)
            own = [not isinstance(s, int) for s in value.shape]
            node.meta["shape"] = shape
            channels = self.channels(node)
            fit = own[0] and shape[0] == _BATCH and not any(own[1:]) and len(shape) in (2, 3, 4)
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
        below = args[0].all_input_nodes[0]
        shape, weight = below.meta.get("shape", ()), args[1]
        flat = operation(args[0]) in ("flatten", "reshape") and below.meta.get("channels") == (1,)
        if not flat or len(shape) != 4 or weight.shape[1:] != (math.prod(shape[1:]),):
            return None
        if shape[2] * shape[3] == 1:
            return None
        kernel = weight.unflatten(1, shape[1:])
        made: Any = torch.ops.aten.conv2d.default, torch.ops.aten.flatten.using_ints
        conv = self.add(made[0], (below, kernel, *args[2:]), None, value[..., None, None], paths)
        return self.add(made[1], (conv, 1), None, value, paths)

    def channels(self, node: Node) -> tuple[int, ...]:
        """The dimensions of a node's value that are its channels'."""
        name, size = operation(node), len(node.meta["shape"])
        inputs = live_inputs(node)
        if name in ("conv2d", "batch_norm", "group_norm", "instance_norm") or "pool2d" in name:
            return (1,)
        if name in ("linear", "layer_norm", "rms_norm"):
            return (size - 1,)
        if name in ("matmul", "bmm", "scaled_dot_product_attention"):
            return inputs[-1].meta["channels"]
        if name not in (*MOVES, "mean"):
            return max(inputs, key=lambda n: math.prod(n.meta["shape"])).meta["channels"]
        # Numbered along its channels, a value tells where they go, even through a dimension that
        # pictures and channels share.
        values: dict[Node, Any] = {n: n.meta.get("known") for n in node.all_input_nodes}
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
        return tuple(d for d, (a, b) in enumerate(steps) if ((a != b) & (a * b != 0)).any())


def _flat(values: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(values)


# ---------------------------------------------------------------------------- loading


def load_network(
    name: str = "resnet50", weights: str = "auto", device: str | torch.device | None = None
) -> Network:
    """Load a pretrained network; section 4 takes ResNet-50.

    Parameters
    ----------
    name
        A model of torchvision, such as ``"resnet50"`` or ``"vit_b_16"``, ``"efficientnet_lite0"``,
        or ``"timm/…"``, a model of timm.
    weights
        ``"auto"``, or a source; see :func:`gig_helpers.data.weights.weights`.
    device
        ``None``: CUDA where there is a GPU, else the CPU.

    Raises
    ------
    ValueError
        If the name or the source of weights is unknown.
    gig_helpers.data.weights.AssetUnavailable
        If no weights can be had.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> made = torchvision.models.resnet18().state_dict()  # in place of a download
    >>> with patch(f"{__name__}.pretrained.weights", return_value=(made, "torchvision")):
    ...     load_network("resnet18", device="cpu")
    Network(resnet18, weights: torchvision, basic, cpu)
    """
    preprocessing = pretrained.preprocessing(name)
    state, source = pretrained.weights(name, weights)
    if name in torchvision.models.list_models():
        model = torchvision.models.get_model(name, weights=None)
    else:
        import timm  # a second of importing

        model = timm.create_model(pretrained.timm_name(name))
    if source == "keras":
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    # Converted weights carry no counts of training batches, which evaluation never reads, and
    # torchvision's those of heads that are for training.
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit {name}: missing {missing}, unexpected {unexpected}")
    size = (preprocessing.size, preprocessing.size)
    return Network(
        model, name, source, device, input_size=size, classes=class_names(),
        preprocessing=preprocessing,
    )  # fmt: skip
