"""Sharing Ratio Decomposition (Han et al., ICLR 2024): contributions and iERFs, exact and batched.

A PFV v_j is a sum of parts v̂_{i→j}, one for each position i of the layer below. Position i's share
of it is the sharing ratio μ_{i→j} = ⟨v̂_{i→j}, v_j⟩ / ‖v_j‖², so that Σ_i μ_{i→j} = 1. Relevance
goes down by R_i = Σ_j μ_{i→j} R_j.

The ratios do not depend on R. So one forward pass writes them all down, a single number for each
output position and kernel offset of a layer; after that a relevance map, or any number of them,
goes down to the pixels without touching a channel again. Two facts make the forward pass cheap:
a 1×1 convolution has one part, which is the whole, and in a k×k one the part at offset o is a
1×1 convolution of the shifted input, k² of which cost what the k×k one costs.

The paper uses it in section 3.1 and writes the shift of a batch norm in eq. 8. The rules are exact,
with one choice. BN's shift b is shared among the kernel's positions in
proportion to the norm of what each brings; padding brings nothing; 0/0 is 0. In a residual sum
the target v is the sum: the main branch and a downsample shortcut have a shift each, the identity
shortcut has none. Max-pooling selects, for each channel, one of 9 positions. It is fused with the
1×1 convolutions that follow it in a bottleneck network: the parts of their outputs are what the 9
positions bring. A network of basic blocks has a 3×3 convolution there, which would make 81 parts;
there the pooled vector is a target of its own, and its parts are its channels from each position.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from .network import Network, Window

PIXELS = "pixels"
"""Name of the lowest level in :func:`contributions`, below every block."""


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def contributions(
    network: Network, images: Tensor, blocks: Iterable[str] | None = None,
    classes: Tensor | Sequence[int] | None = None, batch_size: int = 8,
) -> dict[str, Tensor]:  # fmt: skip
    """Contribution of every PFV to a class's logit, at all blocks in one sweep (SRD; appendix C).

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    blocks
        Names of blocks, and ``"pixels"``; by default every block. The lowest sets the cost.
    classes
        A class a picture (N,); by default the predicted one.
    batch_size
        Pictures worked on at a time. It bounds the memory, and changes nothing else.

    Returns
    -------
    dict
        ``{block: (N, H_block, W_block)}`` in the network's order, pixels first: signed relevance of
        the positions of the block's output. Each map sums to the logit, up to what ends in padding
        or in vectors that are zero.

    Raises
    ------
    KeyError
        If a block is unknown.
    ValueError
        If the pictures do not have the shape (N, 3, H, W) or hold NaN, if there are none, if there
        is not one class a picture, if a class does not exist, or if ``batch_size`` is below 1.
    TypeError
        If the classes are not integers.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(), device="cpu"), torch.rand(1, 3, 64, 64)
    >>> relevance = contributions(network, images, ["layer3.0"])["layer3.0"]
    >>> logit = network.logits(images).max()
    >>> relevance.shape, bool((relevance.sum() - logit).abs() < 0.01 * logit.abs())
    (torch.Size([1, 4, 4]), True)
    """
    levels = (PIXELS, *network.blocks)
    wanted = list(network.blocks if blocks is None else blocks)
    for name in wanted:
        if name != PIXELS:
            network.index(name)
    if not wanted:
        return {}
    lowest = min(levels.index(name) for name in wanted)
    images = _checked_images(network, images, batch_size)
    if classes is not None:
        classes = _checked_classes(network, classes, len(images))
    maps: dict[str, list[Tensor]] = {name: [] for name in levels if name in wanted}
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        steps, x = _forward(network, chunk, network.blocks[lowest:])
        x, fc = F.relu(x), network.model.fc
        chosen = fc(x.mean(dim=(2, 3))).argmax(1)
        if classes is not None:
            chosen = classes[start : start + batch_size]
        split = torch.einsum("nchw,nc->nhw", x, fc.weight[chosen]) + fc.bias[chosen, None, None]
        relevance = (split / (x.shape[2] * x.shape[3]))[:, None]
        for level in reversed(levels[lowest:]):
            if level in maps:
                maps[level].append(relevance[:, 0])
            if level in steps:
                relevance = steps[level](relevance)
    return {name: torch.cat(found) for name, found in maps.items()}


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def ierf(
    network: Network, images: Tensor, block: str, positions: Tensor, batch_size: int = 8
) -> Tensor:
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
        Integers (N, 2), row and column of one PFV a picture; or (N, P, 2), P of them.
    batch_size
        Pictures worked on at a time. It bounds the memory, and changes nothing else.

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
        a position lies outside of the block's map, or ``batch_size`` is below 1.
    TypeError
        If the positions are not integers.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(), device="cpu"), torch.rand(1, 3, 64, 64)
    >>> field = ierf(network, images, "layer1.1", torch.tensor([[8, 8]]))
    >>> field.shape, round(field.sum().item(), 3), field[0, :8].any().item()  # nothing from afar
    (torch.Size([1, 64, 64]), 1.0, False)
    """
    stop = network.index(block) + 1
    images = _checked_images(network, images, batch_size)
    count, _, *size = images.shape
    places = _checked_positions(network, block, positions, count, (size[0], size[1]))
    per_image = places.shape[1]

    window = [_crop_edge(edge, *network.receptive_field(block)[:2]) for edge in size]
    cropped = per_image * window[0] * window[1] < size[0] * size[1]
    if cropped:
        # One crop a PFV; as many at a time as have the area of batch_size pictures.
        owner = [i for i in range(count) for _ in range(per_image)]
        corners, places = _corners(network, block, places.reshape(-1, 1, 2), size, window)
        batch_size = batch_size * size[0] * size[1] // (window[0] * window[1])
    else:
        owner, corners, window = list(range(count)), places.new_zeros(count, 2), size

    found = images.new_zeros(len(owner), places.shape[1], *size)
    for start in range(0, len(owner), batch_size):
        here = slice(start, start + batch_size)
        views = [
            (..., slice(top, top + window[0]), slice(left, left + window[1]))
            for top, left in corners[here].tolist()
        ]
        chunk = torch.stack([images[i][v] for i, v in zip(owner[here], views, strict=True)])
        steps, x = _forward(network, chunk, network.blocks[:stop])
        row, column = places[here].unbind(-1)
        relevance = x.new_zeros(*row.shape, *x.shape[2:])
        n, p = torch.arange(row.shape[0])[:, None], torch.arange(row.shape[1])
        relevance[n, p, row, column] = 1
        for step in reversed(steps.values()):
            relevance = step(relevance)
        for index, view in enumerate(views):
            found[start + index][view] = relevance[index]
    return found.reshape(count, per_image, *size).reshape(*positions.shape[:-1], *size)


