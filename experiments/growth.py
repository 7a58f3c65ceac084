"""How seconds and memory grow with pictures, concepts and blocks (the page on the scale)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gig_helpers import decompose, sample
from gig_helpers.concepts import extract, tune

from .run import Run, nothing_kept, timed, write
from .scale import peaks

PICTURES, CONCEPTS, BLOCKS = (100, 400, 1600), (256, 1024, 4096), (1, 4, 16)
"""What grows; the rest stays at the largest number of pictures, the last block, and …"""

EACH, NONZEROS = 6, 16
"""… PFVs for each concept, and concepts in use by a PFV."""


def make(run: Run) -> None:
    """Write ``growth.json``.

    Raises
    ------
    ValueError
        If there are fewer pictures than are to be sampled.
    """
    if len(run.pictures) < PICTURES[-1]:
        raise ValueError(f"growth takes {PICTURES[-1]} pictures, but there are {run.pictures}")
    rows: list[dict[str, Any]] = []
    with nothing_kept():
        for row in _rows(run):
            rows.append(row | peaks())
            write(run, "growth", rows, pfvs_per_concept=EACH)


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    """Ascending, for a process's peak of memory never falls."""
    network, block, spent = run.network, run.chain[-1], dict[str, float]()

    def row(along: str, count: int, stage: str) -> dict[str, Any]:
        return {"along": along, "count": count, "stage": stage, "seconds": spent.pop(stage)}

    for count in PICTURES:
        pictures = run.pictures.subset(range(0, len(run.pictures), len(run.pictures) // count))
        with timed(spent, "sampling"):
            profile = replace(run.profile, blocks=(block,))
            pfvs = sample(network, pictures.subset(range(count)), profile)
        yield row("pictures", count, "sampling")
        x, beta = pfvs.vectors(block).to(network.device), network.bn_shift(block)
        with timed(spent, "clustering"):
            extract(x, beta, len(x) // EACH, run.profile.seed, block=block)
        yield row("pictures", count, "clustering")
    for count in CONCEPTS:
        with timed(spent, "clustering"):
            concepts = extract(x, beta, count, run.profile.seed, block=block)
        yield row("concepts", count, "clustering")
        concepts = tune(concepts, x, NONZEROS)
        with timed(spent, "codes of a picture"):
            decompose(network, pictures[:1], {block: concepts})
        yield row("concepts", count, "codes of a picture")
    every = network.blocks
    for count in BLOCKS:
        profile = replace(run.profile, blocks=tuple(every[:: len(every) // count][:count]))
        with timed(spent, "sampling"):
            sample(network, pictures.subset(range(PICTURES[0])), profile)
        yield row("blocks", count, "sampling")
