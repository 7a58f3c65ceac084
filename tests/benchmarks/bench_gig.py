"""GIG against Captum's IntegratedGradients on U ↦ T(UV + β): time, and memory against k.

    python tests/benchmarks/bench_gig.py [--points 16]

Both attribute the same five targets at the same quadrature points, on random sparse codes of the
paper's size (k = 8C). Memory: one target, one process per measurement, peak resident memory
above what the process held just before, which includes codes and concepts.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from captum.attr import IntegratedGradients
from torch import Tensor

from gig_helpers.gig import gig
from gig_helpers.network import Network

PAIRS = (("layer1.2", "layer2.3", 56), ("layer3.5", "layer4.2", 14))
TARGETS = 5
NONZERO = {"layer1.2": 12, "layer3.5": 31}


def case(
    source: str, target: str, side: int, expansion: int
) -> tuple[Callable[[int, int], Tensor], Callable[[int, int], Tensor]]:
    """Ours and Captum's; both take (points, targets) and give (targets, k)."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()  # trained weights would not change the cost
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # without shifts every α would be the same point
            torch.nn.init.normal_(part.bias, std=0.2)
    network = Network(model, device="cpu")
    channels = network.channels(source)
    k = expansion * channels
    codes = torch.zeros(side * side, k)
    where = torch.randint(k, (side * side, NONZERO[source]))
    codes.scatter_(1, where, torch.randn(where.shape))
    concepts = torch.nn.functional.normalize(torch.randn(k, channels), dim=1)
    vectors = torch.nn.functional.normalize(torch.randn(TARGETS, network.channels(target)), dim=1)
    beta = network.bn_shift(source)

    def forward(u: Tensor) -> Tensor:
        # In the layout that ours uses too: Captum's convolutions are as fast as ours.
        x = (u @ concepts + beta).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return network.between(x, source, target).sum(dim=(2, 3)) @ vectors.T

    def ours(points: int, targets: int) -> Tensor:
        found = gig(network, codes, concepts, source, target, vectors[:targets], points=points)
        assert isinstance(found, Tensor)
        return found

    def captum(points: int, targets: int) -> Tensor:
        explain = IntegratedGradients(forward).attribute
        found = [
            explain(
                codes[None], target=t, n_steps=points, method="gausslegendre",
                internal_batch_size=min(points, 16),
            )[0].sum(dim=0)
            for t in range(targets)
        ]  # fmt: skip
        return torch.stack(found)

    return ours, captum


def times(points: int) -> None:
    for source, target, side in PAIRS:
        ours, captum = case(source, target, side, expansion=8)
        taken = {}
        for name, run in (("ours", ours), ("captum", captum)):
            run(points, 1)  # libraries choose their kernels, and take their memory, on a first call
            start = time.perf_counter()
            result = run(points, TARGETS)
            taken[name] = time.perf_counter() - start, result
        (fast, a), (slow, b) = taken["ours"], taken["captum"]
        print(
            f"{source} → {target}, {TARGETS} targets, {points} points: ours {fast:.2f} s, "
            f"Captum {slow:.2f} s, ratio {slow / fast:.1f}, "
            f"relative difference {(a - b).norm() / b.norm():.0e}",
            flush=True,
        )


def memory(which: str, pair: int, expansion: int, points: int) -> None:
    """Print the peak in MB of one run above the memory held before it."""
    run = case(*PAIRS[pair], expansion)[which == "captum"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(points, 1)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def memories(points: int) -> None:
    for pair, (source, target, _) in enumerate(PAIRS):
        for which in ("ours", "captum"):
            peaks = []
            for expansion in (1, 4, 8):
                command = [sys.executable, __file__, "--memory", which, str(pair), str(expansion)]
                command += ["--points", str(points)]
                found = subprocess.run(command, capture_output=True, text=True, check=True)
                peaks.append(f"{expansion}C: {int(found.stdout):5d} MB")
            print(f"{source} → {target}, peak memory of {which:6}", *peaks, sep="   ", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        name, number, size = options.memory
        memory(name, int(number), int(size), options.points)
    else:
        # First: a process inherits the peak of the one that starts it.
        memories(options.points)
        times(options.points)
