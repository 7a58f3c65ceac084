"""An image classifier as named blocks: pre-activations, the network between two, the logits.

The model is traced once, by ``torch.export``, into a graph (``torch.fx``) of PyTorch's own
operations. A *cut point* is a node of it through which everything flows, and a block is a named cut
point: in a ResNet the input of a block's last ReLU, the sum of the main branch and the shortcut. A
point-wise feature vector (PFV; section 3.1) is that tensor's channel vector at one position. A
:class:`Segment` is all that lies between two blocks, PFVs in, PFVs out.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from . import checks, cuts
from .data import artifacts
from .data import weights as pretrained
from .data.pictures import class_names
from .data.weights import Preprocessing
from .traced import ACTIVATIONS, Node, arguments, evaluate, live_inputs, operation, pair

_OF_EACH_CLASS = ACTIVATIONS | {"flatten", "reshape", "squeeze", "mean", "clone", "contiguous"}
"""What may follow a classifier's last layer, beside pooling: it mixes and moves no classes."""


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in all of float32's digits, in a ``with`` or as a decorator; not in the paper.

    TensorFloat-32, a GPU's default, keeps 10 bits of a convolution's inputs: sums would not add up.
    The backward pass asks for it anew. What the process had set is set again afterwards.

    Examples
    --------
    >>> before = torch.backends.cudnn.allow_tf32
    >>> with exact_convolutions():
    ...     torch.backends.cudnn.allow_tf32
    False
    >>> torch.backends.cudnn.allow_tf32 == before
    True
    """
    cudnn: Any = torch.backends.cudnn
    # The older of PyTorch's two settings cannot be read where a reader has made the newer one, and
    # the newer alone makes it unreadable for others.
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = False
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.allow_tf32 = before[0] == "tf32"
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


class Segment:
    """All that lies between two blocks of a network; made by :meth:`Network.segment`.

    Called with PFVs, it is F_ab of section 3.3, or gives logits. It looks for no NaN, which in a
    loop would make a GPU wait each time.

    Parameters
    ----------
    network, source, target
        As in :meth:`Network.segment`.

    Attributes
    ----------
    source, target
        Names of the two blocks; ``None``: the logits.
    channels, target_channels
        C of either block; of the logits the number of classes.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu", input_size=(64, 64))
    >>> segment = network.segment("layer2.0", "layer3.1")
    >>> segment.channels, segment.target_channels, segment(torch.zeros(1, 64, 128)).shape
    (128, 256, torch.Size([1, 16, 256]))
    """

    def __init__(self, network: "Network", source: str, target: str | None = None):
        self._network, self._graph = network, network._between(source, target)
        self.source, self.target = source, target
        self.channels = network.channels(source)
        self.target_channels = network.n_classes if target is None else network.channels(target)

    @exact_convolutions()
    def __call__(self, x: Tensor) -> Tensor:
        """PFVs of the target, or logits, from those of the source; differentiable.

        Parameters
        ----------
        x
            (B, P, C_a), row by row.

        Returns
        -------
        Tensor
            (B, P_b, C_b), or (B, classes).

        Raises
        ------
        ValueError
            If no map of the network's shape has so many positions.
        """
        y = self._graph(self._network.arranged(x, self.source))
        return y if self.target is None else self._network.positions(y, self.target)


class Network:
    """A frozen image classifier whose blocks are addressed by name (section 3.1).

    Parameters
    ----------
    model
        A module that maps pictures (N, channels, H, W) to one tensor of logits (N, classes), each
        picture by itself, and that ``torch.export`` can trace: of torchvision, timm, or one's own.
        It is copied, so that its weights are in memory twice, and left as it is; a copy in half
        precision becomes float32. ``DataParallel`` and ``torch.compile`` are unwrapped.
        :mod:`gig_helpers.checks` tries it on random pictures.
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
        Rows and columns that the model is traced with, or channels, rows and columns; by default
        what the model says of itself, else 224 × 224. Channels that are not given are found by
        trying 3, 1, and what its convolutions take.
    classes
        Names of the classes; by default "class 0" and so on.
    preprocessing
        How pictures are made ready for it; by default what a model of timm says of itself, else as
        ImageNet's are, of the input size, and grey for one channel.
    output
        Where the model gives several outputs, which are its logits: a key or attribute
        (``"logits"``), an index, or a function of the output. What holds one tensor alone, as an
        object of Hugging Face's with ``logits``, needs none.

    Attributes
    ----------
    dtype
        Of what it computes with: float32, or of a model in float64 that.
    n_classes
        How many logits the model has.

    Raises
    ------
    TypeError
        If the model is no module, cannot be traced, gives no logits of each picture, or others
        than its graph. The message says what to do.
    KeyError
        If a name in ``blocks`` is no cut point, or the model has no such output.
    ValueError
        If there is not one name per class, or no value to be a block by default.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu", input_size=(64, 64))
    >>> images = torch.zeros(1, 3, 64, 64)
    >>> network.checked(images).shape, network.logits(images).shape, network.classes[3]
    (torch.Size([1, 3, 64, 64]), torch.Size([1, 5]), 'class 3')
    >>> x, last = network.preactivations(images, ["layer2.0", "layer4.1"]).values()
    >>> x.shape, network.channels("layer2.0"), network.map_size("layer2.0")
    (torch.Size([1, 128, 8, 8]), 128, (8, 8))
    >>> torch.allclose(network.between(x, "layer2.0", "layer4.1"), last, atol=1e-4)
    True
    >>> flat = network.positions(x, "layer2.0")
    >>> torch.equal(network.logits_from(x, "layer2.0"), network.segment("layer2.0")(flat))
    True
    >>> flat.shape, torch.equal(network.arranged(flat, "layer2.0"), x)
    (torch.Size([1, 64, 128]), True)
    >>> network.own_size("layer2.0"), network.placeless("layer2.0")
    ((8, 8), 0)
    >>> network.index("layer2.0"), network.n_classes, network.dtype
    (2, 5, torch.float32)
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
        input_size: Sequence[int] | None = None, classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None, output: checks.Output = None,
    ):  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model = checks.own_copy(model).to(self.device)
        self.name, self.weights = name or type(model).__name__.lower(), weights
        # torchvision's ViT tells its size, a model of timm all there is.
        told: dict[str, Any] = {"input_size": pair(getattr(model, "image_size", 224))}
        told |= getattr(model, "default_cfg", None) or {}
        size = tuple(input_size or told["input_size"][-2:])
        counts = [3, 1, *(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))]
        with exact_convolutions():
            images, given = checks.tried(
                model, [size] if len(size) == 3 else [(n, *size) for n in dict.fromkeys(counts)]
            )
            logits = checks.logits_alone(model, given, output)
            self.program, self._live = checks.traced(model, images, logits)
        self.dtype, self.input_size = images.dtype, pair(size[-2:])
        ready = Preprocessing.of(told | {"input_size": size})
        if images.shape[1] == 1:  # ImageNet's means are of three channels
            ready = ready._replace(mean=(fmean(ready.mean),), std=(fmean(ready.std),))
        self.preprocessing = preprocessing or ready
        self.n_classes: int = self._live[-1].meta["shape"][-1]
        self.classes = tuple(classes or (f"class {n}" for n in range(self.n_classes)))
        if len(self.classes) != self.n_classes:
            raise ValueError(f"{len(self.classes)} names for {self.n_classes} classes")
        self._placed = cuts.places(self.program)
        self._given, self._block = blocks, cuts.named_blocks(self._live, blocks, self._placed)
        self.blocks: tuple[str, ...] = tuple(self._block)
        self._graphs: dict[tuple[Node, Node], fx.GraphModule] = {}
        self._sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"Network({self.name}, weights: {self.weights}, {self.version}, {self.device})"

    def double(self) -> "Network":
        """The same network in float64, in which sums agree to more digits; not in the paper."""
        return Network(
            copy.deepcopy(self.model).double(), self.name, self.weights, self.device,
            blocks=self._given, input_size=self._live[0].meta["shape"][1:], classes=self.classes,
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
        """Hash of the architecture, of the graph's operations, and of every weight and constant."""
        own, graph = self.model.state_dict(), self.program.meta
        values = artifacts.fingerprint([own, graph["constants"]])
        return artifacts.key("network", [f"{self.model}", values, graph["operations"]])

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
            If no linear layer makes the logits.
        """
        node = self._live[-1]
        while operation(node) in _OF_EACH_CLASS or "pool2d" in operation(node):
            node = live_inputs(node)[0]
        if operation(node) in ("linear", "conv2d"):
            weight = self.program.get_buffer(arguments(node)["weight"].target).flatten(1)
            if len(weight) == self.n_classes:
                return weight
        raise TypeError(
            f"{self.name} has no class vectors, for {operation(node)} makes its logits: end the "
            f"model in nn.Linear(C, {self.n_classes}), or use logits_from and gradients"
        )

    def shift(self, block: str) -> Tensor | None:
        """β (C,), the net shift of batch normalisation (eq. 9; μ_BN of eq. 8).

        A block's pre-activation is a sum, for which the paper defines no shift. Taken here: the
        shift of the main branch's last BN, plus that of the shortcut's BN where there is one.
        ``None`` where no batch norm enters: the mean PFV can stand in for it.
        """
        node, shifts = self.node(block), []
        for part in node.all_input_nodes if operation(node) == "add" else [node]:
            if "norm" in part.meta:
                shifts.append(self.program.get_buffer(arguments(part)["bias"].target))
            elif operation(part) == "batch_norm":  # the norm of nothing is its shift
                nothing = {n: self.value(n, {}, 1) for n in part.all_input_nodes[1:]}
                x = torch.zeros_like(nothing[arguments(part)["running_mean"]])[None, :, None, None]
                shifts.append(evaluate(part, {part.args[0]: x, **nothing}).flatten())
        return torch.stack(shifts).sum(0) if shifts else None

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

    @exact_convolutions()
    def preactivations(
        self, images: Tensor, blocks: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """Pre-activations of some blocks, by default of all.

        Parameters
        ----------
        images
            Normalised pictures (N, channels, H, W).

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
            If the pictures do not have this shape or hold NaN.
        """
        x, below, at = self.checked(images), self._live[0], dict[str, Tensor]()
        for name in sorted(self.blocks if blocks is None else set(blocks), key=self.index):
            x, below = self._graph(below, self._block[name])(x), self._block[name]
            at[name] = x
        return at

    def segment(self, source: str, target: str | None = None) -> Segment:
        """F_ab of section 3.3, of PFVs in rows: what runs in loops between two blocks.

        Parameters
        ----------
        target
            By default the logits.

        Raises
        ------
        KeyError
            If a block is unknown.
        ValueError
            If ``target`` does not come after ``source``.
        """
        return Segment(self, source, target)

    @exact_convolutions()
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
        return self._between(source, target)(self.checked(x, source))

    @exact_convolutions()
    def logits_from(self, x: Tensor, block: str) -> Tensor:
        """Logits (N, classes) from a block's pre-activation (N, C, H, W); differentiable.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If ``x`` has the wrong shape.
        """
        return self._between(block, None)(self.checked(x, block))

    @exact_convolutions()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised pictures (N, channels, H, W)."""
        return self.model(self.checked(images))

    def checked(self, x: Tensor, block: str | None = None) -> Tensor:
        """Pictures, or a block's pre-activations, on the network's device and of its ``dtype``.

        Raises
        ------
        ValueError
            If they do not have the shape (N, C, H, W), are integers, or hold NaN or infinite
            values.
        """
        node = self._live[0] if block is None else self.node(block)
        (channel,), shape, what = node.meta["channels"], node.meta["shape"], block or "pictures"
        if x.ndim != len(shape) or x.shape[channel] != shape[channel]:
            names = ["N", "H", "W"] if len(shape) == 4 else ["N", "P"][: len(shape) - 1]
            names.insert(channel, str(shape[channel]))
            raise ValueError(f"{what}: expected ({', '.join(names)}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{what}: expected floating-point numbers, got {x.dtype}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{what}: the input holds NaN or infinite values")
        return x.to(self.device, self.dtype)

    def nodes(self, source: Node | None, target: Node | None) -> list[Node]:
        """The nodes that lead from one cut point, by default the pictures, to another, the logits.

        The first is the source, the last the target. Constants are among them, and the number of
        pictures, which is made anew of the source.
        """
        source, target = source or self._live[0], target or self._live[-1]
        leading, todo = {source}, [target]
        while todo:
            if (node := todo.pop()) not in leading:
                leading.add(node)
                todo += [] if operation(node) == "sym_size" else node.all_input_nodes
        return [source, *(n for n in self.program.graph.nodes if n in leading and n != source)]

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

    def _between(self, source: str, target: str | None) -> fx.GraphModule:
        if target is not None and self.index(target) <= self.index(source):
            raise ValueError(f"target {target} must come after source {source}")
        start, end = self.node(source), self._live[-1] if target is None else self.node(target)
        return self._graph(start, end)

    def _graph(self, source: Node, target: Node) -> fx.GraphModule:
        """The graph between two cut points as a module; values are freed after their last use."""
        if (source, target) not in self._graphs:
            graph = fx.Graph()
            copies = {source: graph.placeholder("x")}
            for node in self.nodes(source, target)[1:]:
                if operation(node) == "sym_size":
                    copies[node] = graph.call_function(node.target, (copies[source], 0))
                else:
                    copies[node] = graph.node_copy(node, copies.__getitem__)
            graph.output(copies[target])
            self._graphs[source, target] = fx.GraphModule(self.program, graph)
        return self._graphs[source, target]

    def without(self, block: str, directions: Tensor, beta: Tensor) -> nn.Sequential:
        """The network without some directions of a block: a repair that needs no codes.

        x − V̂V̂ᵀ(x − β) at every position, an affine map of channels: a 1×1 convolution, or where
        channels lie last a linear layer, between the graphs below and above the block. Nothing of
        this package is in the result, which ``torch.export`` takes as any other.
        Not in the paper.

        Parameters
        ----------
        directions
            (m, C), of any lengths; what they span is taken out.
        beta
            (C,), where "nothing" lies, such as a block's ``concepts.beta``.

        Returns
        -------
        torch.nn.Sequential
            Below, projection, above: from normalised pictures (N, 3, H, W) to logits (N, classes).
            A copy, which shares no weights.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If directions and β do not have the block's channels.

        Examples
        --------
        >>> from torchvision.models import resnet18
        >>> network, images = Network(resnet18(), device="cpu"), torch.randn(1, 3, 64, 64)
        >>> repaired = network.without("layer4.1", torch.eye(512)[:2], torch.zeros(512))
        >>> repaired(images).shape, [type(part).__name__ for part in repaired]
        (torch.Size([1, 1000]), ['GraphModule', 'Conv2d', 'GraphModule'])
        """
        node, channels = self.node(block), self.channels(block)
        if directions.shape[1:] != (channels,) or beta.shape != (channels,):
            raise ValueError(
                f"{block} has {channels} channels: expected directions (m, C) and beta (C,), got "
                f"{tuple(directions.shape)} and {tuple(beta.shape)}"
            )
        # In float64, and by SVD: families' directions may be nearly alike.
        _, sizes, rows = torch.linalg.svd(directions.double(), full_matrices=False)
        basis = rows[sizes > 1e-6 * sizes.amax()]
        out = basis.T @ basis
        last = node.meta["channels"] != (1,) or len(node.meta["shape"]) == 2
        layer: Any = nn.Linear(channels, channels) if last else nn.Conv2d(channels, channels, 1)
        weight = torch.eye(channels).to(out) - out
        layer.weight.data = weight.reshape(layer.weight.shape)
        layer.bias.data = out @ beta.to(out)
        above = self._between(block, None)
        parts = self._graph(self._live[0], node), layer, above
        repaired = copy.deepcopy(nn.Sequential(*parts)).eval().requires_grad_(False)
        # As torch.export's files hold tensors.
        plain: Any = {"memory_format": torch.contiguous_format}
        return repaired.to(self.device, self.dtype, **plain)

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
                black = torch.zeros(1, self._live[0].meta["shape"][1], *size, dtype=self.dtype)
                shape = self.preactivations(black, [block])[block].shape
            self._sizes[block, size] = cuts.own_size(node, shape)
        return self._sizes[block, size]

    def map_size(self, block: str, image_size: Sequence[int] | None = None) -> tuple[int, int]:
        """Rows and columns of a block's places in pictures of this height and width.

        Tokens lie as the map lay that they were made of, behind the class tokens; see
        :meth:`placeless` and :func:`gig_helpers.cuts.places`.

        Parameters
        ----------
        image_size
            By default the network's input size.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If positions have no place in the picture, or do not lie there row by row.
        """
        own, size = self.own_size(block, image_size), self._placed.get(self.node(block))
        if size is not None and len(own) < 2:  # tokens: the map grows as the picture does
            grown = zip(size, image_size or self.input_size, self.input_size, strict=True)
            own, before = tuple(round(n * now / then) for n, now, then in grown), math.prod(own)
            alike = before - math.prod(own) == math.prod(self.own_size(block)) - math.prod(size)
            size = size if alike else None
        if size is None:
            raise ValueError(
                f"the positions of {block} have no known place in the picture: choose another of "
                "its cut points, in which they lie row by row"
            )
        return own[0], own[1]

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
        return cuts.receptive_field(self.nodes(None, self.node(block)))


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
    return Network(
        model, name, source, device, input_size=pair(preprocessing.size), classes=class_names(),
        preprocessing=preprocessing,
    )  # fmt: skip
