"""An image classifier as named blocks: pre-activations, the network between two, the logits.

The model is traced once, by ``torch.export``, into a graph (``torch.fx``) of PyTorch's own
operations. A *cut point* is a node of it through which everything flows, and a block is a named cut
point: in a ResNet the input of a block's last ReLU, the sum of the main branch and the shortcut. A
point-wise feature vector (PFV; section 3.1) is that tensor's channel vector at one position.
"""

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from .data import weights as pretrained
from .data.pictures import class_names
from .data.weights import Preprocessing
from .traced import (
    ACTIVATIONS,
    MOVES,
    Node,
    Window,
    arguments,
    evaluate,
    live_inputs,
    operation,
    pair,
    trace,
)


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
        If there is not one name per class.

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
    >>> network.node("layer2.0").name, network.double().shift("layer2.0").dtype
    ('add_2', torch.float64)
    >>> [node.name for node in network.nodes(network.node("layer4.1"), None)][1:3]
    ['relu_16', 'adaptive_avg_pool2d']
    """

    def __init__(
        self, model: nn.Module, name: str = "", weights: str = "given",
        device: str | torch.device | None = None, *, blocks: Sequence[str] | None = None,
        input_size: tuple[int, int] | None = None, classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ):  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
        self.name, self.weights = name or type(model).__name__.lower(), weights
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # TensorFloat-32 keeps 10 bits of a convolution's inputs: sums would not add up.
        torch.backends.cudnn.allow_tf32 = False
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.preprocessing = preprocessing or Preprocessing()
        self.input_size = input_size or _own_input_size(model)
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
        """β (C,), the net shift of batch normalisation (eq. 9; μ_BN of eq. 8).

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

        Examples
        --------
        >>> small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        >>> Network(small, device="cpu", input_size=(3, 3), blocks=["0"]).bn_shift("0").shape
        torch.Size([4])
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
        """A node's value from its inputs' values, in a batch of so many pictures.

        Examples
        --------
        >>> network = Network(nn.Sequential(nn.ReLU(), nn.Flatten()), device="cpu", blocks=[])
        >>> x, relu, _ = network.nodes(None, None)
        >>> network.value(relu, {x: torch.tensor([-1.0, 2.0])}, 1)
        tensor([0., 2.])
        """
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


def _own(shape: Sequence[int], node: Node) -> tuple[int, ...]:
    return tuple(s for d, s in enumerate(shape) if d not in (0, *node.meta["channels"]))


def _name(node: Node) -> str:
    return node.meta["paths"][0] or node.name


def _own_input_size(model: nn.Module) -> tuple[int, int]:
    told = getattr(model, "default_cfg", {}).get("input_size")  # timm
    return pair(told[-2:] if told else getattr(model, "image_size", 224))  # torchvision's ViT


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
    model: Any = pretrained.architecture(name)
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
