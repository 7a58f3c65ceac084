"""What the parts share: what a run starts from, its file, statistics, curves in short, seconds."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gig_helpers import (
    EXTRACTORS,
    Concepts,
    Network,
    PFVDataset,
    attribute,
    decompose,
    deletion_insertion,
    fit_concepts,
    load_network,
    load_pictures,
    sample,
)
from gig_helpers.curves import Curves
from gig_helpers.data import artifacts, profiles
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.profiles import CHAIN, Profile
from gig_helpers.importance import Target
from gig_helpers.report.provenance import provenance
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import evaluated, present_targets

RESULTS = Path(__file__).parent.parent / "book" / "results"

SHARES = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 41)]).double()
"""Of concepts: where mean curves are written down."""

TIMED_PICTURES = 1
"""Pictures that the seconds of every step are measured on."""


AFFORDABLE = {
    "bisecting": 1e9, "random_pfvs": 1e9, "kmeans": 3e6, "sae": 8e5, "dictionary_learning": 8e5,
    "sae_short": 0, "nmf": 4e5, "matching_pursuit": 1e5,
}  # fmt: skip
"""Concepts times channels that an extractor is run at where there is no GPU.

8e5 is the paper's 8 per channel at layer1.1, or 384 anywhere: five epochs of the SAE took 1,395 s
at layer4.2. The others are run up to 8e5 too, but only where a number of concepts is named. A GPU
does it all, but for NMF, which knows none.
"""

FEWER = 4
"""PFVs of each picture, the first drawn, where a number of concepts is named: enough
for a few hundred concepts."""


@dataclass(frozen=True)
class Run:
    """What every part starts from; the larger things are made, or read, when first asked for."""

    profile: Profile
    network: Network
    pictures: Pictures

    @cached_property
    def pfvs(self) -> PFVDataset:
        """The profile's PFVs."""
        return sample(self.network, self.pictures, self.profile)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The profile's blocks."""
        return self.profile.blocks_of(self.network)

    @cached_property
    def chain(self) -> list[str]:
        """Those of them that the paper's figures show."""
        return [block for block in CHAIN if block in self.blocks]

    def affordable(self, block: str, extractor: str, k: int | None = None) -> bool:
        """Whether an extractor makes so many concepts of this block, by default all, in minutes."""
        channels = self.network.channels(block)
        count = k or self.profile.n_concepts(channels, int(self.made_of(block).sum()))
        fast = self.network.device.type == "cuda" and extractor != "nmf"
        return fast or count * channels <= AFFORDABLE.get(extractor, 8e5 if k else 0)

    def concepts(
        self, block: str, extractor: str = "bisecting", draw: int = 0, k: int | None = None
    ) -> Concepts:
        """A block's concepts, of the PFVs that are not held out; every draw has its own seed.

        As many as the profile says, or ``k`` of the PFVs of :meth:`kept` at ``k``.
        """
        self.seconds(block, extractor, draw, k)  # which makes them, if they are not there
        return self._fitted(block, extractor, self.profile.seed + draw, k)

    def seconds(self, block: str, extractor: str, draw: int, k: int | None = None) -> float:
        """What :meth:`concepts` took when they were made, λ included."""
        settings, seed = asdict(self.profile) | {"k": k}, self.profile.seed + draw
        given = self.pfvs, settings, block, EXTRACTORS[extractor].fit, seed
        return float(_seconds(*given, lambda: self._fitted(block, extractor, seed, k))["seconds"])

    def _fitted(self, block: str, extractor: str, seed: int, k: int | None) -> Concepts:
        options: dict[str, Any] = {"extractor": extractor, "seed": seed, "held_out": True}
        options |= {"k": k, "per_image": k and FEWER}
        return fit_concepts(self.pfvs, self.profile, [block], **options)[block]

    def kept(self, block: str, k: int | None = None) -> Tensor:
        """What :meth:`concepts` are made of: PFVs (n, C)."""
        return self.pfvs.vectors(block)[self.made_of(block, k)].to(self.network.device)

    def made_of(self, block: str, k: int | None = None) -> Tensor:
        """Which PFVs (N,) those are: none held out, and of each picture the first few at ``k``."""
        rows = ~self.pfvs.held_out(block)
        return rows if k is None else rows & self.pfvs.among_first(block, FEWER)

    @cached_property
    def left_out(self) -> list[int]:
        """Pictures that made no concept."""
        block = self.blocks[0]
        return self.pfvs.picture_ids(block)[self.pfvs.held_out(block)].unique().tolist()

    def evaluated(self, most: int | None = None) -> tuple[Tensor, list[int]]:
        """Pictures (N, 3, H, W) that are evaluated and made no concept, and their classes.

        As many as the profile says, and no more than ``most``.
        """
        count = min(self.profile.evaluation_pictures, most or len(self.left_out))
        chosen = evaluated(self.pfvs, count, among=self.left_out)
        images = self.pictures[chosen].to(self.network.device)
        return images, self.pfvs.predictions()[chosen].tolist()

    def right_by_class(self) -> dict[int, list[int]]:
        """Pictures that the network gets right, by their class."""
        by_class, said = dict[int, list[int]](), self.pfvs.predictions().tolist()
        for i in self.pfvs.right():
            by_class.setdefault(said[i], []).append(i)
        return by_class


