"""network.py: F_ab and the logits equal the full pass; the converted weights classify."""

import itertools
import math
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from conftest import SMALL, random_network, randomised
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gig_helpers import Network, load_network, load_pictures, srd
from gig_helpers.data.weights import Preprocessing, preprocessing
from gig_helpers.network import evaluate, exact_convolutions, operation


@torch.no_grad()
def assert_every_pair_equals_the_full_pass(network, images):
    full = network.preactivations(images)
    logits = network.logits(images)
    assert tuple(full) == network.blocks
    for source, target in itertools.combinations(network.blocks, 2):
        error = (network.between(full[source], source, target) - full[target]).norm()
        assert error <= 1e-5 * full[target].norm(), (source, target)
    for block in network.blocks:
        assert (network.logits_from(full[block], block) - logits).norm() <= 1e-5 * logits.norm()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnext50_32x4d"])
def test_every_pair_of_blocks_equals_the_full_pass(name):
    assert_every_pair_equals_the_full_pass(random_network(name), torch.randn(2, 3, 64, 64))


def test_every_pair_of_the_real_network(network, pictures):
    assert_every_pair_equals_the_full_pass(network, pictures[[0, 5]])


@torch.no_grad()
def test_preactivation_is_the_input_of_the_blocks_last_relu():
    network = random_network("resnet50", torch.float64)
    seen = {}
    for name in network.blocks:
        network.model.get_submodule(name).register_forward_hook(
            lambda m, i, out, n=name: seen.update({n: out})
        )
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    network.logits(images)
    for name, x in network.preactivations(images).items():
        torch.testing.assert_close(x.relu(), seen[name], rtol=1e-9, atol=1e-9)
        assert (x < 0).any()


@torch.no_grad()
def test_a_block_of_two_sums_ends_at_the_last():
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3).eval()
    network = Network(randomised(model), device="cpu", input_size=(16, 16))
    assert len(network.blocks) == 2
    seen = {}
    for name in network.blocks:
        model.get_submodule(name).register_forward_hook(
            lambda m, i, out, n=name: seen.update({n: out})
        )
    images = torch.randn(1, 3, 16, 16)
    model(images)
    for name, x in network.preactivations(images).items():
        torch.testing.assert_close(x, seen[name])


@torch.no_grad()
def test_bn_shift_is_what_a_black_branch_adds():
    """With all convolutions zero, a block puts out nothing but its batch norms' shifts."""
    network = random_network("resnet50")
    # All before the first pass, at which convolutions and batch norms are made one.
    for module in network.model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    for name in ("layer1.0", "layer2.0", "layer3.3"):
        block = network.model.get_submodule(name)
        channels = block.conv1.in_channels
        x = torch.zeros(1, channels, 8, 8)
        y = block.bn3(block.conv3(torch.zeros(1, block.conv3.in_channels, 8, 8)))
        shortcut = x if block.downsample is None else block.downsample(x)
        expected = y[0, :, 0, 0] + shortcut[0, :, 0, 0]
        torch.testing.assert_close(network.bn_shift(name), expected, rtol=1e-5, atol=1e-5)
        assert network.channels(name) == len(expected)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_fused_convolution_is_the_two_layers(name):
    network = random_network(name, torch.float64)
    model = network.model
    pairs = [(model.conv1, model.bn1)]
    for block in map(network.model.get_submodule, network.blocks):
        pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        pairs += [(block.conv3, block.bn3)] if hasattr(block, "conv3") else []
        pairs += [tuple(block.downsample)] if block.downsample is not None else []
    nodes = network.nodes(None, None)
    assert "batch_norm" not in map(operation, nodes)
    calls = [node for node in nodes if operation(node) == "conv2d"]
    fused = {network.model.get_submodule(node.meta["paths"][0]): node for node in calls}
    assert set(fused) == {conv for conv, _ in pairs}
    for conv, norm in pairs:
        x = torch.randn(1, conv.in_channels, 9, 7, dtype=torch.float64)
        node = fused[conv]
        known = {n: getattr(network.program, n.target) for n in node.args[1:3]}
        made = evaluate(node, {node.args[0]: x, **known})
        torch.testing.assert_close(made, norm(conv(x)))


