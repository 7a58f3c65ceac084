"""Windows on a map: what each offset of a kernel brings, and the crops that receptive fields take.

Section 3.1's sharing ratios of a convolution are taken offset by offset: the part at one is a 1×1
convolution of the shifted input.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, product

import torch
from torch import Tensor
from torch.nn import functional as F

from .traced import Window


def offsets(window: Window) -> Iterator[tuple[int, int]]:
    """Rows and columns of a kernel's offsets, in the order of its weights; not in the paper.

    Examples
    --------
    >>> list(offsets(Window((1, 2), (1, 1), (0, 0), (1, 3))))
    [(0, 0), (0, 3)]
    """
    rows, columns = (
        range(0, kernel * dilation, dilation)
        for kernel, dilation in zip(window.kernel, window.dilation, strict=True)
    )
    return product(rows, columns)


def seen_at(window: Window, padded: Tensor, offset: tuple[int, int], size: Sequence[int]) -> Tensor:
    """View of what each of ``size`` output positions sees at this offset; not in the paper.

    Examples
    --------
    >>> seen_at(Window((1, 2), (1, 2), (0, 0), (1, 1)), torch.arange(4.0)[None], (0, 1), (1, 2))
    tensor([[1., 3.]])
    """
    rows, columns = (
        slice(first, first + stride * (count - 1) + 1, stride)
        for first, stride, count in zip(offset, window.stride, size, strict=True)
    )
    return padded[..., rows, columns]


def offset_parts(
    x: Tensor, weight: Tensor, window: Window, groups: int, size: Sequence[int]
) -> Iterator[Tensor]:
    """What each kernel offset of a convolution brings to its output, before the shift (eq. 8).

    Examples
    --------
    >>> window = Window((1, 2), (1, 1), (0, 0), (1, 1))
    >>> x, weight = torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1, 1, 2)
    >>> [part.item() for part in offset_parts(x, weight, window, 1, (1, 1))]
    [1.0, 3.0]
    """
    (rows, columns), (height, width) = window.padding, window.room(x.shape[2:])
    padded = F.pad(x, (columns, width - columns - x.shape[3], rows, height - rows - x.shape[2]))
    for offset, tap in zip(offsets(window), weight.flatten(2).unbind(2), strict=True):
        seen = seen_at(window, padded, offset, size)
        if groups == len(weight) == x.shape[1]:  # depthwise, which a CPU convolves slowly
            yield seen * tap[:, :, None]
        else:
            yield F.conv2d(seen, tap[..., None, None], groups=groups)


def pool_parts(x: Tensor, window: Window, over: bool) -> Iterator[Tensor]:
    """What max-pooling takes from each offset of its window, (N, C, H, W); not in the paper.

    Examples
    --------
    >>> window = Window((1, 2), (1, 2), (0, 0), (1, 1))
    >>> [part.item() for part in pool_parts(torch.tensor([[[[1.0, 3.0]]]]), window, False)]
    [0.0, 3.0]
    """
    pooled, index = F.max_pool2d(x, *window, over, return_indices=True)
    index, size = index.int(), index.shape[2:]  # long integers are slow to compare
    (rows, columns), (top, left) = x.shape[2:], window.padding
    place = torch.full(window.room(x.shape[2:]), -1, dtype=index.dtype, device=x.device)
    number = torch.arange(rows * columns, device=x.device).reshape(rows, columns)
    place[top : top + rows, left : left + columns] = number
    for offset in offsets(window):
        yield torch.where(index == seen_at(window, place, offset, size), pooled, 0)


def compressed(weight: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A weight with as few outputs as inputs, and the target's directions for its parts.

    At an offset with s·W = QR, R x has the length of s·W x, and ⟨s·W x, v⟩ = ⟨R x, Qᵀv⟩.

    Examples
    --------
    >>> weight, (direction,) = compressed(torch.ones(4, 1, 1, 1), torch.ones(1, 4, 1, 1))
    >>> round(weight.abs().item(), 3), round(abs(direction.item()), 3)
    (2.0, 2.0)
    """
    outputs, inputs, *kernel = weight.shape
    q, r = torch.linalg.qr(weight.flatten(2).permute(2, 0, 1))
    turned = F.conv2d(target, q.transpose(1, 2).reshape(-1, outputs, 1, 1))
    return r.permute(1, 2, 0).reshape(inputs, inputs, *kernel), list(turned.split(inputs, 1))


