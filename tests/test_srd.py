"""SRD against brute force, against golden values of the released code, and against its own laws."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_network, randomised
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer
from torchvision.models.resnet import Bottleneck

from gig_helpers import EXTRACTORS, Network, load_pictures, rules, srd

# ------------------------------------------------------------------------- brute force


def ratios(layer, alone: Tensor, target: Tensor) -> Tensor:
    """μ (I, J). ``alone[i]`` is the layer's input with nothing but position i."""
    shift = layer(torch.zeros_like(alone[:1]))
    # At the border BN after a convolution of zeros is the shift everywhere: padding adds nothing.
    parts = (layer(alone) - shift).flatten(2)
    norm = parts.norm(dim=1)
    share = (norm / norm.sum(0)).nan_to_num(0)
    # What is left of a position that brings nothing is rounding of the difference above.
    parts = parts + shift.flatten(2) * share[:, None]
    target = target.flatten(1)
    return (parts * target).sum(1) / target.square().sum(0)


def each_alone(x: Tensor) -> Tensor:
    """(C, H, W) -> (H·W, C, H, W): copy i keeps position i only."""
    count = x[0].numel()
    return x * torch.eye(count, dtype=x.dtype).reshape(count, 1, *x.shape[1:])


def brute_force(network: Network, image: Tensor) -> dict[str, Tensor]:
    """For each block μ (I, J) from its output's positions down to the previous block's (pixels)."""
    model = network.model
    stem = nn.Sequential(model.conv1, model.bn1)
    v = stem(image[None])[0]
    to_pixels = ratios(stem, each_alone(image), v)
    x, index = F.max_pool2d(F.relu(v)[None], 3, 2, 1, return_indices=True)
    positions = torch.arange(v[0].numel())[:, None, None, None]
    selected = x * (index == positions)  # copy i keeps the channels that came from position i
    x = x[0]
    found = {}
    for name in network.blocks:
        block = network.model.get_submodule(name)
        branch = [nn.Sequential(block.conv1, block.bn1), nn.Sequential(block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            branch.append(nn.Sequential(block.conv3, block.bn3))
        fused = name == "layer1.0" and isinstance(block, Bottleneck)
        alone = selected if fused else each_alone(x)
        shortcut = nn.Identity() if block.downsample is None else block.downsample
        y, down, inputs = x, None, alone
        for layer in branch:
            v = layer(y[None])[0]
            if layer is branch[-1]:
                v = v + shortcut(x[None])[0]
            step = ratios(layer, inputs, v)
            down = step if down is None else down @ step
            y = F.relu(v)
            inputs = each_alone(y)
        down = down + ratios(shortcut, alone, v)
        if name == "layer1.0":
            if not fused:
                down = ratios(nn.Identity(), selected, x) @ down
            down = to_pixels @ down
        found[name], x = down, y
    return found


@pytest.mark.parametrize("kind", ("v1.5", "v1", "basic", "grouped", "dilated"))
@torch.no_grad()
def test_brute_force(kind):
    network = random_network(kind, torch.float64)
    images = torch.randn(2, 3, 29, 25, dtype=torch.float64)
    image = images[1]
    levels = (srd.PIXELS, *network.blocks)
    # The lowest logit: away from 0, where float32's forward pass alone would lose the digits.
    classes = network.logits(images).argmin(1)
    classes[0] = (classes[1] + 1) % network.n_classes  # of every picture its own, in each batch
    maps = srd.contributions(network, images, levels, classes, batch_size=1)
    assert tuple(maps) == levels
    maps32 = srd.contributions(random_network(kind), images.float(), levels, classes)

    ways = brute_force(network, image)
    x = F.relu(network.preactivations(image[None])["layer4.0"][0])
    weight, bias = network.model.fc.weight[classes[1]], network.model.fc.bias[classes[1]]
    expected = {"layer4.0": (weight @ x.flatten(1) + bias) / x[0].numel()}
    for below, name in reversed(list(zip(levels[:-1], network.blocks, strict=True))):
        expected[below] = ways[name] @ expected[name]
    for name, wanted in expected.items():
        torch.testing.assert_close(maps[name][1].flatten(), wanted, rtol=1e-8, atol=1e-10)
        # Float32's rounding alone: 2e-6 or less was seen.
        error = (maps32[name][1].flatten() - wanted).norm() / wanted.norm()
        assert error < 1e-5, (name, error)

    down = torch.eye(image[0].numel(), dtype=torch.float64)
    for name in network.blocks:
        down = down @ ways[name]  # column j: iERF of position j
        rows, columns = network.map_size(name, (29, 25))
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        found = srd.ierf(network, image[None], name, places[None])[0]
        torch.testing.assert_close(found.flatten(1).T, down, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "size"), (("v1.5", (96, 96)), ("v1", (95, 90)), ("basic", (101, 64)))
)
def test_crop_changes_nothing(kind, size):
    network = random_network(kind, torch.float64)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    for block in ("layer1.1", "layer2.0"):
        rows, columns = network.map_size(block, size)
        ends = ((0, rows // 2, rows - 1), (1, columns // 2 + 1, columns - 1))
        places = torch.tensor(list(itertools.product(*ends)))
        # Nine receptive fields are more than the picture, so it is not cut for them.
        whole = srd.ierf(network, image, block, places[None])[0]
        cut = srd.ierf(network, image.expand(len(places), -1, -1, -1), block, places)
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)


def test_crops_are_made_where_they_cost_less_than_the_picture(monkeypatch):
    network, image = random_network("v1.5"), torch.randn(1, 3, 160, 160)
    network.map_size("layer1.1", (160, 160))  # asked for once, at the cost of a forward pass

    def cost(places):
        with FlopCounterMode(display=False) as counted:
            srd.ierf(network, image, "layer1.1", places)
        return counted.get_total_flops()

    one, many = torch.tensor([[[5, 5]]]), torch.full((1, 99, 2), 5)
    crop, shared = cost(one), cost(many)
    assert shared < 99 * crop, "so many share the picture's forward pass"
    monkeypatch.setattr(network, "receptive_field", lambda block: None)
    assert crop < cost(one) / 3 and shared == cost(many)


def check_receptive_field(network, block, place):
    """Changed pixels outside of the field change nothing, those in its corners do."""
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    size, step, start = network.receptive_field(block)
    first = start + step * place
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[first : first + size, first : first + size] = True
    before = network.preactivations(image, [block])[block]
    assert network.map_size(block, (96, 96)) == before.shape[2:]
    outside = network.preactivations(torch.where(inside, image, -image), [block])[block]
    assert torch.equal(outside[..., place, place], before[..., place, place])
    for corner in (first, first + size - 1):
        moved = image.clone()
        moved[..., corner, corner] += 50
        after = network.preactivations(moved, [block])[block]
        assert not torch.equal(after[..., place, place], before[..., place, place])


@pytest.mark.parametrize(("block", "place"), [("layer1.1", 11), ("layer2.0", 6)])
def test_receptive_field(block, place):
    check_receptive_field(random_network("v1.5", torch.float64), block, place)


def test_receptive_field_of_dilated_windows_side_by_side():
    class SideBySide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.narrow = nn.Conv2d(4, 4, 3, padding=1)
            self.wide = nn.Conv2d(4, 4, 5, padding=6, dilation=3)
            self.both = nn.Conv2d(8, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            x = self.both(torch.cat([self.narrow(x), self.wide(x)], 1))
            return self.head(x.relu().mean((2, 3)))

    network = Network(
        SideBySide().double().eval(), device="cpu", blocks=["both"], input_size=(96, 96)
    )
    check_receptive_field(network, "both", 20)


# ------------------------------------------------------------------------- each rule by hand


def small(*layers: nn.Module, channels: int, blocks=("0",), size=(9, 8)) -> Network:
    """A network that begins with some layers, in float64."""
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
    model = randomised(nn.Sequential(*layers, *head)).double()
    return Network(model, device="cpu", blocks=blocks, input_size=size)


def ways(network: Network, image: Tensor, block: str) -> Tensor:
    """μ (I, J) from a block's positions down to the pixels."""
    own = network.own_size(block, image.shape[1:])
    places = torch.tensor(list(itertools.product(*map(range, own))))
    return srd.ierf(network, image[None], block, places[None])[0].flatten(1).T


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


IMAGE = torch.randn(3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layer", "channels"),
    (
        (nn.Sequential(nn.Conv2d(3, 3, 3, 2, 2, 2, groups=3), nn.BatchNorm2d(3)), 3),
        (nn.Sequential(nn.Conv2d(3, 6, 5, padding="same", groups=3), nn.BatchNorm2d(6)), 6),
        (nn.Conv2d(3, 4, (1, 3), (2, 1), (0, 1)), 4),
        (nn.Conv2d(3, 4, 3, padding="same", dilation=2), 4),
        (nn.Conv2d(3, 4, (3, 2), padding=(2, 0), dilation=(1, 3)), 4),
        (nn.Conv2d(3, 8, 3, 3), 8),
        (nn.Conv2d(3, 5, 1, (2, 3)), 5),
        (nn.Conv2d(3, 1, 3), 1),
        (nn.AvgPool2d(3, 2, 1), 3),
        (nn.AdaptiveAvgPool2d((4, 3)), 3),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 3),
        (nn.Upsample(scale_factor=2, mode="bicubic"), 3),
        (nn.Conv2d(3, 4, (2, 4), padding="same", dilation=(1, 3)), 4),
        (nn.ConvTranspose2d(3, 4, (3, 2), (2, 3), (1, 0), dilation=(2, 1)), 4),
        (nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3), 6),
        (nn.ConvTranspose2d(3, 4, 1, (2, 3), output_padding=(1, 2)), 4),
    ),
    ids=(
        "depthwise", "grouped", "oblong", "dilated", "dilated by columns", "patches",
        "strided 1×1", "one channel", "mean", "adaptive", "larger", "bicubic", "same, even",
        "transposed", "transposed, grouped", "transposed, apart",
    ),
)  # fmt: skip
@torch.no_grad()
def test_what_mixes_positions_linearly(layer, channels):
    network, image = small(layer, channels=channels), IMAGE.clone()
    image[:, 3, 3] = 0  # brings nothing, not even a share of the bias
    found = ways(network, image, "0")
    agree(found, ratios(network.model[0], each_alone(image), network.model[0](image[None])[0]))


@pytest.mark.parametrize(
    "layer", (nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, groups=2))
)
@torch.no_grad()
def test_groups_of_several_channels(layer):
    point = nn.Conv2d(3, 4, 1)
    network = small(point, layer, channels=6, blocks=("1",))
    y = point(IMAGE[None])[0]
    agree(ways(network, IMAGE, "1"), ratios(layer, each_alone(y), layer(y[None])[0]))


