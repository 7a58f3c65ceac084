"""Makes ``book/results``: runs larger than a page's own, which the chapters show beside theirs.

    python -m bookbuild.results [classes] [interlayer] [concepts] [scale]

Each part writes one JSON file, anew after every step; a run that was killed goes on where it was.
``scale`` measures what everything costs, so it starts from nothing, and only where it is named:
the book shows it for the profile ``paper``, the others for ``workstation``.
"""

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gig_helpers import (
    artifacts,
    assets,
    baselines,
    clustering,
    decomposition,
    evaluation,
    graph,
    pfv,
    profiles,
)
from gig_helpers.network import Network, load_network

from . import BOOK

RESULTS = BOOK / "results"
COSTED_PICTURES = 2
"""Pictures whose evaluation ``scale`` times."""
TEST_PFVS = 400
"""PFVs a block, from either side of the split, that the extractors' errors are measured on."""

METHODS: dict[str, tuple[int, Callable[[Tensor, Tensor, int, int], clustering.Concepts]]] = {
    "bisecting": (3, lambda x, beta, k, seed: clustering.extract(x, beta, k, random_state=seed)),
    "random PFVs": (3, baselines.random_pfvs),
    "SAE, 5 epochs": (
        1,
        lambda x, beta, k, seed: baselines.sparse_autoencoder(x, beta, k, seed, epochs=5),
    ),
    "k-means": (1, baselines.kmeans),
    "SAE, converged": (1, baselines.sparse_autoencoder),
    "dictionary learning": (
        1,
        lambda x, beta, k, seed: baselines.dictionary_learning(x, beta, k, seed, max_iter=3),
    ),
}
"""Extractors, the cheapest first, with the number of seeds that they are run with."""


@dataclass(frozen=True)
class Run:
    """What every part starts from."""

    profile: profiles.Profile
    network: Network
    pictures: assets.Pictures

    @cached_property
    def dataset(self) -> pfv.PFVDataset:
        """The profile's PFVs, sampled when first asked for."""
        return pfv.sample(self.network, self.pictures, self.profile)


def start() -> Run:
    """Load what the profile asks for."""
    profile = profiles.get()
    network = load_network(profile.network, profile.weights)
    return Run(profile, network, assets.pictures(profile.pictures))


