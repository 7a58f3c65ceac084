"""One test over many architectures: F_ab, GIG against Captum, SRD's conservation; own classes."""

import itertools

import pytest
import timm
import torch
import torchvision.models as tv
from captum.attr import IntegratedGradients
from conftest import randomised, save_pictures
from PIL import Image
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from gig_helpers import (
    Network,
    Profile,
    attribute,
    class_names,
    concept_graph,
    decompose,
    deletion_insertion,
    fit_concepts,
    illustrate,
    load_pictures,
    sample,
    save_html,
    srd,
)
from gig_helpers.data.weights import Preprocessing
from gig_helpers.gig import class_relevance, gig
from gig_helpers.report.graph_page import interactive_graph


class Plain(nn.Sequential):
    """A reader's own."""

    def __init__(self):
        layers = (
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 5, 2, bias=False),
        )
        super().__init__(*layers, nn.BatchNorm2d(12), nn.Tanh(), nn.Flatten(), nn.Linear(432, 5))


def vgg():
    model = tv.vgg11(num_classes=5)
    model.classifier = nn.Sequential(
        nn.Linear(25088, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)
    )
    return model


def fine_tuned():
    model = tv.resnet18()
    model.fc = nn.Linear(512, 5)
    return model


def swin(make):
    return lambda: tv.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=5, **make)


# Few blocks and small pictures, and sizes that windows and strides do not divide.
ARCHITECTURES = {
    "vgg": (vgg, (64, 64)),
    "fine-tuned resnet18": (fine_tuned, (64, 48)),
    "wide resnet": (
        lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], 5, width_per_group=128),
        (64, 64),
    ),
    "densenet": (lambda: tv.DenseNet(8, (2, 2, 2), 16, num_classes=5), (64, 64)),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(width_mult=0.35, num_classes=5), (64, 64)),
    "mobilenet_v3": (lambda: tv.mobilenet_v3_small(width_mult=0.5, num_classes=5), (64, 64)),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=5), (64, 64)),
    "convnext": (
        lambda: tv.ConvNeXt(
            [CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)],
            num_classes=5,
        ),
        (64, 64),
    ),
    "regnet": (lambda: tv.regnet_y_400mf(num_classes=5), (64, 64)),
    "vit": (lambda: tv.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5), (32, 32)),
    "swin": (swin({}), (44, 36)),
    "swin_v2": (
        swin(
            {
                "block": tv.swin_transformer.SwinTransformerBlockV2,
                "downsample_layer": tv.swin_transformer.PatchMergingV2,
            }
        ),
        (44, 36),
    ),
    "googlenet": (
        lambda: tv.googlenet(num_classes=5, aux_logits=False, init_weights=False),
        (64, 64),
    ),
    "shufflenet": (lambda: tv.shufflenet_v2_x0_5(num_classes=5), (64, 64)),
    "squeezenet": (lambda: tv.squeezenet1_1(num_classes=5), (64, 64)),
    "mnasnet": (lambda: tv.mnasnet0_5(num_classes=5), (64, 64)),
    "timm lite0": (lambda: timm.create_model("efficientnet_lite0", num_classes=5), (64, 64)),
    "timm vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5, reg_tokens=2
        ),
        (64, 64),
    ),
    "timm convnextv2": (
        lambda: timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), num_classes=5),
        (64, 64),
    ),
    "timm cait": (
        lambda: timm.create_model("cait_xxs24_224", img_size=64, depth=2, num_classes=5),
        (64, 64),
    ),
    "timm mixer": (lambda: MlpMixer(5, 32, 3, 8, 2, 24), (32, 32)),
    "timm eva02": (
        lambda: timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2, num_classes=5),
        (56, 56),
    ),
    "own": (Plain, (33, 33)),
}