@pytest.mark.parametrize(
    "layer",
    (
        nn.MaxPool2d((3, 2), 2, (1, 0)),
        nn.MaxPool2d((2, 3), (4, 2), 0, (3, 1), ceil_mode=True),  # of rows and of columns
        nn.MaxPool2d((2, 3), 1, 0, 2),
    ),
    ids=("overlapping", "over the end", "dilated"),
)
@torch.no_grad()
def test_max_pooling_alone_and_before_a_convolution(layer):
    _, index = layer.__class__(**{**vars_of(layer), "return_indices": True})(IMAGE[None])
    places = torch.arange(IMAGE[0].numel())[:, None, None, None]
    v = layer(IMAGE[None])[0]
    selected = v * (index == places)
    agree(ways(small(layer, channels=3), IMAGE, "0"), ratios(nn.Identity(), selected, v))
    point = nn.Conv2d(3, 5, 1)
    network = small(layer, point, channels=5, blocks=("1",))
    agree(ways(network, IMAGE, "1"), ratios(point, selected, point(v[None])[0]))
    # Where the convolution skips positions, the pooled vectors are targets of their own.
    point = nn.Conv2d(3, 5, 1, 2)
    network = small(layer, point, channels=5, blocks=("1",))
    above = ratios(point, each_alone(v), point(v[None])[0])
    agree(ways(network, IMAGE, "1"), ratios(nn.Identity(), selected, v) @ above)


