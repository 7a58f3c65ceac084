"""GIG against Captum's IntegratedGradients on U ↦ T(UV + β): time, and memory against k.

    python tests/benchmarks/bench_gig.py [--points 16]

Both attribute the same five targets, on random sparse codes of the paper's size (k = 8C): at the
same quadrature points, and until every target's completeness gap is at most 1 %. Captum is doubled
from 8 points on, as one does with it; the last of its doublings alone is printed too, as if the
number had been known. Beside them what others take without asking for a gap: attribution
patching's one gradient, the floor, and EAP-IG's five. Memory: one target, one process per
measurement, peak resident memory above what the process held just before, which includes codes and
concepts.
"""

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from captum.attr import IntegratedGradients
from torch import Tensor
from torch.nn import functional as F

from gig_helpers.gig import gig
from gig_helpers.network import Network

PAIRS = (("layer1.2", "layer2.3", 56), ("layer3.5", "layer4.2", 14))
TARGETS = 5
GAP = 0.01
OTHERS = {"attribution patching": ("endpoint", None), "EAP-IG": ("riemann_right", 5)}
"""Rule and points: Syed et al. (2023), Hanna et al. (2024)."""
NONZERO = {"layer1.2": 12, "layer3.5": 31}


@dataclass(frozen=True)
class Case:
    """One pair of blocks with codes of the paper's size; what is attributed is (targets, k)."""

    network: Network
    given: tuple[Tensor, Tensor, str, str, Tensor]

    @classmethod
    def of(cls, source: str, target: str, side: int, expansion: int) -> "Case":
        torch.manual_seed(0)
        model = torchvision.models.resnet50()  # trained weights would not change the cost
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):  # without shifts every α is the same point
                torch.nn.init.normal_(part.bias, std=0.2)
        network = Network(model, device="cpu")
        channels = network.channels(source)
        k = expansion * channels
        codes = torch.zeros(side * side, k)
        where = torch.randint(k, (side * side, NONZERO[source]))
        codes.scatter_(1, where, torch.randn(where.shape))
        concepts = F.normalize(torch.randn(k, channels), dim=1)
        vectors = F.normalize(torch.randn(TARGETS, network.channels(target)), dim=1)
        return cls(network, (codes, concepts, source, target, vectors))

    def value(self, u: Tensor) -> Tensor:
        _, concepts, source, target, vectors = self.given
        # By the function that ours runs too: Captum's convolutions are as fast as ours.
        after = self.network.segment(source, target)(u @ concepts + self.network.bn_shift(source))
        return after.sum(dim=1) @ vectors.T

    def ours(self, points: int, targets: int) -> Tensor:
        *given, vectors = self.given
        beta = self.network.bn_shift(given[2])
        return gig(self.network, *given, vectors[:targets], beta=beta, points=points)

    def gaps(self, **options: Any) -> Tensor:
        """Each target's completeness gap."""
        gamma, delta = gig(
            self.network, *self.given, beta=self.network.bn_shift(self.given[2]),
            return_convergence_delta=True, **options,
        )  # fmt: skip
        return (delta / (gamma.sum(dim=1) - delta)).abs()

    def captum(self, points: int, targets: int) -> Tensor:
        return torch.stack([self._captum(points, t)[0][0].sum(dim=0) for t in range(targets)])

    def captums_gap(self, points: int, target: int) -> float:
        gamma, delta = self._captum(points, target)
        return float((delta / (gamma.sum() - delta)).abs())

    def _captum(self, points: int, target: int) -> tuple[Tensor, Tensor]:
        return IntegratedGradients(self.value).attribute(
            self.given[0][None], target=target, n_steps=points, method="gausslegendre",
            internal_batch_size=min(points, 16), return_convergence_delta=True,
        )  # fmt: skip


def times(points: int) -> None:
    for source, target, side in PAIRS:
        pair, taken = Case.of(source, target, side, expansion=8), {}
        for name, run in (("ours", pair.ours), ("captum", pair.captum)):
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


def equal_gaps() -> None:
    for source, target, side in PAIRS:
        run = Case.of(source, target, side, expansion=8)
        run.ours(2, 1), run.captum(2, 1)  # kernels are chosen on a first call
        start = time.perf_counter()
        gaps = run.gaps(tolerance=GAP)
        fast, total, last = time.perf_counter() - start, 0.0, 0.0
        assert (gaps <= GAP * 1.001).all()
        for t in range(TARGETS):
            points, gap = 4, 1.0
            while gap > GAP and points < 1024:
                points *= 2
                start = time.perf_counter()
                gap = run.captums_gap(points, t)
                taken = time.perf_counter() - start
                total += taken
            last += taken
        print(
            f"{source} → {target}, {TARGETS} targets, gap ≤ {GAP:.0%}: ours {fast:.2f} s, Captum "
            f"{total:.2f} s, ratio {total / fast:.1f}; its last doublings alone {last / fast:.1f}",
            flush=True,
        )
        for name, (rule, points) in OTHERS.items():
            start = time.perf_counter()
            gaps = run.gaps(rule=rule, points=points)
            taken = time.perf_counter() - start
            print(
                f"    {name}: {taken:.2f} s, {taken / fast:.2f} of ours, "
                f"gaps of {gaps.min():.1%} to {gaps.max():.1%}",
                flush=True,
            )


def memory(which: str, pair: int, expansion: int, points: int) -> None:
    """Print the peak in MB of one run above the memory held before it."""
    run = getattr(Case.of(*PAIRS[pair], expansion), which)
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
                measured = subprocess.run(command, capture_output=True, text=True, check=True)
                peaks.append(f"{expansion}C: {int(measured.stdout):5d} MB")
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
        equal_gaps()
