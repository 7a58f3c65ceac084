"""Areas of refined curves against one step per concept: how far apart, at which share of passes.

    python tests/benchmarks/bench_curves.py

Four pictures, three blocks, the book's concepts; GIG's order and a random one.
"""

import torch

from gig_helpers import (
    attribute,
    decompose,
    deletion_insertion,
    fit_concepts,
    load_network,
    load_pictures,
    sample,
)
from gig_helpers.data import profiles
from gig_helpers.report.studies import evaluated

BLOCKS = ("layer2.3", "layer3.5", "layer4.2")
PICTURES = 4
TOLERANCES = (0.0, 0.04, 0.01)


def main() -> None:
    network = load_network()
    pictures, profile = load_pictures("sample", network), profiles.get("quick")
    pfvs = sample(network, pictures, profile)
    chosen = evaluated(pfvs, PICTURES)
    classes = pfvs.predictions()[chosen][:, None]
    d = decompose(network, pictures[chosen], fit_concepts(pfvs, profile, BLOCKS))
    states = [0]
    segment_of = network.segment

    def counted(*blocks: str | None):
        segment = segment_of(*blocks)

        def run(x: torch.Tensor) -> torch.Tensor:
            states[0] += len(x)
            return segment(x)

        return run

    heads = f"{'order':>10}{'±':>7}{'states':>9}{'share':>8}"
    print(f"{'':10}{heads}   largest difference of areas: of the mean, of one picture")
    for block in BLOCKS:
        for method in ("gig", "random"):
            importance = attribute(d, block, classes, method=method)
            areas, counts = {}, {}
            for tolerance in TOLERANCES:
                states[0], network.segment = 0, counted  # type: ignore[method-assign]
                curves = deletion_insertion(d, block, classes, importance, tolerance=tolerance)
                network.segment, counts[tolerance] = segment_of, states[0]  # type: ignore[method-assign]
                auc = (curves[score].auc() for score in ("agreement", "probability"))
                # (scores, deletion and insertion, pictures)
                areas[tolerance] = torch.stack([torch.stack(ways)[:, :, 0] for ways in auc])
                error = areas[tolerance] - areas[0.0]
                largest = error.mean(dim=2).abs().max(), error.abs().max()
                share = counts[tolerance] / counts[0.0]
                print(
                    f"{block:10}{method:>10}{tolerance:7}{counts[tolerance]:9}{share:8.1%}"
                    f"{float(largest[0]):40.4f}{float(largest[1]):16.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
