"""Seconds and memory of every stage, with a tenth of the pictures and with all."""

import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from gig_helpers import Concepts, concept_graph, decompose
from gig_helpers.concepts import extract, tune

from .run import TIMED_PICTURES, Run, nothing_kept, seconds, timed, write


def make(run: Run) -> None:
    """Write ``scale.json``."""
    rows: list[dict[str, Any]] = []
    profile = replace(run.profile, evaluation_pictures=TIMED_PICTURES)
    for share in (10, 1):
        part = Run(profile, run.network, run.pictures.subset(range(0, len(run.pictures), share)))
        with nothing_kept():
            for row in _chain(part):
                rows.append({"pictures": len(part.pictures), **row, **peaks()})
                write(
                    run, "scale", rows, evaluated=TIMED_PICTURES, gap=profile.gap,
                    bracket=profile.bracket, targets=profile.evaluation_targets,
                    batch_size=profile.batch_size,
                )  # fmt: skip


def _chain(run: Run) -> Iterator[dict[str, Any]]:
    """Every stage of the chain, one after the other, with the seconds it took."""
    network, profile, concepts = run.network, run.profile, dict[str, Concepts]()
    spent: dict[str, float] = {}

    def row(stage: str, items: int, **more: Any) -> dict[str, Any]:
        return {"stage": stage, "items": items, "seconds": spent.pop(stage), **more}

    with timed(spent, "sampling"):
        pfvs = run.pfvs
    yield row("sampling", len(pfvs.pictures))
    for block in run.blocks:
        x, beta = pfvs.vectors(block).to(network.device), network.bn_shift(block)
        k = profile.n_concepts(network.channels(block), len(x))
        with timed(spent, "clustering"):
            made = extract(x, beta, k, profile.seed, block=block)
        yield row("clustering", len(x), block=block, k=k)
        with timed(spent, "penalty"):
            concepts[block] = tune(made, x, seed=profile.seed)
        yield row("penalty", 1, block=block)
    images, labels = run.evaluated()
    for block, here in concepts.items():
        with timed(spent, "class curves"):
            steps = seconds(run, images, labels, here)
        yield row("class curves", len(images), block=block, steps=steps)
    for a, b in pairwise(concepts):
        with timed(spent, "interlayer curves"):
            steps = seconds(run, images, labels, concepts[a], concepts[b])
        yield row("interlayer curves", len(images), block=a, target=b, steps=steps)
    with timed(spent, "graph of a picture"):
        d = decompose(network, images[:1], concepts)
        concept_graph(d, labels[:1], tolerance=profile.gap)
    yield row("graph of a picture", 1)


def peaks() -> dict[str, float]:
    """Most memory so far, in MB: of the process, and of the GPU where there is one."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_mb": kilobytes / (1e6 if sys.platform == "darwin" else 1e3)}
    if torch.cuda.is_available():
        peaks["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return peaks
