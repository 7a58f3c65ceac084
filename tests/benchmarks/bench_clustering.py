"""Bisecting spherical k-means against scikit-learn's BisectingKMeans: time, tightness, memory.

    python tests/benchmarks/bench_clustering.py [--large]

Both cluster the same unit PFVs; tightness is the mean cosine to the own centroid. ``--large``
also clusters 50,000 random vectors of 2048 channels into 16,384 (layer4 at the paper's sizes),
without a rival.
"""

import argparse
import os
import resource
import time

import numpy as np
import torch
from sklearn.cluster import BisectingKMeans
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import load_network, load_pictures
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.concepts import concept_vectors

CASES = (("layer1.2", 2048), ("layer3.5", 4096))
PER_PICTURE = 100


def real_pfvs(block: str, count: int) -> tuple[Tensor, Tensor]:
    """PFVs (count, C) at random positions of pictures, in the pictures' order, and μ_BN."""
    network = load_network()
    pictures = load_pictures(os.environ.get("GIG_IMAGES", "sample"), network)
    generator = torch.Generator().manual_seed(0)
    wanted = min(-(-count // PER_PICTURE), len(pictures))
    drawn: list[Tensor] = []
    with torch.inference_mode():
        for ids in torch.arange(wanted).split(10):
            maps = network.preactivations(pictures[ids].to(network.device), [block])
            x = network.positions(maps[block], block)
            drawn += [row[torch.randperm(len(row), generator=generator)[:PER_PICTURE]] for row in x]
    return torch.cat(drawn)[:count].clone(), network.bn_shift(block)


def tightness(x: Tensor, labels: np.ndarray) -> float:
    unit = F.normalize(x, dim=1)
    assigned = torch.from_numpy(labels).long()
    centers = F.normalize(concept_vectors(x, assigned, torch.zeros(x.shape[1]), "unit"), dim=1)
    return float((unit * centers[assigned]).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also 50,000 × 2048 into 16,384")
    if parser.parse_args().large:
        x = torch.randn(50_000, 2048, generator=torch.Generator().manual_seed(0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        BisectingSphericalKMeans(16_384, random_state=0, device="cpu").fit(x)
        used = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"50,000 × 2048 into 16,384: {used:.0f} s, peak memory {peak / 2**20:.2f} GiB "
            f"({(peak - before) / 2**20:.2f} GiB above the data and libraries)"
        )
    for block, k in CASES:
        x, beta = real_pfvs(block, 10_000)
        # scikit-learn recurses without end where a cluster holds nothing but equal points.
        x = torch.unique(x - beta, dim=0)
        unit = F.normalize(x, dim=1).numpy()
        start = time.perf_counter()
        ours = BisectingSphericalKMeans(k, random_state=0, device="cpu").fit(x).labels_
        middle = time.perf_counter()
        rival = BisectingKMeans(k, bisecting_strategy="largest_cluster", random_state=0).fit(unit)
        end = time.perf_counter()
        print(
            f"{block}: {len(x)} PFVs into {k}: {middle - start:.1f} s, cosine "
            f"{tightness(x, ours):.4f}; scikit-learn {end - middle:.1f} s, "
            f"cosine {tightness(x, rival.labels_):.4f}"
        )


if __name__ == "__main__":
    main()
