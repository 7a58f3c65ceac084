"""A ResNet as named blocks: pre-activations, the network between two blocks, logits from a block.

A block's pre-activation is the input of its last ReLU: the sum of the main branch and the
shortcut. A point-wise feature vector (PFV; section 3.1) is that tensor's channel vector at one
position.
"""

import copy
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from .data.weights import weights as pretrained


class Window(NamedTuple):
    """How a layer's kernel moves over its input (the receptive fields of section 3.1).

    Examples
    --------
    >>> Window.of(nn.Conv2d(3, 64, 7, stride=2, padding=3))
    Window(kernel=7, stride=2, padding=3, dilation=1)
    """

    kernel: int
    stride: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.MaxPool2d) -> "Window":
        """The window of a convolution or max-pooling, the same in both directions."""
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return cls(*(size if isinstance(size, int) else int(size[0]) for size in sizes))


class Network:
    """A frozen ResNet whose blocks are addressed by name (section 3.1).

    Parameters
    ----------
    model
        A torchvision ``ResNet``: basic or bottleneck blocks, any width and groups.
    name, weights
        For the provenance line: architecture, and where the weights come from.
    device
        ``None``: CUDA where there is a GPU, else the CPU.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> images = torch.zeros(1, 3, 64, 64)
    >>> network.checked(images).shape, network.logits(images).shape
    (torch.Size([1, 3, 64, 64]), torch.Size([1, 5]))
    >>> found = network.preactivations(images, ["layer2.0", "layer4.1"])
    >>> x = found["layer2.0"]
    >>> x.shape, network.channels("layer2.0"), network.map_size("layer2.0", (64, 64))
    (torch.Size([1, 128, 8, 8]), 128, (8, 8))
    >>> torch.allclose(network.between(x, "layer2.0", "layer4.1"), found["layer4.1"], atol=1e-4)
    True
    >>> torch.equal(network.logits_from(x, "layer2.0"), network.propagate(x, "layer2.0"))
    True
    >>> network.index("layer2.0"), network.span("layer2.0", "layer4.1")
    (2, (2, 7))
    >>> network.bn_shift("layer2.0").shape, network.receptive_field("layer1.0")
    (torch.Size([128]), (27, 4, -13))
    >>> type(network.block("layer2.0")).__name__, network.double().bn_shift("layer2.0").dtype
    ('BasicBlock', torch.float64)
    """

    def __init__(
        self, model: ResNet, name: str = "resnet", weights: str = "given",
        device: str | torch.device | None = None,
    ):  # fmt: skip
        if not isinstance(model, ResNet):
            raise TypeError(f"expected a torchvision ResNet, got {type(model).__name__}")
        self.name, self.weights = name, weights
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # TensorFloat-32 keeps 10 bits of a convolution's inputs: sums would not add up.
        torch.backends.cudnn.allow_tf32 = False
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.blocks: tuple[str, ...] = tuple(
            f"layer{stage}.{index}"
            for stage in (1, 2, 3, 4)
            for index in range(len(getattr(model, f"layer{stage}")))
        )

    def __repr__(self) -> str:
        return f"Network({self.name}, weights: {self.weights}, {self.version}, {self.device})"

    def double(self) -> "Network":
        """The same network in float64, in which sums agree to more digits; not in the paper."""
        model = copy.deepcopy(self.model).double()
        return Network(model, self.name, self.weights, self.device)

    @property
    def version(self) -> str:
        """``"v1"`` if a stage strides in its first 1×1 convolution, else ``"v1.5"``.

        Basic blocks have no such choice: ``"basic"``.
        """
        first = self.model.layer2[0]
        if isinstance(first, BasicBlock):
            return "basic"
        return "v1" if first.conv1.stride != (1, 1) else "v1.5"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the architecture and of every weight."""
        digest = hashlib.sha256(f"{self.model}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def block(self, name: str) -> BasicBlock | Bottleneck:
        """The torchvision module of a block.

        Raises
        ------
        KeyError
            If the network has no such block; the message lists those it has.
        """
        self.index(name)
        return self.model.get_submodule(name)

    @cached_property
    def fused(self) -> dict[nn.Module, nn.Conv2d]:
        """Each convolution with its batch norm as one convolution: weight s·W, bias the shift.

        Made once, at the first pass; a quarter of GIG's time less. Eq. 8 names the shift.
        """
        pairs = [(self.model.conv1, self.model.bn1)]
        for name in self.blocks:
            block = self.block(name)
            pairs += zip(*_branch(block), strict=True)
            if block.downsample is not None:
                pairs.append(tuple(block.downsample.children()))
        # Weights laid out channels last make a CPU convolve in that layout, in which it is fastest.
        layout = torch.channels_last if self.device.type == "cpu" else torch.preserve_format
        return {
            conv: fuse_conv_bn_eval(conv, bn).requires_grad_(False).to(memory_format=layout)
            for conv, bn in pairs
        }

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

    def channels(self, block: str) -> int:
        """Number of channels C of a block's PFVs."""
        return _branch(self.block(block))[0][-1].out_channels

    @property
    def class_vectors(self) -> Tensor:
        """Rows (classes, C) of the last layer's weight: the direction that a class is read from."""
        return self.model.fc.weight

    def bn_shift(self, block: str) -> Tensor:
        """Net shift of batch normalisation μ_BN (eq. 8), also β of eq. 9; shape (C,).

        A block's pre-activation is a sum, for which the paper defines no shift. Taken here: the
        shift of the main branch's last BN, plus that of the shortcut's BN where there is one.
        """
        module = self.block(block)
        ends = [_branch(module)[0][-1]]
        if module.downsample is not None:
            ends.append(module.downsample[0])
        return sum(self.fused[conv].bias for conv in ends)  # type: ignore[misc, return-value]

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
            ``{block: (N, C, H_block, W_block)}``, in the network's order.

        Raises
        ------
        KeyError
            If a block is unknown.
        ValueError
            If the pictures do not have the shape (N, 3, H, W) or hold NaN.
        """
        wanted = self.blocks if blocks is None else tuple(blocks)
        last = max(self.index(name) for name in wanted)
        x = self.model.maxpool(F.relu(self.fused[self.model.conv1](self.checked(images))))
        found: dict[str, Tensor] = {}
        for name in self.blocks[: last + 1]:
            x = self._preactivation(name, x)
            if name in wanted:
                found[name] = x
            x = F.relu(x)
        return found

    def between(self, x: Tensor, source: str, target: str) -> Tensor:
        """F_ab of section 3.3: pre-activation of ``source`` in, pre-activation of ``target`` out.

        It begins with the ReLU of ``source`` and ends before that of ``target``; differentiable.

        Parameters
        ----------
        x
            (N, C_a, H_a, W_a)

        Returns
        -------
        Tensor
            (N, C_b, H_b, W_b)

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
        for name in self.blocks[self.index(source) + 1 : stop]:
            x = self._preactivation(name, F.relu(x))
        return x if target else self.model.fc(F.relu(x).mean(dim=(2, 3)))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised pictures (N, 3, H, W)."""
        return self.model(self.checked(images))

    def _preactivation(self, name: str, x: Tensor) -> Tensor:
        """A block's pre-activation from its input, after the ReLU."""
        block = self.block(name)
        *before, last = _branch(block)[0]
        y = x
        for conv in before:
            y = F.relu(self.fused[conv](y))
        shortcut = x if block.downsample is None else self.fused[block.downsample[0]](x)
        return self.fused[last](y) + shortcut

    def checked(self, x: Tensor, block: str | None = None) -> Tensor:
        """Pictures, or a block's pre-activations, on the network's device.

        Raises
        ------
        ValueError
            If they do not have the shape (N, C, H, W), or hold NaN or infinite values.
        """
        channels, what = (3, "pictures") if block is None else (self.channels(block), block)
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{what}: expected (N, {channels}, H, W), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{what}: the input holds NaN or infinite values")
        return x.to(self.device)

    def map_size(self, block: str, image_size: tuple[int, int] = (224, 224)) -> tuple[int, int]:
        """Rows and columns of a block's map, for pictures of this height and width."""
        rows, columns = image_size
        for kernel, stride, padding, dilation in self._windows(block):
            reach = 2 * padding - dilation * (kernel - 1) - 1
            rows, columns = (rows + reach) // stride + 1, (columns + reach) // stride + 1
        return rows, columns

    def receptive_field(self, block: str) -> tuple[int, int, int]:
        """Theoretical receptive field of a block's positions: size, step and start, in pixels.

        Position p of a row or column sees the pixels from start + step · p on, size of them;
        the start is negative, and what lies outside of the picture is padding.
        """
        size, step, start = 1, 1, 0
        for kernel, stride, padding, dilation in self._windows(block):
            size += (kernel - 1) * dilation * step
            start -= padding * step
            step *= stride
        return size, step, start

    def _windows(self, block: str) -> list[Window]:
        """The window of each layer down to a block, along the branch."""
        stem = (self.model.conv1, self.model.maxpool)
        blocks = [self.block(name) for name in self.blocks[: self.index(block) + 1]]
        return [Window.of(layer) for layer in (*stem, *(c for b in blocks for c in _branch(b)[0]))]