def write(run: Run, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write one file of results with what it was made from and on."""
    record = {
        "made": time.strftime("%Y-%m-%d"),
        "provenance": artifacts.provenance(run.profile, run.network, run.pictures),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pictures": len(run.pictures),
        "pfvs_per_picture": run.profile.per_image,
        "settings": settings,
        "rows": rows,
    }
    artifacts.write_json(RESULTS / f"{name}.json", record)
    print(f"{name}: {len(rows)} rows", flush=True)


def evaluated(run: Run) -> tuple[Tensor, list[int]]:
    """Pictures that the network gets right, spread evenly over the folder, and their classes."""
    predictions = run.dataset.predictions().tolist()
    right = [i for i, label in enumerate(run.pictures.labels) if label == predictions[i]]
    chosen = right[:: max(1, len(right) // run.profile.evaluation_pictures)]
    chosen = chosen[: run.profile.evaluation_pictures]
    images = torch.stack([run.pictures[i] for i in chosen]).to(run.network.device)
    return images, [predictions[i] for i in chosen]


def summary(curves: dict[str, evaluation.Curves]) -> dict[str, Any]:
    """Areas of every order with intervals, mean curves, and GIG's lead over each other order."""
    areas = {order: c.auc() for order, c in curves.items()}
    gains = {order: insertion - deletion for order, (deletion, insertion) in areas.items()}
    return {
        "orders": {
            order: {
                "deletion": asdict(evaluation.interval(areas[order][0])),
                "insertion": asdict(evaluation.interval(areas[order][1])),
                "difference": asdict(evaluation.interval(gains[order])),
                "curves": {
                    "x": rounded(c.x),
                    "deletion": rounded(c.deletion.mean(dim=0)),
                    "insertion": rounded(c.insertion.mean(dim=0)),
                },
            }
            for order, c in curves.items()
        },
        "gig_minus": {
            order: asdict(evaluation.compare(gains["gig"], gain))
            for order, gain in gains.items()
            if order != "gig"
        },
    }


def rounded(values: Tensor) -> list[float]:
    """Numbers to six decimals: enough for a figure."""
    return [round(value, 6) for value in values.tolist()]


def classes(run: Run) -> None:
    """C-deletion and C-insertion at every block (chapter 5)."""
    profile = run.profile
    rows: list[dict[str, Any]] = []
    images, labels = evaluated(run)
    for block in profile.blocks[::-1]:
        found = clustering.load_concepts(run.network, run.dataset, profile, block)
        penalty = decomposition.load_penalty(run.dataset, profile, found)
        orders = ["gig", "gradient", "activation", "random"]
        orders += ["ablation"] if block == profile.blocks[-1] else []
        study = evaluation.class_study(
            run.network, images, labels, found, penalty, orders, points=profile.points,
            steps=profile.evaluation_steps, seed=profile.seed, batch_size=profile.batch_size,
        )  # fmt: skip
        row: dict[str, Any] = {"block": block, "k": len(found), "lambda": penalty}
        for score in ("agreement", "probability"):
            ending = f", {score}"
            curves = {n.removesuffix(ending): c for n, c in study.curves.items() if ending in n}
            row[score] = summary(curves)
            row[score]["reconstruction"] = float(curves["gig"].insertion[:, -1].mean())
        row["seconds_per_picture"] = {step: float(t.mean()) for step, t in study.seconds.items()}
        rows.insert(0, row)
        write(
            run, "classes", rows, evaluated=len(images), points=profile.points,
            steps=profile.evaluation_steps, seed=profile.seed,
        )  # fmt: skip


def interlayer(run: Run) -> None:
    """Interlayer deletion and insertion at every pair of neighbours (chapter 6)."""
    profile = run.profile
    rows: list[dict[str, Any]] = []
    images, labels = evaluated(run)
    found = {
        b: clustering.load_concepts(run.network, run.dataset, profile, b) for b in profile.blocks
    }
    penalties = {b: decomposition.load_penalty(run.dataset, profile, c) for b, c in found.items()}
    pairs = list(zip(profile.blocks, profile.blocks[1:], strict=False))
    for a, b in pairs[::-1]:
        study = evaluation.interlayer_study(
            run.network, images, labels, found[a], found[b], penalties,
            ["gig", "gradient", "activation", "cosine", "random"],
            targets=profile.evaluation_targets, points=profile.points,
            steps=profile.evaluation_steps, seed=profile.seed, batch_size=profile.batch_size,
        )  # fmt: skip
        # A picture's targets are not independent: their mean is one observation.
        curves = {
            order: evaluation.Curves(c.x, c.deletion.mean(dim=1), c.insertion.mean(dim=1))
            for order, c in study.curves.items()
        }
        row = {"source": a, "target": b, "k": [len(found[a]), len(found[b])], **summary(curves)}
        row["lambda"] = [penalties[a], penalties[b]]
        row["seconds_per_picture"] = {step: float(t.mean()) for step, t in study.seconds.items()}
        rows.insert(0, row)
        write(
            run, "interlayer", rows, evaluated=len(images), targets=profile.evaluation_targets,
            points=profile.points, steps=profile.evaluation_steps, seed=profile.seed,
        )  # fmt: skip


def concepts(run: Run) -> None:
    """Rel-ℓ2 of all extractors at the paper's numbers of non-zeros (chapter 3)."""
    errors: dict[str, dict[str, dict[str, Any]]] = {b: {} for b in run.profile.blocks}
    for name in METHODS:
        for block in run.profile.blocks:
            errors[block][name] = _errors(run, block, name)
            rows = [_compared(run, block, found) for block, found in errors.items() if found]
            write(run, "concepts", rows, test_pfvs=TEST_PFVS, left_out="every fourth photograph")


def _split(run: Run, block: str) -> tuple[Tensor, Tensor, Tensor, int, float]:
    """PFVs that concepts are made from, two sets to test on, k, and the wanted non-zeros."""
    photographs = sorted(set(run.dataset.pictures))
    number = torch.tensor([photographs.index(path) for path in run.dataset.pictures])
    left = number[run.dataset.picture_ids(block)] % 4 == 0
    x = run.dataset.vectors(block)
    made_from, left_out = x[~left], x[left]
    generator = torch.Generator().manual_seed(run.profile.seed + 1)
    out, seen = (
        part[torch.randperm(len(part), generator=generator)[:TEST_PFVS]]
        for part in (left_out, made_from)
    )
    k = run.profile.n_concepts(x.shape[1], len(made_from))
    return made_from, out, seen, k, min(decomposition.paper_nonzeros(block), k / 4)


def _errors(run: Run, block: str, name: str) -> dict[str, Any]:
    """One extractor's Rel-ℓ2 of each test PFV (seeds, PFVs), and what it took."""
    seeds, method = METHODS[name]
    made_from, left_out, seen, k, wanted = _split(run, block)
    beta = run.network.bn_shift(block)

    def compute(seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        begin = time.perf_counter()
        found = method(made_from.to(beta), beta, k, seed)
        record: dict[str, Any] = {"seconds": time.perf_counter() - begin}
        tensors = {}
        for where, part in (("left_out", left_out), ("seen", seen)):
            x = part.to(beta)
            lam = decomposition.lambda_for(x, found.vectors, wanted, beta=found.beta)
            codes = decomposition.lasso_codes(x, found.vectors, lam, beta=found.beta, tol=1e-4)
            x_hat = decomposition.reconstruct(codes, found.vectors, found.beta)
            tensors[where] = decomposition.relative_l2(x, x_hat)
            record[f"nonzeros_{where}"] = float((codes != 0).sum(1).float().mean())
        if isinstance(found, baselines.SparseAutoencoder):
            own = found.codes(left_out.to(beta))
            x_hat = decomposition.reconstruct(own, found.vectors, found.beta)
            record["own_codes"] = {
                "nonzeros": float((own != 0).sum(1).float().mean()),
                "relative_l2": float(decomposition.relative_l2(left_out.to(beta), x_hat).mean()),
                "epochs": len(found.losses),
            }
        return tensors, record

    depends = {"pfv": run.dataset.key, "block": block, "method": name, "k": k, "nonzeros": wanted}
    results = [
        artifacts.cached(
            "errors",
            depends | {"seed": seed},
            partial(compute, seed),
            (clustering, baselines, decomposition),
        )
        for seed in range(seeds)
    ]
    columns = {w: torch.stack([t[w] for t, _ in results]) for w in ("left_out", "seen")}
    return {**columns, "records": [record for _, record in results]}


def _compared(run: Run, block: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    *_, k, wanted = _split(run, block)
    row: dict[str, Any] = {"block": block, "k": k, "nonzeros": wanted, "methods": {}}
    for name, errors in found.items():
        entry: dict[str, Any] = {"records": errors["records"]}
        for where in ("left_out", "seen"):
            mean = errors[where].mean(dim=0)
            entry[where] = asdict(evaluation.interval(mean)) | {
                "seeds": rounded(errors[where].mean(dim=1))
            }
            ours = found["bisecting"][where].mean(dim=0)
            entry[where]["minus_ours"] = asdict(evaluation.compare(mean, ours))
        row["methods"][name] = entry
    return row


def scale(run: Run) -> None:
    """Seconds and memory of every stage, with a tenth of the pictures and with all (chapter 8)."""
    rows: list[dict[str, Any]] = []
    profile = replace(run.profile, evaluation_pictures=COSTED_PICTURES)
    elsewhere = os.environ.get("GIG_ARTIFACTS")
    for share in (10, 1):
        part = Run(profile, run.network, run.pictures.subset(range(0, len(run.pictures), share)))
        with tempfile.TemporaryDirectory(dir=artifacts.folder()) as empty:
            os.environ["GIG_ARTIFACTS"] = empty
            try:
                for row in _chain(part):
                    rows.append({"pictures": len(part.pictures), **row, **_peaks(run.network)})
                    write(
                        run, "scale", rows, evaluated=COSTED_PICTURES, points=profile.points,
                        steps=profile.evaluation_steps, targets=profile.evaluation_targets,
                        batch_size=profile.batch_size,
                    )  # fmt: skip
            finally:
                os.environ.pop("GIG_ARTIFACTS")
                if elsewhere:
                    os.environ["GIG_ARTIFACTS"] = elsewhere


def _chain(run: Run) -> Iterator[dict[str, Any]]:
    """Every stage of the chain, one after the other, with the seconds it took."""
    network, profile = run.network, run.profile
    begin = time.perf_counter()

    def row(stage: str, items: int, **more: Any) -> dict[str, Any]:
        nonlocal begin
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        seconds, begin = time.perf_counter() - begin, time.perf_counter()
        return {"stage": stage, "items": items, "seconds": seconds, **more}

    yield row("sampling", len(run.dataset.pictures))
    found, penalties = {}, {}
    for block in profile.blocks:
        found[block] = clustering.load_concepts(network, run.dataset, profile, block)
        pfvs = len(found[block].labels)
        yield row("clustering", pfvs, block=block, k=len(found[block]))
        penalties[block] = decomposition.load_penalty(run.dataset, profile, found[block])
        yield row("penalty", 1, block=block)
    images, labels = evaluated(run)
    begin = time.perf_counter()
    options: dict[str, Any] = {
        "points": profile.points,
        "steps": profile.evaluation_steps,
        "batch_size": profile.batch_size,
    }
    for block in profile.blocks:
        study = evaluation.class_study(
            network, images, labels, found[block], penalties[block], ["gig"], **options
        )
        steps = {step: float(t.sum()) for step, t in study.seconds.items()}
        yield row("class curves", len(images), block=block, steps=steps)
    for a, b in zip(profile.blocks, profile.blocks[1:], strict=False):
        study = evaluation.interlayer_study(
            network, images, labels, found[a], found[b], penalties, ["gig"],
            targets=profile.evaluation_targets, **options,
        )  # fmt: skip
        steps = {step: float(t.sum()) for step, t in study.seconds.items()}
        yield row("interlayer curves", len(images), block=a, target=b, steps=steps)
    codes = decomposition.picture_codes(network, images[:1], found, penalties)
    graph.concept_graph(network, codes, found, labels[:1], points=profile.points)
    yield row("graph of a picture", 1)


def _peaks(network: Network) -> dict[str, float]:
    """Most memory so far, in MB: of the process, and of the GPU where there is one."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_mb": kilobytes / (1e6 if sys.platform == "darwin" else 1e3)}
    if network.device.type == "cuda":
        peaks["gpu_peak_mb"] = torch.cuda.max_memory_allocated(network.device) / 1e6
    return peaks


PARTS = {"classes": classes, "interlayer": interlayer, "concepts": concepts, "scale": scale}


def main() -> None:
    """Make the parts named on the command line, else all but ``scale``."""
    names = sys.argv[1:] or [name for name in PARTS if name != "scale"]
    if unknown := set(names) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    run = start()
    for name in names:
        PARTS[name](run)


if __name__ == "__main__":
    main()