@pytest.mark.parametrize("name", ["v1.5", "tokens"])
@torch.no_grad()
def test_a_network_without_directions_is_projected_there_and_nowhere_else(name, tmp_path):
    """By brute force at every position, in maps and in tokens; the file needs no gig_helpers."""
    if name == "tokens":
        model = randomised(torchvision.models.VisionTransformer(16, 4, 3, 2, 8, 16, num_classes=3))
        network = Network(model.double(), device="cpu", input_size=(16, 16))
    else:
        network = random_network(name, torch.float64)
    block, images = network.blocks[1], torch.randn(2, 3, *network.input_size).double()
    channels = network.channels(block)
    beta = torch.randn(channels).double()
    directions = torch.randn(2, channels).double()
    directions = torch.cat([directions, directions.sum(dim=0, keepdim=True)])  # of rank two
    repaired = network.without(block, directions, beta)
    x = network.positions(network.preactivations(images, [block])[block], block)
    within = torch.linalg.lstsq(directions[:2].T, (x - beta).flatten(0, 1).T).solution
    part = (directions[:2].T @ within).T.reshape(x.shape)
    expected = network.segment(block)(x - part)
    torch.testing.assert_close(repaired(images), expected, rtol=1e-8, atol=1e-8)
    assert (repaired(images) - network.logits(images)).abs().max() > 1e-3
    again = network.without(block, directions, beta)
    assert repaired[1].weight.data_ptr() != again[1].weight.data_ptr()
    torch.export.save(torch.export.export(repaired, (images,)), tmp_path / "repaired.pt2")
    save_file({"images": images, "expected": expected}, tmp_path / "images.safetensors")
    plain = (
        "import sys, torch; from safetensors.torch import load_file;"
        "model = torch.export.load('repaired.pt2').module();"
        "given = load_file('images.safetensors');"
        "assert torch.allclose(model(given['images']), given['expected']);"
        "assert not any(name.startswith('gig') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", plain], cwd=tmp_path, check=True)


def test_directions_have_the_blocks_channels():
    network = random_network("v1.5")
    block = network.blocks[0]
    right, wrong = network.channels(block), network.channels(block) + 1
    for a, b in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match=f"{block} has {right} channels: expected directions"):
            network.without(block, torch.ones(1, a), torch.ones(b))
    with pytest.raises(KeyError, match="no block 'layer9'"):
        network.without("layer9", torch.ones(1, right), torch.ones(right))


@torch.no_grad()
def test_a_segment_is_between_and_logits_from_of_rows_without_checks():
    network = random_network("v1.5")
    x = network.preactivations(torch.randn(2, 3, 64, 64))["layer2.0"]
    rows = network.positions(x, "layer2.0")
    segment, to_logits = network.segment("layer2.0", "layer4.0"), network.segment("layer2.0")
    assert (segment.source, segment.target) == ("layer2.0", "layer4.0")
    assert (segment.channels, segment.target_channels) == (512, 2048)
    assert (to_logits.target, to_logits.target_channels) == (None, 5)
    expected = network.between(x, "layer2.0", "layer4.0")
    assert torch.equal(segment(rows), network.positions(expected, "layer4.0"))
    assert torch.equal(to_logits(rows), network.logits_from(x, "layer2.0"))
    assert to_logits(torch.full_like(rows, math.nan)).isnan().all()
    for nothing in (torch.full_like(x, math.nan), torch.full_like(x, math.inf)):
        with pytest.raises(ValueError, match="NaN"):
            network.logits_from(nothing, "layer2.0")
        with pytest.raises(ValueError, match="NaN"):
            network.between(nothing, "layer2.0", "layer4.0")
    with pytest.raises(ValueError, match="63 positions are no map.*input_size"):
        segment(rows[:, :63])


