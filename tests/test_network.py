"""network.py: F_ab and the logits equal the full pass; the converted weights classify."""

import itertools
import math

import pytest
import torch
import torchvision
from conftest import SMALL, random_network
from torch import nn

from gig_helpers import Network, load_network, load_pictures


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
@torch.no_grad()
def test_every_pair_of_blocks_equals_the_full_pass(name):
    network = random_network(name)
    images = torch.randn(2, 3, 64, 64)
    full = network.preactivations(images)
    logits = network.logits(images)
    assert tuple(full) == network.blocks
    for source, target in itertools.combinations(network.blocks, 2):
        error = (network.between(full[source], source, target) - full[target]).norm()
        assert error <= 1e-5 * full[target].norm(), (source, target)
    for block in network.blocks:
        assert (network.logits_from(full[block], block) - logits).norm() <= 1e-5 * logits.norm()


@torch.no_grad()
def test_every_pair_of_the_real_network(network, pictures):
    images = torch.stack([pictures[0], pictures[5]])
    full = network.preactivations(images)
    for source, target in itertools.combinations(network.blocks, 2):
        error = (network.between(full[source], source, target) - full[target]).norm()
        assert error <= 1e-5 * full[target].norm(), (source, target)


@torch.no_grad()
def test_preactivation_is_the_input_of_the_blocks_last_relu():
    network = random_network("resnet50", torch.float64)
    seen = {}
    for name in network.blocks:
        network.block(name).register_forward_hook(lambda m, i, out, n=name: seen.update({n: out}))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    network.logits(images)
    for name, x in network.preactivations(images).items():
        torch.testing.assert_close(x.relu(), seen[name], rtol=1e-9, atol=1e-9)
        assert (x < 0).any()


@torch.no_grad()
def test_bn_shift_is_what_a_black_branch_adds():
    """With all convolutions zero, a block puts out nothing but its batch norms' shifts."""
    network = random_network("resnet50")
    # All before the first pass, at which convolutions and batch norms are made one.
    for module in network.model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    for name in ("layer1.0", "layer2.0", "layer3.3"):
        block = network.block(name)
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
    for block in map(network.block, network.blocks):
        pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        pairs += [(block.conv3, block.bn3)] if hasattr(block, "conv3") else []
        pairs += [tuple(block.downsample)] if block.downsample is not None else []
    assert set(network.fused) == {conv for conv, _ in pairs}
    for conv, norm in pairs:
        x = torch.randn(1, conv.in_channels, 9, 7, dtype=torch.float64)
        torch.testing.assert_close(network.fused[conv](x), norm(conv(x)))
    assert network.fused is network.fused, "made once"


@torch.no_grad()
def test_propagate_is_between_and_logits_from_without_checks():
    network = random_network("v1.5")
    x = network.preactivations(torch.randn(2, 3, 64, 64))["layer2.0"]
    assert torch.equal(
        network.propagate(x, "layer2.0", "layer4.0"), network.between(x, "layer2.0", "layer4.0")
    )
    assert torch.equal(network.propagate(x, "layer2.0"), network.logits_from(x, "layer2.0"))
    nothing = torch.full_like(x, math.nan)
    assert network.propagate(nothing, "layer2.0").isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        network.logits_from(nothing, "layer2.0")
    with pytest.raises(ValueError, match="NaN"):
        network.between(nothing, "layer2.0", "layer4.0")


@torch.no_grad()
def test_class_vectors_are_what_logits_are_read_by():
    network = random_network("v1.5")
    x = torch.randn(1, 2048, 2, 2)
    assert network.class_vectors.shape == (5, 2048)
    expected = network.class_vectors @ x.relu().mean(dim=(0, 2, 3)) + network.model.fc.bias
    torch.testing.assert_close(network.logits_from(x, "layer4.0")[0], expected)


def test_gradients_flow_between_blocks():
    network = random_network("resnet18")
    x = torch.randn(1, 64, 16, 16, requires_grad=True)
    network.between(x, "layer1.0", "layer2.0").sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


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
        load_network("vgg16")
    with pytest.raises(TypeError, match="Linear"):
        Network(nn.Linear(2, 2))


@pytest.mark.slow
@torch.no_grad()
def test_accuracy_on_validation_pictures(network, validation):
    """Top-1 ≥ 80 % and top-5 ≥ 95 %: a wrong conversion (stride, ε, channel order) costs more."""
    pictures = load_pictures(str(validation))
    top1 = top5 = 0
    for start in range(0, len(pictures), 50):
        batch = range(start, min(start + 50, len(pictures)))
        ranked = network.logits(torch.stack([pictures[i] for i in batch])).topk(5).indices
        hits = ranked == torch.tensor([pictures.labels[i] for i in batch])[:, None]
        top1, top5 = top1 + int(hits[:, 0].sum()), top5 + int(hits.any(dim=1).sum())
    print(f"top-1 {top1 / len(pictures):.3f}, top-5 {top5 / len(pictures):.3f}")
    assert top1 >= 0.80 * len(pictures)
    assert top5 >= 0.95 * len(pictures)