# ---------------------------------------------------------------------------- the forward pass


def _offsets(window: Window) -> Iterator[tuple[int, int]]:
    steps = range(0, window.kernel * window.dilation, window.dilation)
    return product(steps, steps)


def _seen(window: Window, padded: Tensor, offset: tuple[int, int], size: tuple[int, ...]) -> Tensor:
    """View of what each of ``size`` output positions sees at this offset."""
    rows, columns = (
        slice(first, first + window.stride * (count - 1) + 1, window.stride)
        for first, count in zip(offset, size, strict=True)
    )
    return padded[..., rows, columns]


@dataclass(frozen=True)
class _Layer:
    """A convolution and its BN as one: v = conv(x, weight) + shift, with weight = s·W."""

    weight: Tensor
    shift: Tensor
    window: Window
    groups: int

    @classmethod
    def of(cls, fused: nn.Conv2d) -> "_Layer":
        assert fused.bias is not None
        return cls(fused.weight, fused.bias, Window.of(fused), fused.groups)

    def linear(self, x: Tensor) -> Tensor:
        _, stride, padding, dilation = self.window
        return F.conv2d(x, self.weight, None, stride, padding, dilation, self.groups)

    def parts(self, x: Tensor, size: tuple[int, ...]) -> Iterator[Tensor]:
        """What each kernel offset brings to the output, before the shift."""
        padded = F.pad(x, [self.window.padding] * 4)
        taps = self.weight.flatten(2).unbind(2)
        for offset, tap in zip(_offsets(self.window), taps, strict=True):
            seen = _seen(self.window, padded, offset, size)
            yield F.conv2d(seen, tap[:, :, None, None], groups=self.groups)


@dataclass(frozen=True)
class _Shares:
    """A layer's sharing ratios (N, kernel², H, W): shares[n, o, j] of the position at offset o."""

    ratios: Tensor
    window: Window
    input_size: tuple[int, ...]

    def __call__(self, relevance: Tensor) -> Tensor:
        """R_i = Σ_j μ_{i→j} R_j: maps (N, P, H, W) of the output to maps of the input."""
        size, pad = relevance.shape[2:], self.window.padding
        if self.window.kernel == self.window.stride == 1:
            return self.ratios * relevance
        rows, columns = self.input_size
        below = relevance.new_zeros(*relevance.shape[:2], rows + 2 * pad, columns + 2 * pad)
        for offset, ratio in zip(_offsets(self.window), self.ratios.unbind(1), strict=True):
            _seen(self.window, below, offset, size).addcmul_(ratio[:, None], relevance)
        return below[..., pad : pad + rows, pad : pad + columns]