# Operations that the others do not have; SRD alone is asked of them.
SUMS = {
    "twins": ("twins_svt_small", 64, {"depths": (1, 1, 1, 1)}),
    "coatnet": ("coatnet_pico_rw_224", 224, {}),
    "resnest": ("resnest14d", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "davit": ("davit_tiny", 64, {"depths": (1, 1, 1, 1)}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gmlp": ("gmlp_ti16_224", 64, {"img_size": 64}),
    "mvitv2": ("mvitv2_tiny", 64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
}  # fmt: skip


def error(value, expected):
    return float((value - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request):
    make, size = ARCHITECTURES[request.param]
    size = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    network = Network(randomised(make()), request.param, device="cpu", input_size=size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        return network, images, network.preactivations(images), network.logits(images)


def test_f_ab_composes_to_the_logits(case):
    """What differs is float32's rounding, of the fused batch norms above all."""
    network, _, at, logits = case
    assert len(network.blocks) > 1 and tuple(at) == network.blocks
    for block, x in at.items():
        assert error(network.logits_from(x, block), logits) < 1e-5, block
        flat = network.positions(x, block)
        assert flat.shape[2] == network.channels(block)
        assert torch.equal(network.arranged(flat, block), x)
    for source, target in itertools.pairwise(network.blocks):
        x = network.between(at[source], source, target)
        assert error(x, at[target]) < 1e-5, (source, target)
        rows = network.segment(source, target)(network.positions(at[source], source))
        assert error(rows, network.positions(at[target], target)) < 1e-5, (source, target)


def test_gig_is_captums(case):
    network, _, at, logits = case
    source, last = network.blocks[len(network.blocks) // 2 - 1], network.blocks[-1]
    x = network.positions(at[source], source)[:1]
    beta = x.mean(dim=(0, 1))
    codes = torch.randn(1, x.shape[1], 4, dtype=x.dtype)
    concepts = torch.randn(4, x.shape[2], dtype=x.dtype) * x.std()
    label, unit = int(logits[0].argmax()), torch.randn(network.channels(last), dtype=x.dtype)
    unit /= unit.norm()
    options = {"beta": beta, "points": 3, "positions": True}

    to_last, to_logits = network.segment(source, last), network.segment(source)

    def summed(u):
        return to_last(u @ concepts + beta).sum(dim=1) @ unit

    captum = IntegratedGradients(lambda u: to_logits(u @ concepts + beta)[:, label])
    expected = captum.attribute(codes, n_steps=3, method="gausslegendre")
    mine = class_relevance(network, codes, concepts, source, [label], **options)
    # A path has kinks: float32's rounding may put a point on either side of one.
    assert error(mine[:, 0], expected) < 1e-4
    expected = IntegratedGradients(summed).attribute(codes, n_steps=3, method="gausslegendre")
    mine = gig(network, codes, concepts, source, last, unit[None], **options)
    assert error(mine[:, 0], expected) < 1e-4


def test_srd_conserves(case):
    """What is lost are shares of vectors that are 0, and float32's rounding."""
    network, images, at, logits = case
    maps = srd.contributions(network, images, [srd.PIXELS, *network.blocks])
    assert maps[srd.PIXELS].shape == (2, *images.shape[2:])
    for level, relevance in maps.items():
        torch.testing.assert_close(
            relevance.flatten(1).sum(1), logits.amax(1), rtol=1e-3, atol=0, msg=level
        )
        if level != srd.PIXELS:
            assert relevance[0].numel() == network.positions(at[level], level).shape[1]
    for block in (network.blocks[0], network.blocks[-1]):
        own = network.own_size(block)
        places = torch.tensor([[0] * len(own), [size - 1 for size in own]]).expand(2, -1, -1)
        fields = srd.ierf(network, images, block, places)
        assert fields.shape == (2, 2, *images.shape[2:])
        ones = torch.ones(2, 2, dtype=fields.dtype)
        torch.testing.assert_close(fields.sum((2, 3)), ones, rtol=1e-3, atol=0, msg=block)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason="each attention loses some"))
        if name == "mvitv2" else name
        for name in [*SUMS, "maxvit_t"]
    ],
)  # fmt: skip
def test_shares_add_up_whatever_the_operations(name):
    """In float64, where a share that is lost is no rounding."""
    torch.manual_seed(0)
    if name == "maxvit_t":
        model, size = tv.MaxVit((64, 64), 32, 2, [32, 64], [1, 1], 16, 0.0, num_classes=5), 64
    else:
        made, size, options = SUMS[name]
        model = timm.create_model(made, num_classes=5, **options)
    network = Network(randomised(model).double(), name, device="cpu", input_size=(size, size))
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    maps = srd.contributions(network, images, [srd.PIXELS, *network.blocks])
    for level, relevance in maps.items():
        logit = network.logits(images).amax()
        torch.testing.assert_close(relevance.sum(), logit, rtol=1e-9, atol=1e-9, msg=level)


def vgg16():
    model = tv.vgg16(num_classes=5)
    model.classifier = nn.Sequential(nn.Linear(25088, 32), nn.ReLU(), nn.Linear(32, 5))
    return model, ("features.16", "features.28"), 64


def vit():
    model = tv.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=5)
    return model, None, 32


@pytest.mark.parametrize("make", (vgg16, vit))
def test_the_chapters_calls_for_a_vgg_and_a_vit(make, tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "made"))
    save_pictures(tmp_path / "pictures", 6)
    torch.manual_seed(0)
    model, blocks, size = make()
    ready = Preprocessing(size=size, resize=size)
    network = Network(
        randomised(model), device="cpu", blocks=blocks, input_size=(size, size), preprocessing=ready
    )
    pictures = load_pictures(str(tmp_path / "pictures"), network)
    source, last = network.blocks[-2:]
    profile = Profile(blocks=(source, last), per_image=4, families=None)
    pfvs = sample(network, pictures, profile)
    images = torch.stack([pictures[i] for i in range(6)])
    maps = srd.contributions(network, images, [source])
    logits = network.logits(images).amax(1)
    torch.testing.assert_close(maps[source].flatten(1).sum(1), logits, rtol=1e-3, atol=1e-4)
    d = decompose(network, pictures[:2], fit_concepts(pfvs, profile))
    graph = concept_graph(d, [3, 4], top=2, shared=1)
    assert {data["kind"] for _, data in graph.nodes(data=True)} == {"class", "concept"}
    gamma, delta = class_relevance(
        network, d.codes[source], d.concepts[source].vectors, source, [3],
        beta=d.concepts[source].beta, return_convergence_delta=True,
    )  # fmt: skip
    assert (delta.abs() <= 0.0101 * (gamma.sum(2) - delta).abs()).all(), "completeness"
    torch.testing.assert_close(
        attribute(d, source, [[3], [3]]).sum(2), gamma.sum(2), rtol=0.1, atol=1e-3
    )