def sharing_ratios(
    parts: Iterable[Tensor], shift: Tensor | None, target: Tensor, directions: Iterable[Tensor]
) -> Tensor:
    """μ of each part (N, C, H, W) in the target, (N, parts, H, W).

    μ = (⟨part, v⟩ + ⟨b, v⟩ · ‖part‖ / Σ‖part‖) / ‖v‖²; 0/0 is 0. The inner products are taken with
    the directions in turn.

    Examples
    --------
    >>> one = torch.ones(1, 1, 1, 1)
    >>> sharing_ratios([one, 3 * one], None, 4 * one, [4 * one]).flatten()
    tensor([0.2500, 0.7500])
    """
    along, norms = [], []
    for part, direction in zip(parts, cycle(directions), strict=False):
        along.append((part * direction).sum(1))
        norms.append(torch.linalg.vector_norm(part, dim=1))
    ratios = torch.stack(along, 1)
    if shift is not None:
        norm = torch.stack(norms, 1)
        bias = torch.einsum("c,nchw->nhw", shift, target)
        ratios += bias[:, None] * quotient(norm, norm.sum(1, keepdim=True))
    return quotient(ratios, squared(target, (1,)))


def length(x: Tensor, channels: tuple[int, ...]) -> Tensor:
    """‖x‖ along the channels, kept; a value without channels has its own. Not in the paper.

    Examples
    --------
    >>> length(torch.tensor([[3.0, -4.0]]), (1,)), length(torch.tensor([[3.0, -4.0]]), ())
    (tensor([[5.]]), tensor([[3., 4.]]))
    """
    # With no dimensions PyTorch takes all.
    return torch.linalg.vector_norm(x[..., None], dim=(*channels, x.ndim), keepdim=True)[..., 0]


def squared(x: Tensor, channels: tuple[int, ...]) -> Tensor:
    """‖x‖² along the channels, kept; nothing as large as x is made. Not in the paper.

    Examples
    --------
    >>> squared(torch.tensor([[3.0, 4.0]]), (1,))
    tensor([[25.]])
    """
    return length(x, channels).square()


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient in which 0/0 is 0 (SRD's convention).

    Examples
    --------
    >>> quotient(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    return torch.where(denominator == 0, 0, numerator / denominator)


def crop_edge(edge: int, size: int, step: int) -> int:
    """Pixels of the shortest crop that holds any receptive field of this size and stays in step.

    Not in the paper.

    Examples
    --------
    >>> crop_edge(64, size=11, step=4), crop_edge(64, size=12, step=4)
    (16, 16)
    """
    shortest = size + step - 1
    return min(edge, shortest + (edge - shortest) % step)


def crop_corners(
    field: tuple[int, int, int], positions: Tensor, size: list[int], window: list[int]
) -> tuple[Tensor, Tensor]:
    """Upper left corners (M, 2) of the crops, and the positions within them.

    A corner is a multiple of the step, so that every stride falls as in the whole picture, and a
    receptive field that reaches over the picture's edge gets a crop that ends there: padding is
    where it was.

    Examples
    --------
    >>> crop_corners((11, 4, -5), torch.tensor([[[8, 2]]]), [64, 64], [16, 16])
    (tensor([[24,  0]]), tensor([[[2, 2]]]))
    """
    _, step, start = field
    room = torch.tensor(size) - torch.tensor(window)
    corners = (start + step * positions[:, 0]).clamp(min=0) // step * step
    corners = torch.minimum(corners, room)
    return corners, positions - corners[:, None] // step