@torch.no_grad()
def test_shares_know_no_unit():
    """Nothing but 0 counts as 0: where squares are 1e-16, shares are as where they are 1."""
    network = small(nn.Conv2d(3, 4, 3, bias=False), channels=4)
    agree(ways(network, 1e-8 * IMAGE, "0"), ways(network, IMAGE, "0"))


def vars_of(layer: nn.MaxPool2d) -> dict:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return {name: getattr(layer, name) for name in names}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return 1 + (self.conv(x) - 2 * x)


class Branch(Residual):
    def forward(self, x):
        return self.conv(x) - 2 * x


class Weighted(Residual):
    def forward(self, x):
        return torch.add(x, self.conv(x), alpha=-2)


class Subtracted(Residual):
    def forward(self, x):
        return x - self.conv(x)


class ReadTwice(Residual):
    def forward(self, x):
        y = self.conv(x)
        return torch.cat([x + y, 3 * x - y], 1)


class PooledForTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        pooled = F.max_pool2d(x, 2, 2)
        return torch.cat([self.a(pooled), self.b(pooled)], 1)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return torch.cat([self.a(x), torch.tanh(self.b(x))], 1)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))


@torch.no_grad()
def test_joining_and_gates():
    network = small(Residual(), channels=3)
    conv = network.model[0].conv
    v = network.model[0](IMAGE[None])[0] - 1  # what the two bring; the constant takes nothing
    shortcut = -2 * (IMAGE * v).sum(0) / v.square().sum(0)
    expected = ratios(conv, each_alone(IMAGE), v) + torch.diag(shortcut.flatten())
    agree(ways(network, IMAGE, "0"), expected)

    for times, layer in ((-2, Weighted()), (-1, Subtracted())):
        network = small(layer, channels=3)
        conv = network.model[0].conv
        y = conv(IMAGE[None])[0]
        v = IMAGE + times * y
        beside, branch = ((part * v).sum(0) / v.square().sum(0) for part in (IMAGE, times * y))
        expected = ratios(conv, each_alone(IMAGE), y) * branch.flatten()
        agree(ways(network, IMAGE, "0"), expected + torch.diag(beside.flatten()))

    network = small(Joined(), channels=6)
    a, b = network.model[0].a(IMAGE[None])[0], network.model[0].b(IMAGE[None])[0].tanh()
    share = a.square().sum(0) / (a.square().sum(0) + b.square().sum(0))
    expected = ratios(network.model[0].a, each_alone(IMAGE), a) * share.flatten()
    agree(ways(network, IMAGE, "0"), expected + torch.diag(1 - share.flatten()))

    network = small(Gated(), channels=4)
    conv = network.model[0].conv
    agree(ways(network, IMAGE, "0"), ratios(conv, each_alone(IMAGE), conv(IMAGE[None])[0]))


@torch.no_grad()
def test_what_two_read_is_taken_as_one_with_neither():
    network = small(ReadTwice(), channels=6)
    conv = network.model[0].conv
    y = conv(IMAGE[None])[0]
    one, other = IMAGE + y, 3 * IMAGE - y
    total = one.square().sum(0) + other.square().sum(0)
    beside = (IMAGE * one + 3 * IMAGE * other).sum(0) / total
    branch = (y * one - y * other).sum(0) / total
    expected = ratios(conv, each_alone(IMAGE), y) * branch.flatten()
    agree(ways(network, IMAGE, "0"), expected + torch.diag(beside.flatten()))

    network = small(PooledForTwo(), channels=6)
    pooled, index = F.max_pool2d(IMAGE[None], 2, 2, return_indices=True)
    places = torch.arange(IMAGE[0].numel())[:, None, None, None]
    down = ratios(nn.Identity(), pooled[0] * (index == places), pooled[0])
    a, b = network.model[0].a, network.model[0].b
    above = [conv(pooled)[0].square().sum(0).flatten() for conv in (a, b)]
    through = sum(
        ratios(conv, each_alone(pooled[0]), conv(pooled)[0]) * own / sum(above)
        for conv, own in zip((a, b), above, strict=True)
    )
    agree(ways(network, IMAGE, "0"), down @ through)


class Rolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.conv(F.max_pool2d(x, 2, 2).roll(1, 3))


@torch.no_grad()
def test_what_a_pool_made_goes_back_to_where_it_was_made():
    pooled, index = F.max_pool2d(IMAGE[None], 2, 2, return_indices=True)
    places = torch.arange(IMAGE[0].numel())[:, None, None, None]
    down = ratios(nn.Identity(), pooled[0] * (index == places), pooled[0])
    moved = down.unflatten(1, pooled.shape[2:]).roll(1, 2).flatten(1)
    agree(ways(small(Rolled(), channels=5), IMAGE, "0"), moved)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        mean = x.mean((2, 3))
        return self.one(mean) - self.other(mean.tanh())


@torch.no_grad()
def test_a_mean_that_two_heads_read_is_a_target_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), TwoHeads()).double()
    network = Network(model, device="cpu", blocks=["0"], input_size=(9, 8))
    x = model[0](IMAGE[None])[0]
    mean, logit = x.mean((1, 2)), network.logits(IMAGE[None])[0, 1]
    share = torch.einsum("chw,c->hw", x, mean) / (x[0].numel() * mean.square().sum())
    agree(srd.contributions(network, IMAGE[None], ["0"], [1])["0"][0], share * logit)


class Lifted(Residual):
    def __init__(self):
        super().__init__()
        self.point = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) + self.point(x.mean((2, 3), keepdim=True))


@torch.no_grad()
def test_what_is_added_everywhere_is_a_branch_of_every_sum():
    network = small(Lifted(), channels=3)
    conv, mean = network.model[0].conv, IMAGE.mean((1, 2), keepdim=True)
    y, lift = conv(IMAGE[None])[0], network.model[0].point(mean[None])[0]
    v = y + lift
    branch, beside = ((part * v).sum(0) / v.square().sum(0) for part in (y, lift))
    share = (IMAGE * mean).sum(0) / (72 * mean.square().sum())
    expected = ratios(conv, each_alone(IMAGE), y) * branch.flatten()
    agree(ways(network, IMAGE, "0"), expected + torch.outer(share.flatten(), beside.flatten()))


class SoftlyGated(Residual):
    def forward(self, x):
        return x * self.conv(x).softmax(1)


@torch.no_grad()
def test_what_a_softmax_weighs_keeps_all_of_its_relevance():
    agree(ways(small(SoftlyGated(), channels=3), IMAGE, "0"), torch.eye(72).double())


class OfColumns(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x):
        return self.linear(x.mean(2).transpose(1, 2)).transpose(1, 2)[:, :, None]


@torch.no_grad()
def test_means_of_columns_are_shared_column_by_column():
    mean = IMAGE.mean(1)
    share = torch.einsum("chw,cw->hw", IMAGE, mean) / (9 * mean.square().sum(0))
    expected = torch.zeros(9, 8, 8, dtype=torch.float64)
    expected[:, range(8), range(8)] = share
    agree(ways(small(OfColumns(), channels=5), IMAGE, "0"), expected.flatten(0, 1))


@torch.no_grad()
def test_moves():
    class Moved(nn.Module):
        def forward(self, x):
            a, b = F.pixel_unshuffle(x.roll(2, 3)[:, :, 1:], 2).chunk(2, 1)
            return torch.stack([a, b], 2).flatten(1, 2)

    network = small(Moved(), channels=12)
    x = network.model[0](IMAGE[None])[0]
    numbers = network.model[0](torch.arange(72.0).reshape(1, 1, 9, 8).expand(1, 3, 9, 8))[0].long()
    expected = torch.zeros(72, 16, dtype=torch.float64)
    share = x.square() / x.square().sum(0)
    for place in range(16):
        expected[:, place].index_add_(0, numbers.flatten(1)[:, place], share.flatten(1)[:, place])
    agree(ways(network, IMAGE, "0"), expected)

    image, own = IMAGE.clone(), torch.eye(72, dtype=torch.float64)
    image[:, 2, 3] = 0  # its relevance comes back too
    rolled = own.unflatten(1, (9, 8)).roll(1, 2).flatten(1)
    agree(ways(small(Function(lambda x: x.roll(1, 3)), channels=3), image, "0"), rolled)
    v = IMAGE + IMAGE.roll(1, 2)
    parts = (part.mul(v).sum(0) / v.square().sum(0) for part in (IMAGE, IMAGE.roll(1, 2)))
    beside, before = (part.flatten() for part in parts)
    both = small(Function(lambda x: x + x.roll(1, 3)), channels=3)
    agree(ways(both, IMAGE, "0"), own * beside + rolled * before)

    # What padding takes belongs to nobody, and so to all by their norm.
    norm = IMAGE.norm(dim=0).flatten()
    expected = (norm / norm.sum())[:, None, None].expand(72, 10, 11).clone()
    expected[:, 1:, 1:9] = own.unflatten(1, (9, 8))
    padded = small(Function(lambda x: F.pad(x, (1, 2, 1, 0))), channels=3)
    agree(ways(padded, IMAGE, "0"), expected.flatten(1))