def test_a_segments_map_is_channels_last():
    """Rows contiguous in memory pass as they are: no copy, and the fastest convolutions."""
    network, strides = random_network("v1.5"), []

    class Strides(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                strides.append(args[0].is_contiguous(memory_format=torch.channels_last))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Strides():
        network.segment("layer2.0", "layer4.0")(torch.randn(2, 64, 512))
    assert len(strides) == 8 and all(strides)


@torch.no_grad()
def test_class_vectors_are_what_logits_are_read_by():
    network = random_network("v1.5")
    x = torch.randn(1, 2048, 2, 2)
    assert network.class_vectors.shape == (5, 2048)
    expected = network.class_vectors @ x.relu().mean(dim=(0, 2, 3)) + network.model.fc.bias
    torch.testing.assert_close(network.logits_from(x, "layer4.0")[0], expected)


class ReadTwice(nn.Module):
    """Its second convolution is normalised, and added as it is."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        z = self.conv(self.stem(x))
        return self.fc((self.norm(z) + z).relu().mean((2, 3)))


@torch.no_grad()
def test_a_convolution_that_another_layer_reads_too_stays_itself():
    network = Network(randomised(ReadTwice()), device="cpu", input_size=(12, 12))
    images = torch.randn(2, 3, 12, 12)
    for block, x in network.preactivations(images).items():
        torch.testing.assert_close(network.logits_from(x, block), network.model(images))


class Difference(ReadTwice):
    """What a convolution makes less what it sees, or the other way round; or their sum's like."""

    def __init__(self, first, added):
        super().__init__()
        self.conv, self.first, self.added = nn.Conv2d(8, 8, 3, padding=1), first, added

    def forward(self, x):
        x = self.stem(x)
        a, b = (self.conv(x), x) if self.first else (x, self.conv(x))
        return self.fc((a + -1.0 * b if self.added else a - b).relu().mean((2, 3)))


@pytest.mark.parametrize("first", (True, False))
@torch.no_grad()
def test_a_difference_is_shared_as_the_sum_that_it_is(first):
    networks = [
        Network(randomised(Difference(first, added)), device="cpu", input_size=(12, 12))
        for added in (False, True)
    ]
    networks[1].model.load_state_dict(networks[0].model.state_dict())
    networks[1] = Network(networks[1].model, device="cpu", input_size=(12, 12))
    images = torch.randn(2, 3, 12, 12)
    minus, plus = (srd.contributions(n, images, [srd.PIXELS])[srd.PIXELS] for n in networks)
    torch.testing.assert_close(minus, plus)
    expected = networks[0].logits(images).amax(1)
    torch.testing.assert_close(minus.sum((1, 2)), expected, rtol=1e-3, atol=1e-5)


class MatmulHead(nn.Module):
    """Its last linear layer, a convolution, makes no logits."""

    def __init__(self, classes=10):
        super().__init__()
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        self.body = nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.w = nn.Parameter(torch.randn(8, classes))

    def forward(self, x):
        return self.body(x).mean((2, 3)) @ self.w


@pytest.mark.parametrize("classes", (8, 10))
def test_a_head_that_is_no_layer(classes):
    """All but class vectors comes of the model and its logits; so also of as many as channels."""
    network = Network(randomised(MatmulHead(classes)), device="cpu", input_size=(20, 20))
    assert network.blocks == ("body.0", "body.4")
    assert network.n_classes == len(network.classes) == classes
    assert network.dtype == torch.float32 and network.double().dtype == torch.float64
    with pytest.raises(TypeError, match=rf"matmul makes its logits.*nn.Linear\(C, {classes}\)"):
        _ = network.class_vectors
    images = torch.randn(2, 3, 20, 20)
    logits, at = network.logits(images), network.preactivations(images)
    for block, x in at.items():
        torch.testing.assert_close(network.logits_from(x, block), logits)
    rows = network.positions(at["body.0"], "body.0")
    reached = network.segment("body.0", "body.4")(rows)
    torch.testing.assert_close(reached, network.positions(at["body.4"], "body.4"))
    assert network.own_size("body.4", (40, 32)) == network.map_size("body.4", (40, 32)) == (17, 13)
    assert network.bn_shift("body.0").shape == (8,) and network.receptive_field("body.4")[0] == 8
    maps = srd.contributions(network, images, rule="gradient")
    torch.testing.assert_close(maps["body.4"].sum((1, 2)), logits.amax(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", (0.0, 3.0))
def test_what_pads_a_map_is_a_cut_point_as_the_map_is(value):
    layers = nn.Conv2d(3, 4, 3), nn.ConstantPad2d((2, 1, 1, 1), value), nn.Conv2d(4, 5, 3)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(model, device="cpu", input_size=(8, 8), blocks=["0", "1", "2"])
    assert (network.channels("1"), network.own_size("1")) == (4, (8, 9))


def test_class_vectors_are_rows_of_classes_or_nothing():
    """Behind it may come what moves no class; a layer of other rows is none."""
    conv = nn.Conv2d(3, 5, 1)
    behind = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    assert torch.equal(
        Network(nn.Sequential(conv, *behind), device="cpu", input_size=(8, 8)).class_vectors,
        conv.weight.flatten(1),
    )
    spread = Network(nn.Sequential(conv, nn.Flatten()), device="cpu", input_size=(2, 2))
    with pytest.raises(TypeError, match="has no class vectors"):
        _ = spread.class_vectors


@pytest.mark.parametrize("through", ("between", "segment"))
def test_gradients_flow_between_blocks(through):
    network = random_network("resnet18")
    x = torch.randn(1, 64, 16, 16, requires_grad=True)
    if through == "segment":
        y = network.segment("layer1.0", "layer2.0")(network.positions(x, "layer1.0"))
    else:
        y = network.between(x, "layer1.0", "layer2.0")
    y.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


class Precision(TorchDispatchMode):
    """Writes down, at every convolution, whether TF32 is allowed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append(torch.backends.cudnn.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("before", (True, False))
def test_tf32_is_off_inside_and_as_it_was_outside(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    network = random_network("basic")
    assert torch.backends.cudnn.allow_tf32 is before
    images = torch.randn(1, 3, 64, 64)
    x = network.preactivations(images)["layer2.0"]
    segment, rows = network.segment("layer2.0"), network.positions(x, "layer2.0")
    calls = {
        "preactivations": lambda: network.preactivations(images),
        "between": lambda: network.between(x, "layer2.0", "layer4.0"),
        "logits_from": lambda: network.logits_from(x, "layer2.0"),
        "logits": lambda: network.logits(images),
        "segment": lambda: segment(rows),
        "srd": lambda: srd.contributions(network, images, ["layer2.0"]),
        "own_size": lambda: network.own_size("layer2.0", (96, 96)),
    }
    for name, call in calls.items():
        with Precision() as precision:
            call()
        assert precision.seen and not any(precision.seen), name
        assert torch.backends.cudnn.allow_tf32 is before, name
    with pytest.raises(ValueError, match="positions"):
        segment(rows[:, :63])
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("precision", ("ieee", "tf32"))
def test_exact_convolutions_where_the_newer_setting_is_made(precision):
    """With one of the two settings made, reading the other is an error of PyTorch's."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32, cudnn.conv.fp32_precision = True, precision
    try:
        with exact_convolutions(), exact_convolutions():
            assert not cudnn.allow_tf32 and cudnn.conv.fp32_precision != "tf32"
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == (precision, "tf32")
    finally:
        cudnn.allow_tf32 = before


def test_a_model_of_timm_says_how_its_pictures_are():
    network = Network(timm.create_model("test_resnet", pretrained=False), device="cpu")
    half = (0.5, 0.5, 0.5)
    assert network.preprocessing == Preprocessing(160, 168, half, half, "bilinear")
    assert network.preprocessing == preprocessing("timm/test_resnet")
    assert network.input_size == (160, 160) and network.double().preprocessing.mean == half
    own = Preprocessing(64, 64)
    given = Network(network.model, device="cpu", preprocessing=own, input_size=(64, 64))
    assert given.preprocessing == own and given.input_size == (64, 64)
    small = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=2)
    network = Network(small, device="cpu")
    assert network.input_size == (32, 32) and network.preprocessing.size == 32


def test_version_is_remembered():
    model = torchvision.models.resnet50(weights=None)
    assert Network(model).version == "v1.5"
    model.layer2[0].conv1.stride, model.layer2[0].conv2.stride = (2, 2), (1, 1)
    assert Network(model).version == "v1"
    assert Network(torchvision.models.resnet18(weights=None)).version == "basic"


def test_fingerprint_sees_one_changed_weight():
    network = random_network("resnet18")
    again = random_network("resnet18")
    assert network.fingerprint == again.fingerprint
    changed = random_network("resnet18")
    changed.model.layer3[0].conv1.weight[0, 0, 0, 0] += 1e-3
    assert changed.fingerprint != network.fingerprint


def test_bad_input_is_named():
    network = random_network("resnet18")
    x = torch.randn(1, 64, 16, 16)
    with pytest.raises(KeyError, match=r"no block 'layer9.0'.*layer1.0"):
        network.between(x, "layer9.0", "layer2.0")
    with pytest.raises(ValueError, match="must come after"):
        network.between(x, "layer1.0", "layer1.0")
    with pytest.raises(ValueError, match="must come after"):
        network.between(torch.randn(1, 128, 8, 8), "layer2.0", "layer1.0")
    with pytest.raises(ValueError, match=r"layer1.0: expected \(N, 64, H, W\), got \(1, 3"):
        network.between(torch.randn(1, 3, 16, 16), "layer1.0", "layer2.0")
    with pytest.raises(ValueError, match="pictures: expected"):
        network.logits(torch.randn(3, 64, 64))
    with pytest.raises(ValueError, match="NaN"):
        network.logits(torch.full((1, 3, 64, 64), math.nan))
    with pytest.raises(ValueError, match="choose one of"):
        load_network("resnet_of_nobody")
    with pytest.raises(TypeError, match="Linear cannot be traced.*3, 224, 224"):
        Network(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got str"):
        Network("resnet50")


class ByValue(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def tokens(*, rows: int) -> nn.Module:
    """Tokens of a reshape, which no map came before."""

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.embed(x.reshape(x.shape[0], rows, -1))
            x = x + self.mix(x).relu()
            return self.head((x + self.mix(x).tanh()).mean(1))

    return Cut()


class Merged(nn.Module):
    """Tokens of patches of two pixels, class tokens before them; then four are made one, as in
    hierarchical transformers. ``sort`` puts them in another order."""

    def __init__(self, sort=lambda x: x, extra=0, merges=True):
        super().__init__()
        self.embed, self.mix, self.join = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.Linear(32, 8)
        self.head, self.sort, self.merges = nn.Linear(8, 5), sort, merges
        self.extra = nn.Parameter(torch.randn(1, extra, 8))

    def attended(self, x):
        return x + (x @ x.mT).softmax(-1) @ self.mix(x)

    def forward(self, x):
        maps = self.embed(x)
        x = self.sort(maps.flatten(2).mT)
        x = self.attended(torch.cat([self.extra.expand(x.shape[0], -1, -1), x], 1))
        if self.merges:
            x = x.reshape(x.shape[0], *maps.shape[2:], 8)
            x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
            x = self.join(x.flatten(1, 2))
        return self.head(self.attended(x).mean(1))


class AlongTokens(nn.Module):
    """As mixers do: what a linear layer along the tokens brings is added to them."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 8, 2, 2), nn.Linear(24, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2)
        return self.head((x + self.mix(x)).mean(2))


def windows(x):
    """Places of a map of 6 × 4, two rows and two columns at a time."""
    return x.reshape(x.shape[0], 3, 2, 2, 2, 8).transpose(2, 3).reshape(x.shape[0], 24, 8)


def test_tokens_lie_where_the_graph_puts_them_or_nowhere():
    network = Network(Merged(), device="cpu", input_size=(12, 8))
    assert {b: network.map_size(b) for b in network.blocks} == {"add": (6, 4), "add_1": (3, 2)}
    network = Network(Merged(extra=2, merges=False), device="cpu", input_size=(12, 8))
    assert {(network.map_size(b), network.placeless(b)) for b in ("add", "add_1")} == {((6, 4), 2)}
    assert network.map_size("add", (24, 16)) == (12, 8)
    with pytest.raises(ValueError, match="positions of add have no known place"):
        network.map_size("add", (15, 8))  # 7 rows and 2 class tokens, or 8 and none
    network = Network(AlongTokens(), device="cpu", input_size=(12, 8), blocks=["add"])
    assert network.map_size("add") == (6, 4), "where the shortcut lies"
    for sort in (windows, lambda x: x.flip(1), lambda x: x.roll(1, 1), lambda x: x[:, 4:]):
        model = Merged(sort, merges=False)
        network = Network(model, device="cpu", input_size=(12, 8), blocks=["embed", "add"])
        assert network.map_size("embed") == (6, 4)
        with pytest.raises(ValueError, match="positions of add have no known place"):
            network.map_size("add")
        assert "add" not in Network(model, device="cpu", input_size=(12, 8)).blocks
    for sort in (
        lambda x: x[:, :-4],
        lambda x: F.pad(x, (0, 0, 0, 1)),
        lambda x: (x @ x.mT).softmax(-1) @ x,
        lambda x: x + x.flip(1),
    ):
        model = Merged(sort, merges=False)
        network = Network(model, device="cpu", input_size=(12, 8), blocks=["add"])
        with pytest.raises(ValueError, match="positions of add have no known place"):
            network.map_size("add")


class OneByOne(nn.Module):
    """Between its first layer and its last it takes pictures' tokens as one list."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).mT
        y = self.layer(tokens.reshape(-1, 4)).relu()
        return self.head(y.reshape(-1, tokens.shape[1], 4).mean(1))


class Beside(nn.Module):
    """Two branches that meet in the logits, so that nothing flows through one value."""

    def __init__(self):
        super().__init__()
        parts = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )
        self.a, self.b = nn.Sequential(*parts), nn.Sequential(nn.ReLU(), *parts)

    def forward(self, x):
        return (self.a(x) + self.b(x)) / 2


def test_vectors_are_no_blocks_by_default():
    """Neither the sum of two heads' logits nor a vector's residual blocks; nor a map of one."""
    with pytest.raises(ValueError, match=r"no map and no tokens.*blocks=\[…\].* out of add"):
        Network(Beside(), device="cpu", input_size=(8, 8))
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    vectors = nn.Sequential(*pool, nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))
    with pytest.raises(ValueError, match="name the blocks yourself.* 2, 3"):
        Network(vectors[1:], device="cpu", input_size=(1, 1))
    assert Network(vectors, device="cpu", input_size=(8, 8), blocks=["2"]).channels("2") == 8
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 8, 1), nn.ReLU()
    behind = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5))
    assert Network(behind, device="cpu", input_size=(8, 8)).blocks == ("0",)
    pools = nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5)
    with pytest.raises(ValueError, match="name the blocks yourself.* 0, 1, 3"):
        Network(nn.Sequential(*pools), device="cpu", input_size=(8, 8))