@dataclass(frozen=True)
class _Pool:
    """Where max-pooling took each channel from: the number of the offset, (N, C, H, W)."""

    chosen: Tensor
    window: Window
    input_size: tuple[int, ...]

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        """Each offset's channels of the pooled vectors, the others 0."""
        for number in range(self.window.kernel**2):
            yield torch.where(self.chosen == number, x, 0)


_POINT = Window(1, 1, 0, 1)
_Down = Callable[[Tensor], Tensor]


def _forward(
    network: Network, images: Tensor, blocks: Sequence[str]
) -> tuple[dict[str, _Down], Tensor]:
    """Consecutive blocks' ways down, and the last one's pre-activation.

    A way down takes relevance (N, P, H, W) from a block's output to the previous block's; from the
    network's first block, to the pixels.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    first = network.index(blocks[0]) if blocks else len(network.blocks)
    x = images
    if first > 0:
        before = network.blocks[first - 1]
        x = network.preactivations(images, [before])[before]
    downs: dict[str, _Down] = {}
    for name in blocks:
        if name == network.blocks[0]:
            downs[name], x = _stem_and_block(network, images)
        else:
            downs[name], x = _block(network, name, F.relu(x))
    return downs, x


def _stem_and_block(network: Network, images: Tensor) -> tuple[_Down, Tensor]:
    stem = _Layer.of(network.fused[network.model.conv1])
    linear = stem.linear(images)
    v = linear + stem.shift[:, None, None]
    to_pixels = _shares(stem, images, linear, v)
    x, pool = _pooled(network.model.maxpool, F.relu(v))
    first = network.blocks[0]
    if isinstance(network.block(first), Bottleneck):
        to_stem, v = _block(network, first, x, pool)
        return lambda relevance: to_pixels(to_stem(relevance)), v
    to_pool, v = _block(network, first, x)
    to_stem = _Shares(_ratios(pool.parts(x), None, x), pool.window, pool.input_size)
    return lambda relevance: to_pixels(to_stem(to_pool(relevance))), v


def _pooled(layer: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, _Pool]:
    window = Window.of(layer)
    pooled, index = F.max_pool2d(x, *window[:3], return_indices=True)
    height, width = pooled.shape[2:]
    row = index // x.shape[3] + window.padding
    column = index % x.shape[3] + window.padding
    row -= window.stride * torch.arange(height, device=x.device)[:, None]
    column -= window.stride * torch.arange(width, device=x.device)
    return pooled, _Pool(row * window.kernel + column, window, tuple(x.shape[2:]))


def _block(
    network: Network, name: str, x: Tensor, pool: _Pool | None = None
) -> tuple[_Down, Tensor]:
    """A block's way down, and its pre-activation; x is its input, after the ReLU."""
    block = network.block(name)
    convs = [block.conv1, block.conv2]
    if isinstance(block, Bottleneck):
        convs.append(block.conv3)
    branch = [_Layer.of(network.fused[conv]) for conv in convs]
    main: list[_Shares] = []
    y = x
    for layer in branch[:-1]:
        linear = layer.linear(y)
        v = linear + layer.shift[:, None, None]
        main.append(_shares(layer, y, linear, v, None if main else pool))
        y = F.relu(v)
    last = branch[-1]
    linear = last.linear(y)
    v = linear + last.shift[:, None, None]
    if block.downsample is None:
        v += x
        shortcut = _Shares(_ratios([x], None, v), _POINT, tuple(x.shape[2:]))
    else:
        beside = _Layer.of(network.fused[block.downsample[0]])
        linear_beside = beside.linear(x)
        v += linear_beside + beside.shift[:, None, None]
        shortcut = _shares(beside, x, linear_beside, v, pool)
    main.append(_shares(last, y, linear, v))

    def down(relevance: Tensor) -> Tensor:
        below = relevance
        for shares in reversed(main):
            below = shares(below)
        return below + shortcut(relevance)

    return down, v


# ---------------------------------------------------------------------------- the sharing ratios