@artifacts.cached("fit-seconds", ignore=("fitted",))
def _seconds(
    pfvs: PFVDataset, settings: dict[str, Any], block: str, fit: Callable[..., Concepts], seed: int,
    fitted: Callable[[], Concepts],
) -> dict[str, Tensor]:  # fmt: skip
    begin = time.perf_counter()
    fitted()
    return {"seconds": torch.tensor(time.perf_counter() - begin)}


def start() -> Run:
    """Load what the profile asks for."""
    profile = profiles.get()
    network = load_network(profile.network, profile.weights)
    return Run(profile, network, load_pictures(profile.pictures, network))


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
    >>> round(together(1), 4), round(together(10), 4)
    (0.95, 0.995)
    """
    return 1 - 0.05 / places


def mean(values: Tensor) -> dict[str, Any]:
    """Mean (N,) with its interval, and the values it was made from: ``each``, of 0 and 1 a text."""
    yes_or_no = bool(((values == 0) | (values == 1)).all())
    each = "".join(f"{value:.0f}" for value in values) if yes_or_no else rounded(values)
    return asdict(interval(values)) | {"each": each}


def means(arms: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean of each arm (N,) with its own interval."""
    return {name: mean(values) for name, values in arms.items()}


def minus(
    values: Tensor, others: Tensor, places: int = 1, bracket: float | None = None
) -> dict[str, Any]:  # fmt: skip
    """Paired difference (N,), its interval corrected for so many places that are read together.

    With the differences, ``each``, the level of the interval, and within ± how much (``bracket``)
    the mean of the differences is known, if these are of areas.

    Examples
    --------
    >>> values = torch.arange(20.0)
    >>> alone, of_ten = (minus(values, 0 * values, places) for places in (1, 10))
    >>> alone["mean"] == of_ten["mean"], alone["high"] < of_ten["high"]
    (True, True)
    """
    level, each = together(places), rounded(values - others)
    found = asdict(compare(values, others, level)) | {"confidence": level, "each": each}
    return found if bracket is None else found | {"bracket": bracket}


def open_area(curves: Curves) -> float:
    """Within ± how much the mean of insertion less deletion is known, over all pictures (N, S)."""
    return float((curves.deletion.bracket + curves.insertion.bracket).mean())


def minus_others(arms: Mapping[str, Tensor], first: str, places: int) -> dict[str, Any]:
    """One arm (N,) less each of the others."""
    others = {name: values for name, values in arms.items() if name != first}
    return {name: minus(arms[first], values, places) for name, values in others.items()}


def summary(curves: Mapping[str, Curves], places: int) -> dict[str, Any]:
    """Areas of every method's curves (N, S), the mean curves, and GIG's lead over the others.

    ``places`` is how many blocks are read together: leads' intervals are corrected for it.
    """
    ours, others = curves["gig"], {name: of for name, of in curves.items() if name != "gig"}
    return {
        "orders": {method: _areas(of_method) for method, of_method in curves.items()},
        "gig_minus": {
            name: minus(ours.gain(), of.gain(), places, open_area(ours) + open_area(of))
            for name, of in others.items()
        },
    }


def _areas(curves: Curves) -> dict[str, Any]:
    both = {"deletion": curves.deletion, "insertion": curves.insertion}
    areas = {
        way: mean(curve.area()) | {"bracket": float(curve.bracket.mean())}
        for way, curve in both.items()
    }
    at_shares = {way: rounded(curve.mean(0).at(SHARES)) for way, curve in both.items()}
    return {
        **areas,
        "difference": mean(curves.gain()) | {"median": float(curves.gain().median())},
        "curves": {"x": rounded(SHARES), **at_shares},
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


def seconds(
    run: Run, images: Tensor, labels: list[int], source: Concepts, later: Concepts | None = None
) -> dict[str, float]:
    """Seconds of GIG's steps for these pictures: codes, importance, curves.

    Of the class; or of concepts of a later block, to choose which is a step too.
    """
    spent: dict[str, float] = {}
    block, options = source.block, dict[str, Any](batch_size=run.profile.batch_size)
    target: Target = [[label] for label in labels]
    with timed(spent, "codes"):
        d = decompose(run.network, images, {c.block: c for c in (source, later) if c is not None})
    if later is not None:
        with timed(spent, "targets"):
            target = later.block, present_targets(d, block, later.block, labels, run.profile)
    with timed(spent, "gig"):
        importance = attribute(d, block, target, tolerance=run.profile.gap, **options)
    with timed(spent, "curves"):
        deletion_insertion(d, block, target, importance, tolerance=run.profile.bracket, **options)
    return spent


def seconds_per_picture(
    run: Run, source: Concepts, later: Concepts | None = None
) -> dict[str, float]:  # fmt: skip
    """The same from nothing, for one of the evaluated pictures."""
    images, labels = run.evaluated()
    few = images[:TIMED_PICTURES], labels[:TIMED_PICTURES]
    with nothing_kept():
        spent = seconds(run, *few, source, later)
    return {step: t / TIMED_PICTURES for step, t in spent.items()}