def test_models_and_cuts_that_are_none():
    with pytest.raises(TypeError, match="ByValue cannot be traced.*not depend on their values"):
        Network(ByValue(), input_size=(8, 8))
    model = torchvision.models.resnet18()
    with pytest.raises(KeyError, match="'layer1.0.conv1' is no cut point.*cut points.*layer1"):
        Network(model, device="cpu", blocks=["layer1.0.conv1"], input_size=(64, 64))
    with pytest.raises(KeyError, match="'layer9' is no part of the model; choose from"):
        Network(model, device="cpu", blocks=["layer9"], input_size=(64, 64))
    with pytest.raises(KeyError, match="'layer' is no cut point"):
        Network(OneByOne(), device="cpu", blocks=["layer"], input_size=(8, 8))
    heads = nn.Flatten(2), nn.Unflatten(1, (2, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    with pytest.raises(KeyError, match="'3' is no cut point"):  # its channels are two dimensions
        of_heads = nn.Sequential(nn.Conv2d(3, 4, 2, 2), *heads)
        Network(of_heads, device="cpu", blocks=["3"], input_size=(8, 8))
    with pytest.raises(ValueError, match="2 names for 1000 classes"):
        Network(model, device="cpu", classes=("a", "b"), input_size=(64, 64))
    network = Network(tokens(rows=16), device="cpu", input_size=(8, 8))
    assert network.channels("add") == 8 and network.own_size("add_1") == (16,)
    with pytest.raises(ValueError, match="positions of add have no known place"):
        network.map_size("add")
    with pytest.raises(ValueError, match="no batch norm enters add"):
        network.bn_shift("add")
    with pytest.raises(ValueError, match=r"add: expected \(N, P, 8\), got \(2, 8, 16\)"):
        network.between(torch.randn(2, 8, 16), "add", "add_1")


@torch.no_grad()
def test_blocks_by_any_name():
    """A module stands for what it ends with before its activation, a node for itself."""
    model = random_network("v1.5").model
    names = ["maxpool", "layer1", "layer2.0", "layer4.0.relu"]
    network = Network(model, device="cpu", blocks=names, input_size=(64, 64))
    assert network.blocks == tuple(names)
    images = torch.randn(2, 3, 64, 64)
    expected = random_network("v1.5").preactivations(images)
    mine = network.preactivations(images)
    torch.testing.assert_close(mine["layer1"], expected["layer1.1"])
    torch.testing.assert_close(mine["layer2.0"], expected["layer2.0"])
    stem = model.maxpool(model.bn1(model.conv1(images)).relu())
    torch.testing.assert_close(mine["maxpool"], stem)
    turned = network.preactivations(images, ["layer2.0", "maxpool"])
    assert [*turned] == ["maxpool", "layer2.0"]
    torch.testing.assert_close(turned["layer2.0"], mine["layer2.0"])
    again = network.double()
    assert again.blocks == network.blocks and again.classes == network.classes


@torch.no_grad()
def test_positions_and_arranged():
    network = random_network("basic")
    x = torch.randn(2, 64, 5, 7)
    flat = network.positions(x, "layer1.0")
    assert torch.equal(flat[:, 9], x[:, :, 1, 2])
    with pytest.raises(ValueError, match="35 positions are no map.*input_size"):
        network.arranged(flat, "layer1.0")
    square = network.arranged(flat[:, :25].contiguous(), "layer1.0")
    assert square.shape == (2, 64, 5, 5)
    assert square.is_contiguous(memory_format=torch.channels_last)
    oblong = Network(network.model, device="cpu", input_size=(64, 96))
    assert oblong.map_size("layer1.0") == (16, 24)
    assert oblong.arranged(torch.randn(1, 24, 64), "layer1.0").shape == (1, 64, 4, 6)


def test_shift_is_of_batch_norms_alone():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3))
    norm, head = nn.BatchNorm2d(5), (nn.Flatten(), nn.Linear(125, 2))
    model = randomised(nn.Sequential(*plain, norm, nn.ReLU(), *head)).eval()
    network = Network(model, device="cpu", input_size=(16, 16))
    assert network.blocks == ("0", "3") and network.shift("0") is None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = norm.bias + scale * (model[3].bias - norm.running_mean)
    torch.testing.assert_close(network.shift("3"), expected)

    norm, head = nn.BatchNorm2d(4), (nn.Flatten(), nn.Linear(144, 2))  # of no convolution
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.ReLU(), *head)).eval()
    network = Network(model, device="cpu", input_size=(8, 8), blocks=["2"])
    nothing = torch.zeros(1, 4, 1, 1)
    torch.testing.assert_close(network.shift("2"), norm(nothing).flatten())