def test_places(case):
    """Every block's positions but for class tokens lie in the picture as a map."""
    network, images, at, _ = case
    for block, x in at.items():
        rows, columns = network.map_size(block)
        tokens = {"vit": 1, "timm vit": 3, "timm eva02": 1}.get(network.name, 0)
        assert network.placeless(block) == tokens
        assert network.positions(x, block).shape[1] == rows * columns + tokens
        assert rows / columns == pytest.approx(images.shape[2] / images.shape[3], rel=0.5)


def test_own_classes_from_pictures_to_graph(tmp_path, monkeypatch):
    """A fine-tuned network's own names, in folders, graphs and cards; never ImageNet's."""
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "made"))
    names = ("ash", "birch", "cedar", "fir", "oak")
    noise = torch.rand(10, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255
    for n, values in enumerate(noise.byte().numpy()):
        place = tmp_path / "trees" / names[n % 5] / f"{n}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(place)
    ready = Preprocessing(size=64, resize=64)
    torch.manual_seed(0)
    options = {"input_size": (64, 64), "classes": names, "preprocessing": ready}
    network = Network(randomised(fine_tuned()), device="cpu", **options)
    pictures = load_pictures(str(tmp_path / "trees"), network)
    assert [names[label] for label in pictures.labels] == [p.split("/")[0] for p in pictures.paths]
    profile = Profile(blocks=("layer3.0", "layer4.1"), per_image=3, families=None)
    pfvs = sample(network, pictures, profile)
    d = decompose(network, pictures[:2], fit_concepts(pfvs, profile))
    graph = concept_graph(d, [3, 4], top=2, shared=1)
    assert {d["name"] for _, d in graph.nodes(data=True) if d["kind"] == "class"} == {"fir", "oak"}
    gamma = attribute(d, "layer4.1", [[3], [4]])
    curves = deletion_insertion(d, "layer4.1", [[3], [4]], gamma)
    assert curves["logit"].deletion.y.isfinite().all()
    shown = illustrate(graph, d, pfvs)
    labels = {shot.label for shots in shown.examples.values() for shot in shots}
    assert labels and labels <= set(names)
    about = " ".join(interactive_graph(shown).data[-1].text)
    assert "oak" in about and not set(class_names()[:5]) & set(about.replace("<br>", " ").split())


KINDS = {
    "one channel, oblong": (torch.float32, 1, (24, 40)),
    "half": (torch.float16, 3, (32, 32)),
    "bfloat16": (torch.bfloat16, 3, (32, 32)),
    "float64, oblong": (torch.float64, 3, (40, 24)),
    "made double": (torch.float32, 1, (32, 32)),
}


def test_padding_before_a_layer_moves_no_place():
    """TensorFlow's convolutions pad at the right and below alone, in an operation of their own."""
    layers = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    network = Network(model, device="cpu", input_size=(16, 12), blocks=["1"])
    assert network.map_size("1") == (8, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_from_pictures_to_graph_in_other_types_channels_and_shapes(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "made"))
    dtype, channels, size = KINDS[kind]
    noise = torch.rand(8, 50, 70, 3, generator=torch.Generator().manual_seed(0)) * 255
    (tmp_path / "noise").mkdir()
    for n, values in enumerate(noise.byte().numpy()):
        Image.fromarray(values).save(tmp_path / "noise" / f"{n}.png")
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1)
    head = nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = randomised(nn.Sequential(*layers, *head)).to(dtype)
    network = Network(model, device="cpu", input_size=size)
    network = network.double() if kind == "made double" else network
    pictures = load_pictures(str(tmp_path / "noise"), network)
    assert pictures[[0]].shape == (1, channels, *size)
    profile = Profile(per_image=4, families=None)
    pfvs = sample(network, pictures, profile)
    concepts = fit_concepts(pfvs, profile)
    d = decompose(network, pictures[:2], concepts)
    assert d.codes[network.blocks[0]].dtype == network.dtype
    first, last = network.blocks
    assert network.map_size(first) == (size[0] // 2, size[1] // 2)
    gamma = attribute(d, first, [0, 1])
    assert gamma.isfinite().all() and gamma.dtype == network.dtype
    assert (
        deletion_insertion(d, last, [0, 1], attribute(d, last, [0, 1]))["logit"]
        .deletion.y.isfinite()
        .all()
    )
    graph = illustrate(concept_graph(d, [0, 1], top=2, shared=1), d, pfvs)
    save_html(graph, str(tmp_path / "graph.html"))
    assert (tmp_path / "graph.html").stat().st_size > 1000


STAGES = {
    "deit_tiny_distilled_patch16_224": ({"depth": 3, "img_size": 32}, (32, 32), {(2, 2)}),
    "mobilevit_xxs": ({}, (64, 64), {(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)}),
    "efficientformer_l1": ({}, (224, 224), {(56, 56), (28, 28), (14, 14), (7, 7)}),
    "test_vit": ({"img_size": 32}, (32, 32), {(2, 2)}),
}


@pytest.mark.parametrize("name", STAGES)
def test_default_blocks_are_of_every_stage_and_have_places(name):
    options, size, expected = STAGES[name]
    model = timm.create_model(name, num_classes=5, **options)
    network = Network(model, device="cpu", input_size=size)
    assert {network.map_size(block) for block in network.blocks} == expected
    assert all(len(network.node(block).meta["shape"]) > 2 for block in network.blocks)
