"""Cost of contributions and iERFs, as multiples of the same batch's forward pass in the same run.

All 16 blocks of a batch of 8; eight positions per picture; peak memory above what lay there before.
The released SRD code needs about 40 forward passes for one picture's contributions, and about 28
(layer4.2) to 33 (layer1.2) for one iERF.
"""

import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gig_helpers import load_network, load_pictures, srd

BATCH, POSITIONS, ROUNDS = 8, 8, 5


def resident() -> float:
    """Memory of this process in MiB; Linux only."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 / 2**20 if status.exists() else float("nan")


def peak(call: Callable[[], object]) -> float:
    """MiB that a call needs at most, above what is in use before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform == "linux":
        # What earlier calls freed and the allocator kept would hide what this one needs.
        ctypes.CDLL(None).malloc_trim(0)
    before, seen, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(seen)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    network = load_network()
    pictures = load_pictures("sample", network)
    images = pictures[[5 * index for index in range(BATCH)]].to(network.device)
    generator = torch.Generator().manual_seed(0)

    calls: dict[str, tuple[Callable[[], object], int, str]] = {
        "forward pass": (lambda: network.logits(images), 1, ""),
        "contributions, all blocks": (lambda: srd.contributions(network, images), 1, "4"),
        "contributions, to the pixels": (
            lambda: srd.contributions(network, images, ("pixels", *network.blocks)),
            1,
            "",
        ),
    }
    for block, target in (
        ("layer4.2", "2"),
        ("layer3.5", ""),
        ("layer2.3", ""),
        ("layer1.2", "0.3"),
    ):
        rows, columns = network.map_size(block)
        numbers = torch.randint(rows * columns, (BATCH, POSITIONS), generator=generator)
        places = torch.stack((numbers // columns, numbers % columns), -1)
        calls[f"iERF, {block}, 8 a picture"] = (
            lambda block=block, places=places: srd.ierf(network, images, block, places),
            POSITIONS,
            target,
        )
        calls[f"iERF, {block}, 1 a picture"] = (
            lambda block=block, places=places[:, 0]: srd.ierf(network, images, block, places),
            1,
            "",
        )

    memory = {name: peak(call) for name, (call, _, _) in calls.items()}
    # Rounds over all calls, so that a busy machine slows all of them.
    rounds = [{n: seconds(c) for n, (c, _, _) in calls.items()} for _ in range(ROUNDS)]
    print(f"{network}\nbatch of {BATCH}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    print(f"{'':32}{'forward passes':>15}{'target':>8}{'ms each':>9}{'peak MiB':>10}")
    for name, (_, each, target) in calls.items():
        ratio = statistics.median(r[name] / r["forward pass"] for r in rounds) / each
        each_ms = statistics.median(r[name] for r in rounds) * 1000 / BATCH / each
        print(f"{name:32}{ratio:15.2f}{target:>8}{each_ms:9.1f}{memory[name]:10.0f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
