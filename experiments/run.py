"""What the parts share: what a run starts from, its file, summaries of curves, seconds."""

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts, Network, load_concepts, load_network, load_pictures, sample
from gig_helpers.curves import Curves
from gig_helpers.data import artifacts, profiles
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.profiles import Profile
from gig_helpers.pfv import PFVDataset
from gig_helpers.report.provenance import provenance
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import evaluated

RESULTS = Path(__file__).parent.parent / "book" / "results"

SHARES = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 41)]).double()
"""Of concepts: where mean curves are written down."""

TIMED_PICTURES = 2
"""Pictures that the seconds of every step are measured on."""


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

    @cached_property
    def concepts(self) -> dict[str, Concepts]:
        """Concepts of every block."""
        return load_concepts(self.network, self.dataset, self.profile)

    @cached_property
    def evaluated(self) -> tuple[Tensor, list[int]]:
        """Pictures (N, 3, H, W) that are evaluated, and their classes."""
        chosen = evaluated(self.pictures, self.dataset, self.profile.evaluation_pictures)
        images = torch.stack([self.pictures[i] for i in chosen]).to(self.network.device)
        return images, self.dataset.predictions()[chosen].tolist()


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


def summary(curves: Mapping[str, Curves]) -> dict[str, Any]:
    """Areas of every method's curves (N, S), the mean curves, and GIG's lead over the others."""
    return {
        "orders": {method: _areas(found) for method, found in curves.items()},
        "gig_minus": {
            method: asdict(compare(curves["gig"].gain(), found.gain()))
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
        "difference": asdict(interval(curves.gain())),
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
