"""A ResNet as named blocks: pre-activations, the network between two blocks, logits from a block.

A block's pre-activation is the input of its last ReLU: the sum of the main branch and the
shortcut. A point-wise feature vector (PFV; section 3.1) is that tensor's channel vector at one
position.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from . import assets


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
    """

    def __init__(
        self,
        model: ResNet,
        name: str = "resnet",
        weights: str = "given",
        device: str | torch.device | None = None,
    ):
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
        last = [part for part in self.block(block).children() if isinstance(part, nn.BatchNorm2d)]
        return last[-1].num_features

    def bn_shift(self, block: str) -> Tensor:
        """Net shift of batch normalisation μ_BN (eq. 8), also β of eq. 9; shape (C,).

        A block's pre-activation is a sum, for which the paper defines no shift. Taken here: the
        shift of the main branch's last BN, plus that of the shortcut's BN where there is one.
        """
        module = self.block(block)
        last = (
            (module.conv3, module.bn3)
            if isinstance(module, Bottleneck)
            else (module.conv2, module.bn2)
        )
        _, shift = folded(*last)
        if module.downsample is not None:
            shift = shift + folded(*module.downsample)[1]
        return shift

    def stem(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) to the input of the first block."""
        model = self.model
        return model.maxpool(F.relu(model.bn1(model.conv1(images))))

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
        x = self.stem(self.checked(images))
        found: dict[str, Tensor] = {}
        for name in self.blocks[: last + 1]:
            x = _preactivation(self.block(name), x)
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
        start, stop = self.span(source, target)
        return self._through(self.checked(x, source), start + 1, stop + 1)

    def logits_from(self, x: Tensor, block: str) -> Tensor:
        """Logits (N, classes) from a block's pre-activation (N, C, H, W); differentiable.

        Raises
        ------
        KeyError
            If the block is unknown.
        ValueError
            If ``x`` has the wrong shape.
        """
        start = self.index(block)
        x = self.checked(x, block)
        if start + 1 < len(self.blocks):
            x = self._through(x, start + 1, len(self.blocks))
        return self.model.fc(F.relu(x).mean(dim=(2, 3)))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised pictures (N, 3, H, W)."""
        return self.model(self.checked(images))

    def _through(self, x: Tensor, start: int, stop: int) -> Tensor:
        for name in self.blocks[start:stop]:
            x = _preactivation(self.block(name), F.relu(x))
        return x

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

    def _windows(self, block: str) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, padding and dilation of each layer down to a block, along the branch."""
        stem = [self.model.conv1, self.model.maxpool]
        blocks = [self.block(name) for name in self.blocks[: self.index(block) + 1]]
        convs = [part for b in blocks for part in b.children() if isinstance(part, nn.Conv2d)]
        return [
            (_one(x.kernel_size), _one(x.stride), _one(x.padding), _one(x.dilation))
            for x in (*stem, *convs)
        ]


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
        ``"auto"``, ``"torchvision"`` or ``"keras"``; see :func:`gig_helpers.assets.weights`.
    device
        ``None``: CUDA where there is a GPU, else the CPU.

    Raises
    ------
    ValueError
        If the name or the source of weights is unknown.
    gig_helpers.assets.AssetUnavailable
        If no weights can be had.
    """
    known: Sequence[str] = [n for n in torchvision.models.list_models() if "resne" in n]
    if name not in known:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(known)}")
    state, source = assets.weights(name, weights)
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


def _preactivation(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    y = F.relu(_conv_bn(block.conv1, block.bn1, x))
    if isinstance(block, Bottleneck):
        y = F.relu(_conv_bn(block.conv2, block.bn2, y))
        y = _conv_bn(block.conv3, block.bn3, y)
    else:
        y = _conv_bn(block.conv2, block.bn2, y)
    if block.downsample is None:
        return y + x
    conv, bn = block.downsample.children()
    return y + _conv_bn(conv, bn, x)


def _conv_bn(conv: Any, bn: Any, x: Tensor) -> Tensor:
    """Convolution and batch norm as one convolution: a quarter of GIG's time less."""
    weight, shift = folded(conv, bn)
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _one(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight s·W (C, C_in, k, k) and shift (C,) of one convolution that does both (eq. 8)."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return conv.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale
