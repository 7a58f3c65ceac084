"""Seconds of one forward pass of one picture, the unit of what chapters and benchmarks cost.

``python -m bookbuild.forward_pass FILE`` measures the profile's network on its pictures, and writes
the number into a file.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from gig_helpers import Network, load_network, load_pictures
from gig_helpers.data import profiles

BATCH, ROUNDS = 8, 2


def measure(network: Network, images: Tensor) -> float:
    """Seconds a picture of a batch (N, 3, H, W): mean of two rounds."""
    taken = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            network.logits(images)
            if images.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    # The first one starts threads and chooses kernels.
    return statistics.fmean(taken[1:]) / len(images)


def main() -> None:
    """Measure, and write the number into the file that the command line names."""
    profile = profiles.get()
    network, pictures = load_network(profile.network, profile.weights), load_pictures("sample")
    images = torch.stack([pictures[i] for i in range(BATCH)]).to(network.device)
    Path(sys.argv[1]).write_text(str(measure(network, images)))


if __name__ == "__main__":
    main()
