"""What the parts share: what a run starts from, its file, summaries of curves, seconds."""

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gig_helpers.extractors
from gig_helpers import (
    Concepts,
    Network,
    clustering,
    concepts,
    lasso,
    load_network,
    load_pictures,
    sample,
)
from gig_helpers.curves import Curves
from gig_helpers.data import artifacts, profiles
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.profiles import Profile
from gig_helpers.extractors import EXTRACTORS, SparseAutoencoder, sae, simple
from gig_helpers.pfv import PFVDataset
from gig_helpers.report.provenance import provenance
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import evaluated

RESULTS = Path(__file__).parent.parent / "book" / "results"

SHARES = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 41)]).double()
"""Of concepts: where mean curves are written down."""

TIMED_PICTURES = 1
"""Pictures that the seconds of every step are measured on."""


AFFORDABLE = {"k-means": 512, "SAE, converged": 256, "dictionary learning": 0}
"""Channels of the widest block that an extractor is run at.

Twice as many channels are twice as many concepts too, and take four times longer or more.

Dictionary learning took 268 s for three of its passes over 10,000 PFVs with 1,650 concepts; five
epochs of the SAE, which has no limit here, took 1,395 s at layer4.2.
"""


@dataclass(frozen=True)
class Run:
    """What every part starts from; the larger things are made, or found, when first asked for."""

    profile: Profile
    network: Network
    pictures: Pictures

    @cached_property
    def dataset(self) -> PFVDataset:
        """The profile's PFVs."""
        return sample(self.network, self.pictures, self.profile)

    def concepts(self, block: str, extractor: str = "bisecting", seed: int = 0) -> Concepts:
        """A block's concepts with their λ, of the PFVs that are not held out."""
        parts = self.extracted(block, extractor, seed)
        own = {name: part for name, part in parts.items() if name not in ("lam", "seconds")}
        own = {name: part.to(self.network.device) for name, part in own.items()}
        kind = SparseAutoencoder if "encoder" in own else Concepts
        return kind(**own, block=block, lam=float(parts["lam"]))

    def affordable(self, block: str, extractor: str) -> bool:
        """Whether an extractor makes 8 concepts per channel of this block in minutes."""
        channels = self.network.channels(block)
        return channels <= AFFORDABLE.get(extractor, channels)

    def extracted(self, block: str, extractor: str, seed: int = 0) -> dict[str, Tensor]:
        """What :meth:`concepts` is made of, and the seconds that it took."""
        kept = int((~self.dataset.held_out(block)).sum())
        k = self.profile.n_concepts(self.network.channels(block), kept)
        return _extracted(self.network, self.dataset, block, extractor, k, seed)

    def evaluated(self, most: int | None = None) -> tuple[Tensor, list[int]]:
        """Pictures (N, 3, H, W) that are evaluated and made no concept, and their classes.

        As many as the profile says, and no more than ``most``.
        """
        block = self.profile.blocks[0]
        out = self.dataset.picture_ids(block)[self.dataset.held_out(block)].tolist()
        count = min(self.profile.evaluation_pictures, most or len(out))
        chosen = evaluated(self.pictures, self.dataset, count, among=set(out))
        images = torch.stack([self.pictures[i] for i in chosen]).to(self.network.device)
        return images, self.dataset.predictions()[chosen].tolist()


_CODE = (clustering, concepts, lasso, gig_helpers.extractors, sae, simple)


@artifacts.cached("extracted", *_CODE)
def _extracted(
    network: Network, dataset: PFVDataset, block: str, extractor: str, k: int, seed: int
) -> dict[str, Tensor]:
    beta = network.bn_shift(block)
    x = dataset.vectors(block)[~dataset.held_out(block)].to(beta)
    begin = time.perf_counter()
    made = EXTRACTORS[extractor](x, beta, k, seed, block=block)
    seconds = torch.tensor(time.perf_counter() - begin)
    lam = torch.tensor(concepts.tune(made, x, seed=seed).lam, dtype=torch.float64)
    parts = {field.name: getattr(made, field.name) for field in fields(made)}
    parts = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    return parts | {"lam": lam, "seconds": seconds}


def start() -> Run:
    """Load what the profile asks for."""
    profile = profiles.get()
    network = load_network(profile.network, profile.weights)
    pictures = load_pictures(
        profile.pictures, preprocessing=network.preprocessing, classes=network.classes
    )
    return Run(profile, network, pictures)


def write(run: Run, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write one file of results with what it was made from and on."""
    record = {
        "made": time.strftime("%Y-%m-%d"),
        "provenance": provenance(run.profile, run.network, run.pictures),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pictures": len(run.pictures),
        "pfvs_per_picture": run.profile.per_image,
        "settings": settings,
        "rows": rows,
    }
    artifacts.write_json(RESULTS / f"{name}.json", record)
    print(f"{name}: {len(rows)} rows", flush=True)


def together(places: int) -> float:
    """Confidence of each place's interval so that those of all of them hold together in 95 %.

    Bonferroni's correction, for the blocks or pairs of blocks that a page reads side by side.

    Examples
    --------
    >>> round(together(10), 4)
    0.995
    """
    return 1 - 0.05 / places


def summary(curves: Mapping[str, Curves], places: int) -> dict[str, Any]:
    """Areas of every method's curves (N, S), the mean curves, and GIG's lead over the others.

    ``places`` is how many blocks are read together: leads' intervals are corrected for it.
    """
    return {
        "orders": {method: _areas(found) for method, found in curves.items()},
        "gig_minus": {
            method: asdict(compare(curves["gig"].gain(), found.gain(), together(places)))
            for method, found in curves.items()
            if method != "gig"
        },
    }


def _areas(curves: Curves) -> dict[str, Any]:
    both = {"deletion": curves.deletion, "insertion": curves.insertion}
    areas = {
        way: asdict(interval(curve.area())) | {"bracket": float(curve.bracket.mean())}
        for way, curve in both.items()
    }
    means = {way: rounded(curve.mean(0).at(SHARES)) for way, curve in both.items()}
    return {
        **areas,
        "difference": asdict(interval(curves.gain())) | {"median": float(curves.gain().median())},
        "curves": {"x": rounded(SHARES), **means},
    }


def rounded(values: Tensor) -> list[float]:
    """Numbers to six decimals: enough for a figure."""
    return [round(value, 6) for value in values.tolist()]


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the seconds of what is done inside to those of a step."""
    begin = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - begin


@contextmanager
def nothing_kept() -> Iterator[None]:
    """An empty folder of artifacts, which is gone in the end: what is timed starts from nothing."""
    elsewhere = os.environ.get("GIG_ARTIFACTS")
    with tempfile.TemporaryDirectory(dir=artifacts.folder()) as empty:
        os.environ["GIG_ARTIFACTS"] = empty
        try:
            yield
        finally:
            del os.environ["GIG_ARTIFACTS"]
            if elsewhere is not None:
                os.environ["GIG_ARTIFACTS"] = elsewhere
