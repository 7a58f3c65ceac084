"""Architectures of torchvision and timm, with random weights: what a network of each does.

Logits of the traced graph against the model, the same again, default blocks, F_ab composed to the
logits from each block, and blocks whose positions have no known place. "refused" is a sentence.
``python tests/benchmarks/bench_architectures.py [name …]``; without names all of them.
"""

import sys
import warnings

import timm
import torch
import torchvision

from gig_helpers import Network

TORCHVISION = """
alexnet vgg11 squeezenet1_1 densenet121 googlenet resnet18 resnext50_32x4d wide_resnet50_2
shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0 efficientnet_v2_s
regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t
""".split()
TIMM = """
deit_tiny_distilled_patch16_224 crossvit_tiny_240 cait_xxs24_224 xcit_nano_12_p16_224
coat_lite_tiny pit_ti_224 levit_128s visformer_tiny twins_svt_small pvt_v2_b0 mobilevit_xxs
mobilevitv2_050 edgenext_xx_small efficientformer_l1 efficientvit_b0 fastvit_t8 repvit_m0_9
mvitv2_tiny davit_tiny focalnet_tiny_srf coatnet_0_rw_224 maxvit_rmlp_pico_rw_256
eva02_tiny_patch14_224 beit_base_patch16_224 mixer_s16_224 gmlp_s16_224 resmlp_12_224
convmixer_768_32 poolformer_s12 convnextv2_atto resnest14d inception_v4 xception41 ghostnet_050
hrnet_w18_small tresnet_m nfnet_f0 hardcorenas_a lcnet_050 tinynet_e repvgg_a0 dla34 cspresnet50
gernet_s skresnet18
""".split()
CLOSE = 1e-4


def apart(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@torch.no_grad()
def row(name: str) -> str:
    torch.manual_seed(0)
    if name in TORCHVISION:
        extra = {"aux_logits": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **extra).eval()
    else:
        model = timm.create_model(name).eval()
    try:
        network = Network(model, device="cpu")
    except (TypeError, ValueError, KeyError) as refusal:
        return f"{name:32} refused: {refusal}"
    images = torch.randn(2, 3, *network.input_size)
    expected, logits = model(images), network.logits(images)
    again = apart(network.logits(images), logits)
    at = network.preactivations(images)
    below = max(apart(network.logits_from(x, block), expected) for block, x in at.items())
    lost = 0
    for block in network.blocks:
        try:
            network.map_size(block)
        except ValueError:
            lost += 1
    worst = max(apart(logits, expected), again, below)
    verdict = "ok" if worst < CLOSE else "WRONG"
    return (
        f"{name:32} {verdict:6} {apart(logits, expected):9.1e} {again:9.1e} {below:9.1e} "
        f"{len(network.blocks):4} {lost:4}"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(
        f"{'architecture':32} {'':6} {'model':>9} {'again':>9} {'F_ab':>9} blocks, without places"
    )
    for each in sys.argv[1:] or TORCHVISION + TIMM:
        print(row(each), flush=True)