@torch.no_grad()
def test_a_linear_layer_on_the_whole_map():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(168, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()
    network = Network(model, device="cpu", blocks=["0"], input_size=(9, 8))
    x, layer = model[:2](IMAGE[None])[0], model[3]
    parts = torch.stack([layer.weight @ one.flatten() for one in each_alone(x)])
    v, norm = layer(x.flatten()), parts.norm(dim=1)
    share = (parts @ v + (layer.bias @ v) * norm / norm.sum()) / v.square().sum()
    logits = network.logits(IMAGE[None])[0]
    found = srd.contributions(network, IMAGE[None], ["0"], [1])["0"]
    agree(found.flatten(), share * logits[1])


class Tokens(nn.Module):
    """Patches with a class token and places, a residual attention, a linear layer on the first."""

    def __init__(self, written_out: bool):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 3, 3)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Parameter(torch.randn(1, 10, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.head, self.written_out = nn.LayerNorm(6), nn.Linear(6, 2), written_out
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)

    def attend(self, x):
        n, p, c = x.shape
        many = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = many.reshape(n, p, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        pattern = (q @ k.transpose(-2, -1) / (c // 2) ** 0.5).softmax(-1)
        return self.attention.out_proj((pattern @ v).transpose(1, 2).reshape(n, p, c)), pattern

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        if self.written_out:
            x = x + self.attend(x)[0]
        else:
            x = x + self.attention(x, x, x)[0]
        return self.head(self.norm(x)[:, 0])


@pytest.mark.parametrize("written_out", (True, False))
@torch.no_grad()
def test_attention_and_a_class_token(written_out):
    torch.manual_seed(0)
    model = Tokens(written_out).double().eval()
    image = torch.randn(3, 9, 9, dtype=torch.float64)
    blocks = ["add", "add_1"]
    network = Network(model, device="cpu", blocks=blocks, input_size=(9, 9))
    assert network.map_size("add_1") == (3, 3) and network.placeless("add_1") == 1
    patches = model.patches(image[None])[0]
    to_patches = ratios(model.patches, each_alone(image), patches)  # (81, 9)
    norm = patches.flatten(1).norm(dim=0)
    to_first = torch.cat([(to_patches @ (norm / norm.sum()))[:, None], to_patches], 1)
    agree(ways(network, image, "add"), to_first)

    x = network.preactivations(image[None])["add"]
    brought, pattern = model.attend(x)
    x, y, v, pattern = x[0], brought[0], (x + brought)[0], pattern[0]
    values = model.attention.in_proj_weight[12:].unflatten(0, (2, 3))  # V_h
    bias = model.attention.in_proj_bias[12:]
    project = model.attention.out_proj.weight.unflatten(1, (2, 3))  # O_h
    parts = torch.einsum("hji,chd,hde,ie->ijc", pattern, project, values, x)
    shift = model.attention.out_proj(bias)
    length = parts.norm(dim=2)
    shared = (y @ shift) * length / length.sum(0)
    expected = (torch.einsum("ijc,jc->ij", parts, y) + shared) / y.square().sum(1)
    branch, beside = ((part * v).sum(1) / v.square().sum(1) for part in (y, x))
    expected = expected * branch + torch.diag(beside)
    agree(ways(network, image, "add_1"), to_first @ expected)
    logit = network.logits(image[None])[0]
    found = srd.contributions(network, image[None], ["pixels", *blocks], [1])
    only_first = torch.zeros(10, dtype=torch.float64)
    only_first[0] = logit[1]
    agree(found["add_1"][0], only_first)
    agree(found["add"][0], expected @ only_first)
    agree(found["pixels"].flatten(), to_first @ expected @ only_first)


class Mixer(nn.Module):
    """A linear layer along the rows of a map, whose large bias is a share of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 5)
        nn.init.normal_(self.layer.bias, 0, 3)

    def forward(self, x):
        return self.layer(x)


@torch.no_grad()
def test_a_linear_layer_along_positions():
    network = small(Mixer(), channels=3)
    layer = network.model[0]
    agree(ways(network, IMAGE, "0"), ratios(layer, each_alone(IMAGE), layer(IMAGE[None])[0]))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


WEIGHTS = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LINEAR = {
    "einsum": lambda x: torch.einsum("nchw,rh->ncrw", x, WEIGHTS),
    "matmul": lambda x: WEIGHTS @ x,
    "sum": lambda x: x.unfold(2, 3, 2).sum(4),
    "cumsum": lambda x: x.cumsum(3),
    "windows": lambda x: F.unfold(x, 3, stride=2).unflatten(2, (4, 3)),
    "moved": lambda x: WEIGHTS @ x.swapaxes(2, 3).mT,
    "pooled": lambda x: F.avg_pool1d(x.flatten(2), 3).unflatten(2, (6, 4)),
}


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_what_is_linear_needs_no_rule_of_its_own(name):
    function = Function(LINEAR[name])
    network = small(function, channels=function(IMAGE[None]).shape[1])
    agree(ways(network, IMAGE, "0"), ratios(function, each_alone(IMAGE), function(IMAGE[None])[0]))


@torch.no_grad()
def test_products_and_what_is_held_constant():
    """Factors take half each, a softmax's weights and a divisor nothing; a shift goes by norm."""
    own = torch.eye(72, dtype=torch.float64)
    for function in (
        lambda x: x / (1 + x.square().mean(1, keepdim=True)),
        lambda x: x * x.softmax(1),
        lambda x: torch.einsum("nchw,nchw->nchw", x, x.tanh()),
        lambda x: F.local_response_norm(x, 3),
        lambda x: F.normalize(x, dim=1),
        lambda x: torch.lerp(x, x.tanh(), 0.25),  # of two inputs, and no product
    ):
        agree(ways(small(Function(function), channels=3), IMAGE, "0"), own)

    # What a softmax has weighed is no weight itself.
    function = Function(lambda x: (x.softmax(1) * x) * x.roll(1, 3))
    rolled = own.unflatten(1, (9, 8)).roll(1, 2).flatten(1)
    agree(ways(small(function, channels=3), IMAGE, "0"), (own + rolled) / 2)

    mean = IMAGE.mean((1, 2), keepdim=True)
    share = (IMAGE * mean).sum(0).flatten() / (72 * mean.square().sum())
    function = Function(lambda x: x.mean((2, 3), keepdim=True) * torch.ones(4, 9))
    agree(ways(small(function, channels=3), IMAGE, "0"), share[:, None].expand(72, 36))

    layer = nn.Conv1d(3, 4, 2, 2).double()  # as an operation that has no rule
    function = Function(lambda x: F.conv1d(x.flatten(2), layer.weight, layer.bias)[..., None])
    network = small(function, channels=4)
    v = function(IMAGE[None])[0, ..., 0]
    parts = function(each_alone(IMAGE))[..., 0] - layer.bias[:, None]
    expected = (parts * v).sum(1) / v.square().sum(0)
    norm = IMAGE.flatten(1).norm(dim=0)
    expected = expected + (1 - expected.sum(0)) * (norm / norm.sum())[:, None]
    agree(ways(network, IMAGE, "0"), expected)

    layer = nn.Bilinear(3, 3, 4).double()
    function = Function(lambda x: layer(x.movedim(1, 3), x.tanh().movedim(1, 3)).movedim(3, 1))
    v = function(IMAGE[None])[0].flatten(1)
    alone = ((v - layer.bias[:, None]) * v).sum(0) / v.square().sum(0)
    norm = (IMAGE.norm(dim=0) + IMAGE.tanh().norm(dim=0)).flatten()
    expected = torch.diag(alone) + torch.outer(norm / norm.sum(), 1 - alone)
    agree(ways(small(function, channels=4), IMAGE, "0"), expected)


@torch.no_grad()
def test_along_the_direction_of_a_latent():
    """Shares of ⟨v, d⟩, by hand through a convolution and a residual sum; of v itself as before."""
    network = small(Branch(), channels=3)
    conv, direction = network.model[0].conv, torch.randn(3, dtype=torch.float64)
    places = torch.tensor(list(itertools.product(range(9), range(8))))
    found = srd.ierf(network, IMAGE[None], "0", places[None], direction=direction)[0]
    along = torch.einsum("chw,c->hw", conv(IMAGE[None])[0] - 2 * IMAGE, direction)
    unit = direction / direction.norm()
    target = along / direction.norm() * unit[:, None, None]
    expected = ratios(conv, each_alone(IMAGE), target)
    shortcut = torch.einsum("chw,c->hw", -2 * IMAGE, direction) / along
    agree(found.flatten(1).T, expected + torch.diag(shortcut.flatten()))
    agree(found.sum((1, 2)), torch.ones(72, dtype=torch.float64))
    v = network.preactivations(IMAGE[None])["0"][0, :, 4, 3]
    place = torch.tensor([[4, 3]])
    alike = (srd.ierf(network, IMAGE[None], "0", place, direction=d) for d in (3 * v, None))
    with pytest.raises(ValueError, match=r"expected a direction \(3,\), got \(4,\)"):
        srd.ierf(network, IMAGE[None], "0", place, direction=torch.ones(4))
    agree(*alike)


@pytest.mark.slow
def test_ierfs_of_latents_in_a_trained_transformer():
    """What a latent's iERF points at is what the latent needs, more than as many other pixels."""
    digits = load_digits()
    x = F.interpolate(torch.tensor(digits.images / 8 - 1).float()[:, None], size=16)
    x, y = x.expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 3, 4, 48, 96, num_classes=10).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        for part in torch.randperm(1500).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    network = Network(model, device="cpu", input_size=(16, 16))
    block, held = network.blocks[1], x[1500:1540]
    assert (network.logits(x[1500:]).argmax(1) == y[1500:]).float().mean() > 0.8, "learnt nothing"
    tokens = network.positions(network.preactivations(x[:600], [block])[block], block)
    vectors = tokens[:, 1:].flatten(0, 1)  # but for the class token
    sae = EXTRACTORS["sae"].fit(vectors, vectors.mean(0), 64, 0, epochs=20)

    def activation(images, place, latent):
        at = network.positions(network.preactivations(images, [block])[block], block)[:, place]
        return sae.encode(at)[:, latent]

    at = network.positions(network.preactivations(held, [block])[block], block)[:, 1:]
    codes = sae.encode(at)
    lost, generator = [], torch.Generator().manual_seed(0)
    for n, image in enumerate(held):
        place, latent = divmod(int(codes[n].argmax()), codes.shape[2])
        where, direction = torch.tensor([[[place + 1]]]), sae.encoder[latent]
        field = srd.ierf(network, image[None], block, where, direction=direction)[0, 0]
        assert field.sum().item() == pytest.approx(1, abs=1e-3)
        without = []
        for score in (field, *torch.rand(4, 16, 16, generator=generator)):
            hidden = image.clone()
            hidden[:, score >= score.flatten().topk(32).values[-1]] = 0
            without.append(activation(hidden[None], place + 1, latent))
        before = activation(image[None], place + 1, latent)
        lost.append(torch.cat([1 - w / before for w in without]))
    pointed, *random = torch.stack(lost).mean(0).tolist()
    assert pointed > max(random), (pointed, random)


@torch.no_grad()
def test_an_operation_without_a_rule():
    network = small(Function(lambda x: torch.logcumsumexp(x, 2)), channels=3)
    nearly = small(Function(lambda x: (x / 7).sinh()), channels=3)  # linear, but for some percent
    with pytest.raises(NotImplementedError, match="no rule for sinh"):
        ways(nearly, IMAGE, "0")
    message = r"no rule for logcumsumexp.*not linear.*= a function of rules.Operation.*gradient"
    with pytest.raises(NotImplementedError, match=message):
        ways(network, IMAGE, "0")
    alone = small(Function(torch.special.i0), channels=3)
    with pytest.raises(NotImplementedError, match=r"i0.*= rules.hand_on.*each position"):
        ways(alone, IMAGE, "0")
    places = torch.tensor([[[2, 1]]])
    found = srd.ierf(network, IMAGE[None], "0", places, rule="gradient")[0, 0]
    v = network.model[0](IMAGE[None])[0, :, 2, 1]
    weights = IMAGE[:, :3, 1].softmax(1)
    expected = torch.zeros(9, 8, dtype=torch.float64)
    expected[:3, 1] = torch.einsum("cr,c->r", IMAGE[:, :3, 1] * weights, v) / v.square().sum()
    agree(found, expected)


@torch.no_grad()
def test_sums_are_told_that_are_off_by_more_than_a_hundredth_and_rounding():
    logit = torch.tensor([1.0, 1.0])
    for off, told in ((0.02, True), (-0.02, True), (0.005, False), (-0.005, False)):
        maps = torch.tensor([[0.25, 0.75], [0.25, 0.75 + off]])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            srd._check_sums(maps, logit, "here", 5)
        assert ["first number 6" in f"{each.message}" for each in found] == [True] * told
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of large parts that cancel, rounding alone is as much
        srd._check_sums(torch.tensor([[200.0, -199.02]]), logit[:1], "here", 0)


def test_a_sum_that_is_not_the_logit_is_told():
    network = small(Function(lambda x: torch.logcumsumexp(x, 2)), channels=3)
    images = IMAGE.expand(3, -1, -1, -1)
    with pytest.warns(UserWarning, match=r"at pixels sums to .* where the logit is .*, in 2 of 2"):
        found = srd.contributions(network, images, ["pixels"], batch_size=2, rule="gradient")
    logit = network.logits(images).amax(1)
    assert ((found["pixels"].sum((1, 2)) - logit).abs() > 0.01 * logit.abs()).all()


def test_table_names_every_rule():
    named = ", ".join(names for _, names in rules.table())
    assert set(rules.RULES) < set(named.split(", "))
    assert "attention" in named and all(rule for rule, _ in rules.table())


# ------------------------------------------------------------------------- laws


def test_conservation_and_defaults():
    network = random_network("v1.5")
    images = torch.randn(3, 3, 64, 64)
    logits = network.logits(images)
    maps = srd.contributions(network, images)
    assert tuple(maps) == network.blocks
    for name, found in maps.items():
        assert found.shape == (3, *network.map_size(name, (64, 64)))
    pixels = srd.contributions(network, images, ["pixels"])["pixels"]
    torch.testing.assert_close(pixels.sum((1, 2)), logits.amax(1), rtol=1e-3, atol=0)
    fields = srd.ierf(network, images, "layer2.0", torch.tensor([[0, 0], [3, 2], [7, 7]]))
    torch.testing.assert_close(fields.sum((1, 2)), torch.ones(3), rtol=1e-3, atol=0)


def test_order_and_batch_size_change_nothing():
    network = random_network("basic", torch.float64)
    images = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    places = torch.tensor([[0, 0], [3, 2], [4, 1]])
    maps = srd.contributions(network, images, ["pixels", "layer2.0"])
    fields = srd.ierf(network, images, "layer2.0", places)
    for order, size in zip(itertools.permutations(range(3)), (1, 2) * 3, strict=True):
        rows = list(order)
        again = srd.contributions(network, images[rows], ["layer2.0", "pixels"], None, size)
        for name, found in again.items():
            torch.testing.assert_close(found, maps[name][rows], rtol=1e-9, atol=1e-12)
        found = srd.ierf(network, images[rows], "layer2.0", places[rows], size)
        torch.testing.assert_close(found, fields[rows], rtol=1e-9, atol=1e-12)


def test_every_picture_is_asked_for_its_own_class():
    network = random_network("basic")
    images, classes = torch.randn(3, 3, 64, 64), [0, 3, 2]
    logits = network.logits(images)[range(3), classes]
    for size in (1, 2, 8):
        pixels = srd.contributions(network, images, ["pixels"], classes, size)["pixels"]
        torch.testing.assert_close(pixels.sum((1, 2)), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:SRD's relevance")
def test_dead_stem_gives_zeros():
    """Every vector above the stem is a shift alone: no part brings anything, 0/0 is 0."""
    model = random_network("v1.5").model
    model.bn1.bias.fill_(-1e4)
    network = Network(model, device="cpu")
    images = torch.randn(1, 3, 64, 64)
    pixels = srd.contributions(network, images, ["pixels"])["pixels"]
    field = srd.ierf(network, images, "layer1.1", torch.tensor([[8, 8]]))
    assert torch.equal(pixels, torch.zeros(1, 64, 64))
    assert torch.equal(field, torch.zeros(1, 64, 64))


# ------------------------------------------------------------------------- bad input


def test_bad_input():
    network = random_network("basic")
    images = torch.randn(2, 3, 64, 64)
    place = torch.tensor([[0, 0], [1, 1]])
    with pytest.raises(KeyError, match="layer9.0"):
        srd.contributions(network, images, ["layer9.0"])
    with pytest.raises(KeyError, match="pixels"):
        srd.ierf(network, images, "pixels", place)
    for call in (
        lambda x: srd.contributions(network, x),
        lambda x: srd.ierf(network, x, "layer1.0", place[: len(x)]),
    ):
        with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
            call(images[0])
        with pytest.raises(ValueError, match="NaN"):
            call(images * float("nan"))
        with pytest.raises(ValueError, match="no pictures"):
            call(images[:0])
    with pytest.raises(ValueError, match="batch_size"):
        srd.contributions(network, images, batch_size=0)
    with pytest.raises(ValueError, match=r"0 … 4"):
        srd.contributions(network, images, classes=[0, 5])
    with pytest.raises(ValueError, match="a class a picture"):
        srd.contributions(network, images, classes=[0])
    with pytest.raises(TypeError, match="integers"):
        srd.contributions(network, images, classes=torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="outside of layer1.0's map of 16 × 16"):
        srd.ierf(network, images, "layer1.0", torch.tensor([[0, 0], [0, 16]]))
    with pytest.raises(ValueError, match="outside"):
        srd.ierf(network, images, "layer1.0", -place)
    with pytest.raises(ValueError, match=r"\(2, 2\) or .* row and column for each of"):
        srd.ierf(network, images, "layer1.0", place[:1])
    with pytest.raises(TypeError, match="integers"):
        srd.ierf(network, images, "layer1.0", place.float())


# ------------------------------------------------------------------------- golden values

# The released code leaves BN's ε out of the shift; that alone makes a difference of 1.6e-4.
GOLDEN_TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def golden(reference, validation):
    values: dict[str, dict[str, np.ndarray]] = {}
    with np.load(reference / "srd_golden.npz") as stored:
        for key in stored.files:
            file, rest = key.split("|", 1)
            values.setdefault(file, {})[rest] = stored[key]
    pictures = load_pictures(str(validation))
    # The released names lead with the set's, the files on disk with the class.
    by_number = {Path(path).stem[-8:]: index for index, path in enumerate(pictures.paths)}
    wanted = [by_number[Path(file).stem[-8:]] for file in values]
    others = [index for index in range(len(pictures)) if index not in wanted][:5]
    images = torch.stack([pictures[index] for index in (*wanted, *others)])
    return list(values.values()), images


def distance(found: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("batch_size", "order"), ((1, (2, 0, 1)), (8, (5, 1, 3, 7, 0, 4, 6, 2))), ids=("1", "8")
)
def test_golden_contributions(network, golden, batch_size, order):
    values, images = golden
    levels = ("pixels", *network.blocks)
    maps = srd.contributions(network, images[list(order)], levels, batch_size=batch_size)
    for picture, expected in enumerate(values):
        found = {name: stack[order.index(picture)].cpu() for name, stack in maps.items()}
        assert distance(found["layer4.2"], expected["R|true_avgpool"]) < 1e-5
        assert distance(found["pixels"], expected["pixel"]) < GOLDEN_TOLERANCE
        assert found["pixels"].sum().item() == pytest.approx(float(expected["logit"]), rel=1e-3)
        for below, above in itertools.pairwise(network.blocks):
            # The golden files name a block's input.
            error = distance(found[below], expected[f"R|resnet50.{above}"])
            assert error < GOLDEN_TOLERANCE, (below, error)


def test_golden_ierfs(network, golden):
    values, images = golden
    for image, expected in zip(images, values, strict=False):
        keys = [key for key in expected if key.startswith("iERF|")]
        assert keys
        for key in keys:
            _, block, place = key.split("|")
            position = torch.tensor([[int(number) for number in place.split(",")]])
            # Beside seven others, and alone: the whole picture, and where it is small a crop.
            rows, columns = network.map_size(block)
            spread = (position + torch.arange(8)[:, None] * 3) % torch.tensor([rows, columns])
            together = srd.ierf(network, image[None], block, spread[None])[0].cpu()
            alone = srd.ierf(network, image[None], block, position)[0].cpu()
            for found in (together[0], alone):
                assert distance(found, expected[key]) < GOLDEN_TOLERANCE, key
            torch.testing.assert_close(together.sum((1, 2)), torch.ones(8), rtol=0, atol=1e-3)