def _shares(
    layer: _Layer, x: Tensor, linear: Tensor, target: Tensor, pool: _Pool | None = None
) -> _Shares:
    """Shares of a layer's inputs x in a target; ``linear`` is what the layer makes of x.

    With a pool, those of the pool's inputs; the layer is then a 1×1 convolution.
    """
    window, size = layer.window, tuple(x.shape[2:])
    if pool is None and window.kernel == 1:
        return _Shares(_ratios([linear], layer.shift, target), window, size)
    directions = [target]
    if layer.groups == 1 and 2 * layer.weight.shape[1] <= layer.weight.shape[0]:
        layer, directions = _compressed(layer, target)
    if pool is None:
        parts = layer.parts(x, linear.shape[2:])
    else:
        parts = (layer.linear(part) for part in pool.parts(x))
        window, size = pool.window, pool.input_size
    return _Shares(_ratios(parts, layer.shift, target, directions), window, size)


def _compressed(layer: _Layer, target: Tensor) -> tuple[_Layer, list[Tensor]]:
    """Parts with as few channels as the input, and the target's directions for them.

    At an offset with s·W = QR, R x has the length of s·W x, and ⟨s·W x, v⟩ = ⟨R x, Qᵀv⟩.
    """
    outputs, inputs, *kernel = layer.weight.shape
    q, r = torch.linalg.qr(layer.weight.flatten(2).permute(2, 0, 1))
    weight = r.permute(1, 2, 0).reshape(inputs, inputs, *kernel)
    turned = F.conv2d(target, q.transpose(1, 2).reshape(-1, outputs, 1, 1))
    return replace(layer, weight=weight), list(turned.split(inputs, 1))


def _ratios(
    parts: Iterable[Tensor], shift: Tensor | None, target: Tensor,
    directions: Iterable[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """μ of each part (N, C, H, W) in the target, (N, parts, H, W).

    μ = (⟨part, v⟩ + ⟨b, v⟩ · ‖part‖ / Σ‖part‖) / ‖v‖²; 0/0 is 0. The inner products are taken with
    the directions in turn, where given.
    """
    along, norms = [], []
    for part, direction in zip(parts, cycle(directions or [target]), strict=False):
        along.append((part * direction).sum(1))
        norms.append(torch.linalg.vector_norm(part, dim=1))
    ratios = torch.stack(along, 1)
    if shift is not None:
        norm = torch.stack(norms, 1)
        bias = torch.einsum("c,nchw->nhw", shift, target)
        ratios += bias[:, None] * _quotient(norm, norm.sum(1, keepdim=True))
    return _quotient(ratios, target.square().sum(1, keepdim=True))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, 0, numerator / denominator)


# ---------------------------------------------------------------------------- crops and checks


def _crop_edge(edge: int, size: int, step: int) -> int:
    """Pixels of the shortest crop that holds any receptive field of this size and stays in step."""
    shortest = size + step - 1
    return min(edge, shortest + (edge - shortest) % step)


def _corners(
    network: Network, block: str, positions: Tensor, size: list[int], window: list[int]
) -> tuple[Tensor, Tensor]:
    """Upper left corners (M, 2) of the crops, and the positions within them.

    A corner is a multiple of the step, so that every stride falls as in the whole picture, and a
    receptive field that reaches over the picture's edge gets a crop that ends there: padding is
    where it was.
    """
    _, step, start = network.receptive_field(block)
    room = torch.tensor(size) - torch.tensor(window)
    corners = (start + step * positions[:, 0]).clamp(min=0) // step * step
    corners = torch.minimum(corners, room)
    return corners, positions - corners[:, None] // step


def _checked_images(network: Network, images: Tensor, batch_size: int) -> Tensor:
    images = network.checked(images)
    if len(images) == 0:
        raise ValueError("there are no pictures: the first dimension is 0")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return images


def _checked_classes(network: Network, classes: Tensor | Sequence[int], count: int) -> Tensor:
    known = network.model.fc.out_features
    classes = torch.as_tensor(classes, device=network.device)
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
    """Positions as (N, P, 2), on the CPU."""  # noqa: DOC501
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise TypeError(f"positions must be integers, got {positions.dtype}")
    if positions.ndim not in (2, 3) or (positions.shape[0], positions.shape[-1]) != (count, 2):
        raise ValueError(
            f"expected positions ({count}, 2) or ({count}, P, 2), row and column for each of the "
            f"{count} pictures, got {tuple(positions.shape)}"
        )
    places = positions.cpu().long().reshape(count, -1, 2)
    rows, columns = network.map_size(block, size)
    if ((places < 0) | (places >= torch.tensor([rows, columns]))).any():
        raise ValueError(f"a position lies outside of {block}'s map of {rows} × {columns}")
    return places
