"""What the steps cost, as multiples of one forward pass of one picture measured in the same run.

    python tests/benchmarks/bench_passes.py

Concepts are the book's, of the profile's blocks, which the chapters have made; those of the two
Lasso cases with the paper's k = 8C are PFVs of other pictures, noisy ones where there are too few.
Below that, the ways to run the network that need no compiler.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from bench_clustering import real_pfvs
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from bookbuild.forward_pass import BATCH, measure
from gig_helpers import (
    Network,
    attribute,
    concept_graph,
    decompose,
    deletion_insertion,
    fit_concepts,
    load_network,
    load_pictures,
    sample,
)
from gig_helpers.data import profiles
from gig_helpers.lasso import lambda_for, lasso_codes, wanted_nonzeros
from gig_helpers.srd import contributions

ROUNDS = 3
Case = Callable[[], object]


def lasso(network: Network, image: Tensor, block: str, share: float = 1.0) -> Case:
    """Codes of one picture at all positions of a block, k = 8C.

    Only a share of the concepts are PFVs of their own, the others noisy copies of these. The
    picture is mirrored, for its own PFVs are among them.
    """
    k = 8 * network.channels(block)
    generator = torch.Generator().manual_seed(0)
    every, beta = real_pfvs(block, k)
    others = (every - beta)[: int(share * k)]
    spread = (1 if share == 1 else 0.1) * others.std(dim=0)
    noise = torch.randn(k, others.shape[1], generator=generator) * spread
    vectors = others[torch.arange(k) % len(others)]
    vectors[len(others) :] += noise[len(others) :]
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    x = network.preactivations(image[None].flip(-1), [block])[block]
    x = network.positions(x, block)[0]
    lam = lambda_for(x[:: len(x) // 16], vectors, wanted_nonzeros(block, k), beta=beta, rtol=0.2)
    return lambda: lasso_codes(x, vectors, lam, beta=beta)


def steps(network: Network, images: Tensor) -> dict[str, tuple[Case, int, str]]:
    """The steps by name: what runs, for how many pictures, and the target."""
    profile = profiles.get("quick")
    pfvs = sample(network, load_pictures("sample", network), profile)
    d = decompose(network, images[:1], fit_concepts(pfvs, profile))
    label = int(d.logits().argmax())
    gamma = attribute(d, "layer4.2", label)
    return {
        "Lasso, layer1.2, k = 2048": (lasso(network, images[0], "layer1.2"), 1, "25"),
        "Lasso, layer4.2, k = 16384": (lasso(network, images[0], "layer4.2"), 1, "10"),
        "Lasso, copies of 384": (lasso(network, images[0], "layer4.2", 3 / 128), 1, "50"),
        "contributions, to the pixels": (
            lambda: contributions(network, images, ("pixels", *network.blocks)), len(images), "",
        ),
        "GIG, layer3.5 → layer4.2, 5 targets": (
            lambda: attribute(d, "layer3.5", ("layer4.2", range(5))), 1, "",
        ),
        "graph of one picture, six blocks": (
            lambda: concept_graph(d), 1, "60",
        ),
        "class curves, layer4.2": (
            lambda: deletion_insertion(d, "layer4.2", label, gamma), 1, "",
        ),
    }  # fmt: skip


def ways(network: Network, images: Tensor) -> dict[str, Case]:
    """The same logits by other roads; torch's fusion is of the model's copy."""
    last = network.blocks[-1]

    def module() -> Tensor:
        return network.logits_from(network.preactivations(images, [last])[last], last)

    flat, grouped = images, images.contiguous(memory_format=torch.channels_last)
    model = copy.deepcopy(network.model)
    fused = fuse(model)
    traced = torch.jit.trace(copy.deepcopy(model), images)
    roads: dict[str, tuple[nn.Module, Tensor]] = {
        "eager": (model, flat),
        "channels_last": (copy.deepcopy(model).to(memory_format=torch.channels_last), grouped),
        "fused": (fused, flat),
        "fused, channels_last": (
            copy.deepcopy(fused).to(memory_format=torch.channels_last), grouped,
        ),
        "traced, optimised for inference": (
            torch.jit.optimize_for_inference(torch.jit.freeze(traced)), flat,
        ),
    }  # fmt: skip
    made = {name: (lambda run=run, x=x: run(x)) for name, (run, x) in roads.items()}
    return {"network.logits": lambda: network.logits(images), "pre-activations": module, **made}


def seconds(call: Case) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    network = load_network()
    pictures = load_pictures("sample", network)
    images = pictures[[5 * index for index in range(BATCH)]].to(network.device)
    print(f"{network}\nbatch of {BATCH}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    print(f"{'':38}{'forward passes':>15}{'target':>9}{'ms':>9}")
    for name, (run, count, target) in steps(network, images).items():
        run()
        # Beside each round its own pass, so that a busy machine slows both.
        rounds = [(seconds(run) / count, measure(network, images)) for _ in range(ROUNDS)]
        ratio = statistics.median(taken / one for taken, one in rounds)
        ms = 1000 * statistics.median(taken for taken, _ in rounds)
        print(f"{name:38}{ratio:15.2f}{target and f'≤ {target}':>9}{ms:9.0f}", flush=True)

    with torch.inference_mode():
        expected, calls = network.logits(images), ways(network, images)
        for name, call in calls.items():
            call()
            assert torch.allclose(call(), expected, atol=1e-2, rtol=1e-3), name
        turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    print(f"{'one forward pass, as':38}{'forward passes':>15}{'':9}{'ms':>9}")
    for name in calls:
        ratio = statistics.median(turn[name] / turn["network.logits"] for turn in turns)
        ms = 1000 * statistics.median(turn[name] for turn in turns) / BATCH
        print(f"{name:38}{ratio:15.2f}{'':9}{ms:9.0f}")


if __name__ == "__main__":
    main()