class InRows(nn.Module):
    """Two maps, one below the other or in other channels."""

    def __init__(self, dim, one, other):
        super().__init__()
        self.one, self.other, self.dim = nn.Conv2d(3, 4, *one), nn.Conv2d(3, 4, *other), dim

    def forward(self, x):
        return torch.cat([self.one(x), self.other(x)], self.dim).mean((2, 3))


def test_receptive_fields_are_squares_in_step_or_none():
    for dim, one, other, field in (
        (1, (3,), (3,), (3, 1, 0)),
        (1, (2, 4), (2, 4, 1), (3, 4, -1)),  # of two pixels each, of which they share one
        (2, (3,), (3,), None),
        (1, ((3, 1),), ((3, 1),), None),
    ):
        model = InRows(dim, one, other)
        network = Network(model, device="cpu", input_size=(10, 10), blocks=["cat"])
        assert network.receptive_field("cat") == field


@pytest.mark.slow
@torch.no_grad()
def test_accuracy_on_validation_pictures(network, validation):
    """Top-1 ≥ 80 % and top-5 ≥ 95 %: a wrong conversion (stride, ε, channel order) costs more."""
    top1, top5 = accuracy(network, load_pictures(str(validation)))
    print(f"top-1 {top1:.3f}, top-5 {top5:.3f}")
    assert top1 >= 0.80 and top5 >= 0.95


@pytest.mark.slow
@torch.no_grad()
def test_lite0_on_validation_pictures(validation):
    """Its weights come by order into another package's architecture: top-1 ≥ 78 %, of 325."""
    lite = load_network("efficientnet_lite0", device="cpu")
    pictures = load_pictures(str(validation), lite)
    top1, top5 = accuracy(lite, pictures.subset(range(0, len(pictures), 4)))
    print(f"top-1 {top1:.3f}, top-5 {top5:.3f}")
    assert top1 >= 0.78 and top5 >= 0.93


def accuracy(network, pictures) -> tuple[float, float]:
    hits = []
    for start in range(0, len(pictures), 50):
        batch = range(start, min(start + 50, len(pictures)))
        ranked = network.logits(pictures[batch]).topk(5).indices
        hits.append(ranked == torch.tensor([pictures.labels[i] for i in batch])[:, None])
    right = torch.cat(hits).double()
    return float(right[:, 0].mean()), float(right.sum(dim=1).mean())
