"""Areas of refined curves against one step per concept: how far apart, at which share of passes.

    python tests/benchmarks/bench_curves.py

Four pictures, three blocks, the book's concepts; GIG's order and a random one.
"""

import torch

from gig_helpers import load_concepts, load_network, load_pictures, sample
from gig_helpers.codes import load_codes
from gig_helpers.curves import class_curves
from gig_helpers.data import profiles
from gig_helpers.importance import class_importance
from gig_helpers.report.studies import evaluated

BLOCKS = ("layer2.3", "layer3.5", "layer4.2")
PICTURES = 4
TOLERANCES = (0.0, 0.04, 0.01)


def main() -> None:
    network, pictures = load_network(), load_pictures("sample")
    profile = profiles.get("quick")
    dataset = sample(network, pictures, profile)
    chosen = evaluated(pictures, dataset, PICTURES)
    images, labels = torch.stack([pictures[i] for i in chosen]), dataset.predictions()[chosen]
    states = [0]
    propagate = network.propagate

    def counted(x: torch.Tensor, *blocks: str) -> torch.Tensor:
        states[0] += len(x)
        return propagate(x, *blocks)

    heads = f"{'order':>10}{'±':>7}{'states':>9}{'share':>8}"
    print(f"{'':10}{heads}   largest difference of areas: of the mean, of one picture")
    for block, here in load_concepts(network, dataset, profile, BLOCKS).items():
        u = load_codes(network, images, here)
        for method in ("gig", "random"):
            order = class_importance(method, network, u, here, labels[:, None])[:, 0]
            areas, counts = {}, {}
            for tolerance in TOLERANCES:
                states[0], network.propagate = 0, counted  # type: ignore[method-assign]
                found = class_curves(network, u, here, order, labels, tolerance=tolerance)
                network.propagate, counts[tolerance] = propagate, states[0]  # type: ignore[method-assign]
                scores = ("agreement", "probability")
                areas[tolerance] = torch.stack([torch.stack(found[s].auc()) for s in scores])
                error = areas[tolerance] - areas[0.0]  # (scores, deletion and insertion, pictures)
                largest = error.mean(dim=2).abs().max(), error.abs().max()
                share = counts[tolerance] / counts[0.0]
                print(
                    f"{block:10}{method:>10}{tolerance:7}{counts[tolerance]:9}{share:8.1%}"
                    f"{float(largest[0]):40.4f}{float(largest[1]):16.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