def _branch(block: BasicBlock | Bottleneck) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
    """Convolutions and batch norms of a block's main branch, in order."""
    parts = list(block.children())
    convs = [part for part in parts if isinstance(part, nn.Conv2d)]
    return convs, [part for part in parts if isinstance(part, nn.BatchNorm2d)]


def load_network(
    name: str = "resnet50", weights: str = "auto", device: str | torch.device | None = None
) -> Network:
    """Load a pretrained ResNet; section 4 takes ResNet-50.

    Parameters
    ----------
    name
        ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"``, ``"resnet152"``, or one
        of torchvision's wide and grouped ones.
    weights
        ``"auto"``, ``"torchvision"`` or ``"keras"``; see :func:`gig_helpers.data.weights.weights`.
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
    >>> with patch(f"{__name__}.pretrained", return_value=(made, "torchvision")):
    ...     load_network("resnet18", device="cpu")
    Network(resnet18, weights: torchvision, basic, cpu)
    """
    known: Sequence[str] = [n for n in torchvision.models.list_models() if "resne" in n]
    if name not in known:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(known)}")
    state, source = pretrained(name, weights)
    model = torchvision.models.get_model(name, weights=None)
    if source == "keras":
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    # Converted weights carry no counts of training batches, which evaluation never reads.
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit {name}: missing {missing}, unexpected {unexpected}")
    return Network(model, name, source, device)
