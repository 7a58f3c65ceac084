"""The larger runs: every part writes the fields that chapters read, in numbers that add up."""

import itertools
import json
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import networkx as nx
import pytest
import torch
from conftest import random_decomposition, random_network, tiny_network
from imagenet_w import AddWatermark
from linear import U, V, linear
from torch.nn import functional as F

from experiments import __main__ as command
from experiments import (
    circuits,
    classes,
    controls,
    early,
    edges,
    extractors,
    families,
    fewer,
    graphs,
    growth,
    interlayer,
    paths,
    planted,
    readings,
    rivals,
    run,
    sampling,
    scale,
    shared,
    shortcut,
    transfer,
    watermarks,
)
from gig_helpers import (
    EXTRACTORS,
    METHODS,
    Concepts,
    Profile,
    attribute,
    decompose,
    deletion_insertion,
)
from gig_helpers.curves import Curve, Curves
from gig_helpers.data import artifacts, profiles
from gig_helpers.data.paper import PAPER
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import WRONG_TARGET

BLOCKS = ("layer3.5", "layer4.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Artifacts that the tests share: sampling takes most of their time."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture
def small(network, pictures, folder, tmp_path, monkeypatch):
    """A run of hours, made small enough for seconds, whose files go to ``tmp_path``."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setenv("GIG_ARTIFACTS", str(folder))
    profile = replace(
        profiles.get("quick"), blocks=BLOCKS, evaluation_pictures=3, gap=0.5,
        evaluation_targets=2, bracket=0.5, per_image=8, pfvs_per_concept=10, families=None,
    )  # fmt: skip
    return run.Run(profile, network, pictures.subset(range(0, len(pictures), 5)))


def written(name):
    return json.loads((run.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def fields(part):
    """Names of all fields, nested as in the file; of what is by method or step, the first's."""
    if isinstance(part, list):
        return fields(part[0])
    if not isinstance(part, dict):
        return None
    by_name = {"orders", "gig_minus", "seconds_per_picture"}
    return {
        key: fields(next(iter(value.values()), None) if key in by_name else value)
        for key, value in part.items()
    }


def confidences(rows):
    """Levels of all paired differences of a file: how many places are read together."""
    return {record["confidence"] for record in intervals(rows) if "confidence" in record}


@pytest.fixture
def kept(monkeypatch):
    """Rows of each file that a part writes, which no file is made of."""
    rows = {}
    for part in (circuits, early, fewer, interlayer, paths, shared, transfer):
        keep = lambda run, name, made, **settings: rows.update({name: made})  # noqa: E731
        monkeypatch.setattr(part, "write", keep)
    return rows


@pytest.mark.parametrize(("part", "name"), [(classes, "classes"), (interlayer, "interlayer")])
def test_curves_have_the_fields_that_chapters_read(small, part, name):
    part.make(small)
    found, recorded = written(name), artifacts.recorded(name)
    assert fields(found) == fields(recorded)
    methods = {name for name, method in METHODS.items() if not method.per_concept}
    if part is classes:
        assert [row["block"] for row in found["rows"]] == ["layer4.2", "layer3.5"]
        for row in found["rows"]:
            assert list(row["agreement"]["orders"]) == sorted(classes.ORDERS)
    else:
        (row,) = found["rows"]
        assert (row["source"], row["target"]) == BLOCKS
        assert set(row["orders"]) == methods | {WRONG_TARGET}
    assert confidences(found["rows"]) == {run.together(len(found["rows"]))}
    for row in found["rows"]:
        steps = row["seconds_per_picture"]
        assert set(steps) >= {"codes", "gig", "curves"} and all(t > 0 for t in steps.values())
        for score in ("agreement", "probability") if part is classes else ():
            of_curves(row[score])


def of_curves(row):
    """Differences, brackets and mean curves follow from the areas that stand beside them."""
    open_ = {}
    for order, of in row["orders"].items():
        ways = of["deletion"], of["insertion"]
        gain = ways[1]["mean"] - ways[0]["mean"]
        assert of["difference"]["mean"] == pytest.approx(gain, abs=1e-6)
        open_[order] = sum(way["bracket"] for way in ways)
    for order, apart in row["gig_minus"].items():
        assert apart["bracket"] == pytest.approx(open_["gig"] + open_[order])
        lead = (row["orders"][name]["difference"]["mean"] for name in ("gig", order))
        assert apart["mean"] == pytest.approx(next(lead) - next(lead), abs=1e-6)
    assert row["minus_ours"]["bracket"] == pytest.approx(2 * open_["gig"])
    last = row["orders"]["gig"]["curves"]["insertion"][-1]
    assert last == pytest.approx(row["reconstruction"], abs=1e-6)


def curves_of(by, open_):
    """Curves (4, S) of two states, scores this much larger, areas within ± 4 of ``open_``."""
    x = torch.tensor([0.0, 1.0]).double().expand(4, 2)
    y = by * torch.rand(4, 2, generator=torch.Generator().manual_seed(0)).double()
    parts = (Curve(x, way * y, torch.full((4,), way * open_)) for way in (1, 3))
    return Curves(*parts)


def test_a_difference_of_areas_is_known_within_the_brackets_of_both():
    gig, other = curves_of(1, 0.01), curves_of(2, 0.1)
    apart = run.summary({"gig": gig, "other": other}, 10)["gig_minus"]["other"]
    assert apart["bracket"] == pytest.approx(0.04 + 0.4)
    assert apart["confidence"] == pytest.approx(0.995)
    assert apart["mean"] == pytest.approx(float((gig.gain() - other.gain()).mean()))


def test_concepts_are_beside_the_blocks_first_within_the_brackets_of_both(monkeypatch):
    first, mine = curves_of(1, 0.01), curves_of(2, 0.1)
    scores = dict.fromkeys(("agreement", "probability"), mine[:, None])
    made = SimpleNamespace(
        curves={"gig": scores},
        gaps={"gig": torch.zeros(1)},
        importance={"gig": torch.eye(4)[:, None]},
    )
    stubs = {"decompose": None, "study": made, "seconds_per_picture": {}}
    for name, value in stubs.items():
        monkeypatch.setattr(classes, name, lambda *_, value=value: value)
    asked = []

    def likeness(pfvs, concepts, importance, labels, among=None):
        asked.append((importance, among))
        return torch.arange(4.0)

    monkeypatch.setattr(classes, "likeness", likeness)
    held_out = torch.tensor([True, False])
    given = SimpleNamespace(
        blocks=[*"abc"], network=None, profile=None,
        pfvs=SimpleNamespace(held_out=lambda block: held_out),
        evaluated=lambda most: (None, [0] * 4),
    )  # fmt: skip
    concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), "b")
    ours = {("b", score): first for score in scores} | {("b", "likeness"): torch.zeros(4)}
    row = classes.row_of(given, concepts, ["gig"], ours)
    assert confidences(row) == {run.together(3)}
    for score in scores:
        beside = row[score]["minus_ours"]
        assert beside["bracket"] == pytest.approx(0.04 + 0.4)
        assert beside["mean"] == pytest.approx(float((mine.gain() - first.gain()).mean()))
        assert row[score]["reconstruction"] == pytest.approx(float(mine.insertion.y[:, 1].mean()))
    assert row["likeness"]["minus_ours"]["mean"] == 1.5
    ((importance, among),) = asked
    assert torch.equal(importance, made.importance["gig"][:, 0]) and torch.equal(among, ~held_out)


def test_a_pairs_curves_are_means_over_targets_and_all_pairs_are_read_together(kept, monkeypatch):
    ends, y = torch.tensor([0.0, 1.0]).expand(3, 2, 2), torch.rand(3, 2, 2)
    curves = Curves(*(Curve(ends, by * y, torch.zeros(3, 2)) for by in (1, 3)))
    scores = {"projection": curves}
    made = SimpleNamespace(curves={"gig": scores}, gaps={"gig": torch.tensor([0.5, 0.25])})
    asked = []
    stubs = {"decompose": None, "present_targets": None, "study": made, "seconds_per_picture": {}}
    for name, value in stubs.items():
        monkeypatch.setattr(interlayer, name, lambda *_, value=value: value)
    monkeypatch.setattr(interlayer, "summary", lambda *given: asked.append(given) or {})
    sizes = dict(zip("abcd", (2, 3, 4, 5), strict=True))
    eyes = {b: torch.eye(k) for b, k in sizes.items()}
    of = {b: Concepts(v, v[0], torch.arange(len(v)), lam=len(v)) for b, v in eyes.items()}
    interlayer.make(
        SimpleNamespace(
            profile=Profile(), chain=[*"abcd"], network=None, concepts=of.get,
            evaluated=lambda most: (torch.zeros(3), [0, 1, 2]),
        )
    )  # fmt: skip
    assert [(row["source"], row["target"]) for row in kept["interlayer"]] == [
        *itertools.pairwise("abcd")
    ]
    pairs = [[sizes[a], sizes[b]] for a, b in itertools.pairwise("abcd")]
    for name in ("k", "lambda"):
        assert [row[name] for row in kept["interlayer"]] == pairs
    assert all(row["gap"] == 0.5 for row in kept["interlayer"])
    for of_orders, places in asked:
        torch.testing.assert_close(of_orders["gig"].gain(), curves.gain().mean(dim=1))
        assert places == 3


def test_rivals_of_all_blocks_are_held_against_families_there(monkeypatch):
    asked, blocks = [], tuple(PAPER["table_1"])
    stubs = {"level": lambda: 8, "write_classes": lambda *_: None}
    stubs["row_of"] = lambda *given: asked.append(given) or {}
    for name, value in stubs.items():
        monkeypatch.setattr(rivals, name, value)
    families_of = lambda block: SimpleNamespace(at=lambda level: (block, level))  # noqa: E731
    rivals.make(SimpleNamespace(blocks=blocks, concepts=families_of, affordable=lambda *_: False))
    assert [given[1] for given in asked] == [(block, 8) for block in reversed(blocks)]
    assert {given[-1] for given in asked} == {len(blocks)}
    assert all(given[3] is asked[0][3] for given in asked), "one memory of what came first"


def test_rivals_are_as_many_as_families(small, monkeypatch):
    arms = (("families", "lasso"), ("random_pfvs", "lasso"), ("sae_short", "lasso"),
            ("sae_short", "own"), ("kmeans", "lasso"))  # fmt: skip
    monkeypatch.setattr(rivals, "ARMS", arms)
    monkeypatch.setattr(rivals, "PHOTOGRAPHS", 3)
    monkeypatch.setattr(rivals, "level", lambda: 8)
    monkeypatch.setattr(run, "AFFORDABLE", {"kmeans": 0})
    rivals.make(small)
    rows = written("rivals")["rows"]
    assert [(row["extractor"], row["codes"]) for row in rows] == [*arms[:4]], "k-means: too long"
    assert {(row["block"], row["k"]) for row in rows} == {("layer4.2", 8)}
    assert [row["lambda"] is None for row in rows] == [False, False, False, True]
    assert rows[0]["agreement"]["minus_ours"]["mean"] == 0
    assert all(set(row["agreement"]["orders"]) == {"gig"} for row in rows)


def intervals(part):
    """Every mean of a file that has an interval."""
    if isinstance(part, list):
        yield from itertools.chain.from_iterable(map(intervals, part))
    elif isinstance(part, dict):
        if {"mean", "low"} <= part.keys():
            yield part
        yield from intervals([*part.values()])


def each_of(kept):
    """Values of photographs, or as a text of zeros and ones; of several seeds their mean."""
    if isinstance(kept, str):
        return torch.tensor([*map(float, kept)]).double()
    if isinstance(kept[0], str):
        return torch.stack([each_of(seed) for seed in kept]).mean(dim=0)
    return torch.tensor(kept).double()


FILES = {path.stem for path in run.RESULTS.glob("*.json")} - {"graphs", "growth", "scale"}
"""Of means over photographs; the others hold single graphs, and seconds."""


@pytest.mark.parametrize("name", sorted(FILES))
def test_recorded_intervals_follow_from_the_values_that_are_kept(name):
    found = [*intervals(artifacts.recorded(name)["rows"])]
    assert found and all("each" in record for record in found)
    for record in random.Random(0).sample(found, min(40, len(found))):
        each = each_of(record["each"])
        again = interval(each, record.get("confidence", 0.95))
        for of in ("mean", "low", "high"):
            assert record[of] == pytest.approx(getattr(again, of), rel=1e-3, abs=1e-4)


def test_intervals_of_places_that_are_read_together_are_wider():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0))
    for places, confidence in ((1, 0.95), (10, 0.995)):
        found = run.minus(values, 0 * values, places)
        wanted = compare(values, 0 * values, confidence)
        assert found["confidence"] == pytest.approx(confidence)
        assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high))
    arms = {"one": values, "other": 0 * values}
    assert run.minus_others(arms, "one", 10)["other"] == found


def test_an_encoders_directions_are_coded_by_the_pfvs_that_made_them(monkeypatch):
    class Encoder:
        def dictionary(self):
            return "directions"

    monkeypatch.setattr(rivals, "Encoded", Encoder)
    monkeypatch.setattr(rivals, "tune", lambda *given, seed: (*given, seed))
    encoder = Encoder()
    given = SimpleNamespace(
        concepts=lambda block, name, k: encoder if name == "sae" else name,
        kept=lambda block, k=None: (block, k), profile=Profile(seed=5),
    )  # fmt: skip
    asked = [("sae", "lasso"), ("sae", "own"), ("pca", "lasso")]
    found = [rivals._coded_by(given, "b", *each, 8) for each in asked]
    assert found == [("directions", ("b", 8), 5), encoder, "pca"]


def test_what_is_right_is_sorted_by_class_with_one_look_at_the_predictions():
    looks = []
    said = lambda: looks.append(1) or torch.tensor([7, 9, 7, 0])  # noqa: E731
    pfvs = SimpleNamespace(predictions=said, right=lambda: [0, 2, 3])
    assert run.Run.right_by_class(SimpleNamespace(pfvs=pfvs)) == {7: [0, 2], 0: [3]}
    assert len(looks) == 1


def test_errors_are_measured_on_one_pfv_of_a_photograph(small):
    left_out, seen = extractors.one_per_photograph(small, "layer4.2")
    x, owner = small.pfvs.vectors("layer4.2"), small.pfvs.picture_ids("layer4.2")
    numbers = small.pfvs.photographs[owner]
    first = {p: int((numbers == p).nonzero()[0]) for p in numbers.unique().tolist()}
    for part, mine in ((left_out, lambda p: p % 4 == 0), (seen, lambda p: p % 4 > 0)):
        wanted = x[[row for p, row in first.items() if mine(p)]]
        assert sorted(part.cpu().tolist()) == sorted(wanted.tolist())


def test_evaluated_pictures_made_no_concept(small):
    images, _ = small.evaluated()
    left_out = [i for i in range(len(small.pictures)) if small.pfvs.photographs[i] % 4 == 0]
    assert small.left_out == left_out
    allowed = small.pictures[left_out]
    assert all(any(torch.equal(image, other) for other in allowed) for image in images.cpu())
    kept = ~small.pfvs.held_out("layer4.2")
    concepts = small.concepts("layer4.2")
    assert len(concepts.labels) == len(small.kept("layer4.2")) == int(kept.sum()) < len(kept)
    few, other = small.concepts("layer4.2", k=8), small.concepts("layer4.2", draw=1)
    assert len(few.labels) == int(small.made_of("layer4.2", 8).sum()) < len(concepts.labels)
    assert not torch.equal(other.labels, concepts.labels), "every draw has its own seed"
    right = [(c, i) for c, of_class in small.right_by_class().items() for i in of_class]
    assert sorted(i for _, i in right) == small.pfvs.right()
    assert all(small.pictures.labels[i] == c for c, i in right)


def test_what_is_affordable_is_so_at_the_bound(monkeypatch):
    monkeypatch.setattr(run, "AFFORDABLE", {"kmeans": 800})
    monkeypatch.setattr(run.Run, "made_of", lambda self, block: torch.ones(100))
    network = SimpleNamespace(channels=lambda block: 100, device=torch.device("cpu"))
    here = run.Run(Profile(expansion=1, pfvs_per_concept=20), network, None)
    assert here.profile.n_concepts(100, 100) == 5
    asked = [("kmeans", 8), ("kmeans", 9), ("nmf", 8000), ("nmf", 8001), ("kmeans",), ("nmf",)]
    assert [here.affordable("b", *each) for each in asked] == [True, False] * 3


def test_one_choice_is_changed_at_a_time(small, monkeypatch):
    for name, value in {"BLOCKS": ("layer4.2",), "PHOTOGRAPHS": 3, "level": lambda: 8}.items():
        monkeypatch.setattr(early, name, value)
    early.make(small)
    rows = {row["changed"]: row for row in written("early")["rows"]}
    assert [*rows] == [*early.ARMS]
    assert fields([*rows.values()]) == fields(artifacts.recorded("early")["rows"])
    (images, labels), block = small.evaluated(3), "layer4.2"
    d = decompose(small.network, images, {block: small.concepts(block)})
    said = [[label] for label in labels]
    order = attribute(d, block, said, tolerance=early.GAP)
    curves = deletion_insertion(d, block, said, order, tolerance=early.BRACKET)["agreement"]
    book = rows["nothing"]
    assert book["insertion"]["mean"] == pytest.approx(float(curves.auc()[1].mean()), abs=1e-5)
    assert book["difference"]["minus_book"]["mean"] == 0
    by_size = deletion_insertion(d, block, said, order.abs(), tolerance=early.BRACKET)["agreement"]
    found = rows["order by size, |Γ|"]["deletion"]["mean"]
    assert found == pytest.approx(float(by_size.auc()[0].mean()), abs=1e-5)
    # With what the Lasso leaves the last state is the network's own map, which it is right about.
    assert rows["what the Lasso leaves kept"]["kept"]["mean"] == 1
    assert {name for name, row in rows.items() if row["held"]} == {"the most used held"}
    assert rows["families for atoms"]["k"] == 8 < book["k"]
    assert rows["β the mean PFV"]["lambda"] != book["lambda"]
    # Behind the last block the network is almost linear: helpful concepts keep their promise.
    sums = {name: value["mean"] for name, value in book["helpful"].items()}
    assert sums["alone"] == pytest.approx(sums["promised"], rel=0.3) and sums["promised"] > 0
    assert sums["with all"] < sums["alone"], "the others speak against the class"


def test_what_helpful_concepts_promise_and_what_they_bring():
    network = tiny_network()
    block = network.blocks[-1]
    d = random_decomposition(network, {block: network.map_size(block)[0]}, 1)
    find, here, u = early._relevance.__wrapped__, d.concepts[block], d.codes[block]
    found = find(d, block, 1, 0.05, {}, 8)
    relevance = attribute(d, block, 1, tolerance=0.05)
    torch.testing.assert_close(found["relevance"], relevance)
    above, helps = network.segment(block), relevance[0] > 0
    assert 0 < helps.sum() < len(here)
    none, alone, whole = (above(here.decode(codes))[0, 1] for codes in (0 * u, u * helps, u))
    sums = {"promised": relevance[relevance > 0].sum(), "alone": alone - none}
    for name, value in (sums | {"with all": whole - none}).items():
        torch.testing.assert_close(found[name], value)
    drawn = find(d, block, 1, 0.05, {"method": "random in use"}, 8)["relevance"]
    assert torch.equal(drawn, attribute(d, block, 1, method="random in use", seed=1))


def test_one_concept_of_twenty_is_held_the_most_used(monkeypatch):
    """Concept j is in use at j of twenty positions."""
    codes, asked = (torch.arange(20)[:, None] < torch.arange(20)).float()[None], []

    class Coded:
        def __getitem__(self, rows):
            return self

    Coded.codes = {"b": codes}
    curves = curves_of(1, 0.01)[:, None]
    stubs = {
        "decompose": lambda *_: Coded(), "replace": lambda d, concepts: d,
        "_relevance": lambda *_: {"relevance": -torch.ones(1, 1, 20)},
        "_curves": early._curves.__wrapped__,
        "deletion_insertion": lambda d, block, label, order, *, batch_size, **options:
            asked.append((order.unique().tolist(), options)) or {"agreement": curves},
    }  # fmt: skip
    for name, value in stubs.items():
        monkeypatch.setattr(early, name, value)
    concepts = Concepts(torch.eye(20), torch.zeros(20), torch.arange(20), "b", lam=1.0)
    given = SimpleNamespace(
        network=None, profile=Profile(), concepts=lambda block: concepts,
        evaluated=lambda most: (torch.zeros(1), [0]),
    )  # fmt: skip
    for name in ("nothing", "order by size, |Γ|", "what the Lasso leaves kept"):
        assert early._of_arm(given, "b", early.ARMS[name])[0]["held"] == 0
    assert [order for order, _ in asked] == [[-1], [1], [-1]]
    options = [(given["residual"], given["held"]) for _, given in asked]
    assert options == [(False, None), (False, None), (True, None)]
    about, areas, _ = early._of_arm(given, "b", early.ARMS["the most used held"])
    held = asked[-1][1]["held"]
    assert about["held"] == 1 and held.nonzero().tolist() == [[19]]
    assert asked[-1][1]["tolerance"] == early.BRACKET
    gain = areas["insertion"] - areas["deletion"]
    assert torch.equal(areas["difference"], gain) and areas["kept"] == curves.insertion.y[0, 0, -1]


def test_concepts_around_the_mean_are_made_and_coded_there(monkeypatch):
    x = torch.tensor([[1.0], [3.0]])
    monkeypatch.setattr(early, "extract", lambda x, beta, k, seed, block: (beta.item(), k, seed))
    monkeypatch.setattr(early, "tune", lambda made, x, seed: (made, len(x), seed))
    given = SimpleNamespace(
        kept=lambda block: x, concepts=lambda block: [0] * 5, profile=Profile(seed=3)
    )
    assert early._around_mean(given, "b") == ((2.0, 5, 3), 2, 3)


def test_fewer_photographs_make_as_many_concepts(small, monkeypatch):
    monkeypatch.setattr(fewer, "BLOCKS", ("layer4.2",))
    monkeypatch.setattr(fewer, "SHARES", (1, 0.5, 0.1))
    monkeypatch.setattr(profiles.Profile, "n_concepts", lambda *sizes: min(12, sizes[-1] // 4))
    fewer.make(small)
    whole, half = written("fewer")["rows"]  # a tenth has too few PFVs
    assert fields(half) == fields(artifacts.recorded("fewer")["rows"][1])
    assert whole["k"] == half["k"] == 12 and whole["photographs"] > half["photographs"]
    assert whole["error"]["minus_all"]["mean"] == 0 != half["error"]["minus_all"]["mean"]
    areas = [row["probability"]["minus_ours"] for row in (whole, half)]
    assert not any(areas[0]["each"]) and any(areas[1]["each"]), "against concepts of all"
    every, some = (fewer._photographs(small, "layer4.2", share) for share in (1, 0.5))
    left_out = small.pfvs.photographs[small.left_out]
    assert torch.isin(some, every).all() and not torch.isin(every, left_out).any()
    ours, theirs = fewer._made(small, "layer4.2", every), small.concepts("layer4.2")
    assert torch.equal(ours.vectors, theirs.vectors) and ours.lam == theirs.lam


def test_areas_of_all_blocks_are_beside_the_books_within_both_brackets(kept, monkeypatch):
    areas = {name: torch.arange(4.0) * n for n, name in enumerate((*early.AREAS, "kept"))}
    given = {"k": 8}, areas, {"promised": torch.ones(4)}
    monkeypatch.setattr(early, "_of_arm", lambda run, block, arm: given)
    early.make(SimpleNamespace(evaluated=lambda most: (None, [0] * 4)))
    rows = kept["early"]
    assert len(rows) == len(early.ARMS) * len(early.BLOCKS)
    assert confidences(rows) == {run.together(len(early.BLOCKS))}
    for row in rows:
        open_ = {name: row[name]["minus_book"].get("bracket") for name in areas}
        twice = 2 * early.BRACKET
        assert open_ == {
            "insertion": twice,
            "deletion": twice,
            "difference": 2 * twice,
            "kept": None,
        }
        assert row["insertion"]["mean"] == 0 and row["deletion"]["mean"] == 1.5


def test_fewer_photographs_of_all_blocks_are_read_together(kept, monkeypatch):
    stubs = {
        "_photographs": lambda run, block, share: torch.arange(int(8 * share)),
        "_made": lambda run, block, photographs: photographs,
        "one_per_photograph": lambda run, block: (None, None), "wanted_nonzeros": lambda *_: 2,
        "missed": lambda concepts, *_: (torch.arange(4.0) / len(concepts), torch.tensor(2)),
        "row_of": lambda run, concepts, *how: asked.append(how) or {"k": len(concepts)},
    }  # fmt: skip
    asked = []
    for name, value in stubs.items():
        monkeypatch.setattr(fewer, name, value)
    fewer.make(SimpleNamespace(profile=Profile()))
    rows = kept["fewer"]
    assert {(*orders, places) for orders, _, _, places in asked} == {("gig", len(fewer.BLOCKS))}
    assert all(how[1] is asked[0][1] for how in asked), "one memory of all photographs' areas"
    assert [row["k"] for row in rows] == [8, 4, 2] * 2
    assert [row["error"]["minus_all"]["mean"] for row in rows[:3]] == pytest.approx(
        [0, 1.5 / 8, 1.5 * 3 / 8], abs=1e-6
    )
    assert confidences(rows) == {run.together(len(fewer.BLOCKS))}


def test_fewer_photographs_are_some_of_more_and_make_as_many_concepts(monkeypatch):
    """Of sixteen with two PFVs each, every fourth held out."""
    ids = torch.arange(32) // 2
    given = SimpleNamespace(
        pfvs=SimpleNamespace(
            photographs=torch.arange(16), picture_ids=lambda block: ids,
            vectors=lambda block: ids[:, None].double(),
        ),
        made_of=lambda block: ids % 4 > 0, profile=Profile(pfvs_per_concept=4, seed=3),
        network=SimpleNamespace(device="cpu", bn_shift=lambda block: None),
    )  # fmt: skip
    every, half, quarter = (fewer._photographs(given, "b", share) for share in (1, 0.5, 0.25))
    assert [len(every), len(half), len(quarter)] == [12, 6, 3] and not (every % 4 == 0).any()
    assert {*quarter.tolist()} < {*half.tolist()} < {*every.tolist()}
    monkeypatch.setattr(fewer, "extract", lambda x, beta, k, seed, block: (len(x), k, seed))
    monkeypatch.setattr(fewer, "tune", lambda made, x, seed: (*made, len(x), seed))
    assert fewer._made(given, "b", every) == (24, 6, 3, 24, 3)
    assert fewer._made(given, "b", half) is None


def test_extractors_are_compared_at_equal_non_zeros(small, monkeypatch):
    names = "bisecting", "random_pfvs", "sae_short", "kmeans"
    monkeypatch.setattr(extractors, "EXTRACTORS", {n: extractors.EXTRACTORS[n] for n in names})
    monkeypatch.setattr(run, "AFFORDABLE", dict.fromkeys(names, 1e9) | {"kmeans": 0})
    monkeypatch.setattr(extractors, "PHOTOGRAPHS", 5)
    monkeypatch.setattr(extractors, "SEEDS", 2)
    monkeypatch.setattr(extractors, "level", lambda: 9)
    extractors.make(small)
    found = written("concepts")
    at_level, whole = found["rows"]
    assert confidences(found["rows"]) == {run.together(len(PAPER["table_1"]))}
    assert {row["block"] for row in found["rows"]} == {"layer4.2"}, "Table 1 has no layer3.5"
    assert (whole["at_level"], at_level["at_level"], at_level["k"]) == (False, True, 9)
    assert set(at_level["methods"]) == {*names} - {"kmeans"}, "k-means takes too long"
    assert -1 < at_level["methods"]["bisecting"]["comes_back"][0] < 1
    recorded = [row for row in artifacts.recorded("concepts")["rows"] if row["at_level"]]
    for row, before in ((whole, {}), (at_level, recorded[0]["methods"])):
        of_extractors(row, before)


def of_extractors(row, recorded):
    for name, method in row["methods"].items():
        before = recorded.get(name, {})
        for part in {*before} - {"records", "comes_back"}:
            assert fields(before[part]) == fields(method[part])
        assert len(method["records"]) == (1 if name == "sae_short" else 2), "of every seed"
        for part in ("left_out", "seen", "pursuit"):
            assert len(method[part]["each"]) == 5
            mean = sum(method[part]["each"]) / 5
            assert mean == pytest.approx(method[part]["mean"], abs=1e-5)
        for record in method["records"]:
            for where in ("left_out", "seen"):
                # 2 %, within which lambda_for stops, or one code of one PFV where they are few.
                assert record[f"nonzeros_{where}"] == pytest.approx(row["nonzeros"], rel=0.05)
    for record in row["methods"]["sae_short"]["records"]:
        assert record["nonzeros_own_codes_kept"] <= row["nonzeros"] + 0.5
        alike = record["nonzeros_own_codes"], row["k"] / 2
        assert record["nonzeros_ours_at_own"] == pytest.approx(min(alike), rel=0.05)
        assert 0 <= record["dead"] < row["k"]
    ours = row["methods"]["bisecting"]
    for where in ("left_out", "pursuit"):
        assert ours[where]["minus_ours"]["mean"] == 0 and 0 < ours[where]["mean"] < 1


def test_thirds_are_clustered_each_with_its_own_seed(monkeypatch):
    asked = []

    def made(name, seed, beta):
        return SimpleNamespace(name=(name, seed, float(beta)), beta=beta + 1)

    def nearest(x, concepts):
        asked.append(concepts.name)
        return SimpleNamespace(cpu=lambda: concepts.name)

    blind = lambda x, beta, k, seed: made("blind", seed, beta)  # noqa: E731
    monkeypatch.setattr(extractors, "random_pfvs", blind)
    monkeypatch.setattr(extractors, "nearest_concept", nearest)
    one, other, chance = ("tree", 7, 0), ("tree", 10, 0), ("blind", 13, 1)
    score = {(one, other): 0.5, (one, chance): 0.2}
    monkeypatch.setattr(extractors, "adjusted_mutual_info_score", lambda *both: score[both])
    given = torch.zeros(12, 1), torch.zeros(1), torch.arange(12), torch.zeros(12).long()
    again = extractors.comes_back.__wrapped__
    fit = lambda x, beta, k, seed: made("tree", seed, beta)  # noqa: E731
    assert float(again(*given, 2, fit, 7)["excess"]) == pytest.approx(0.3)
    assert asked == [one, other, chance], "blind draws have the fit's own offset"
    assert again(*given, 3, fit, 7)["excess"].isnan(), "a third has four PFVs, not six"


@pytest.mark.parametrize("rectified", [False, True])
def test_nmf_is_judged_by_what_the_relu_lets_through(monkeypatch, rectified):
    seen, kind = [], extractors.overcomplete.NonNegative if rectified else Concepts
    made = lambda x, beta, k, seed: kind(x[:k], beta, torch.zeros(len(x)).long())  # noqa: E731
    nearest = lambda x, concepts: seen.append(x) or torch.zeros(len(x))  # noqa: E731
    blind = lambda x, *given: seen.append(x) or made(x, *given)  # noqa: E731
    monkeypatch.setattr(extractors, "random_pfvs", blind)
    monkeypatch.setattr(extractors, "nearest_concept", nearest)
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    given = torch.arange(12), torch.zeros(12).long()
    extractors.comes_back.__wrapped__(x, torch.zeros(4), *given, 2, made, 0)
    third = extractors.thirds(*given, torch.Generator().manual_seed(0))
    other, judges = (x[third == n].relu() if rectified else x[third == n] for n in (1, 2))
    assert len(seen) == 4 and torch.equal(seen[0], other)
    assert all(torch.equal(part, judges) for part in seen[1:])


def test_the_level_is_the_fewest_families_that_all_photographs_support(monkeypatch):
    rows = [{"block": block, "levels": [], "supported": level}
            for block, levels in {"a": (4, 16), "b": (8, 12), "c": (8, None)}.items()
            for level in levels]  # fmt: skip
    file = {"rows": [*rows, {"block": "b", "control": "members"}]}
    monkeypatch.setattr(extractors.artifacts, "recorded", lambda name: file)
    assert extractors.level() == 12


def test_an_encoders_own_codes_are_beside_as_many_of_ours():
    ours = {name: torch.zeros(1, 4) for name in ("left_out", "seen", "pursuit")}
    theirs = {"left_out": 1, "seen": 2, "pursuit": 3, "own_codes": 5, "own_codes_kept": 6}
    errors = {name: torch.arange(4.0)[None] + by for name, by in theirs.items()}
    errors["ours_at_own"] = torch.arange(4.0)[None] + 1
    entry = extractors._compared(errors, ours)
    found = {name: of["minus_ours"]["mean"] for name, of in entry.items() if name != "records"}
    alone = {name: 1.5 + by for name, by in theirs.items()}
    assert found == alone | {"own_codes_alike": 4}


def test_what_other_photographs_give_again_comes_back():
    """Eight directions, each in every photograph: clusters find them again, blind PFVs do not."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(16)[:8].repeat(60, 1)
    x = directions + 0.1 * torch.randn(480, 16, generator=generator)
    photographs = torch.arange(60).repeat_interleave(8)
    given = x, torch.zeros(16), photographs, photographs % 5
    names = {"bisecting": 3, "dictionary_learning": 3, "random_pfvs": 40}
    found = {  # one draw of eight directions may lack a few: chance is a mean over many
        name: torch.stack(
            [
                extractors.comes_back(*given, 8, EXTRACTORS[name].fit, seed)["excess"]
                for seed in range(seeds)
            ]
        ).mean()
        for name, seeds in names.items()
    }
    assert min(found["bisecting"], found["dictionary_learning"]) > 0.1
    assert abs(found["random_pfvs"]) < 0.1


def test_pursuit_uses_as_many_unit_atoms_as_it_is_told(small):
    block = "layer4.2"
    concepts, beta = small.concepts(block), small.network.bn_shift(block)
    x = small.pfvs.vectors(block)[:3]
    atoms = torch.nn.functional.normalize(concepts.vectors, dim=1)
    # Atom after atom, the one that correlates most, refitted by least squares.
    for n in (1, 3):
        errors = extractors._pursued(concepts, x, beta, n)["errors"]
        for target, error in zip(x - beta, errors, strict=True):
            chosen, rest = [], target
            for _ in range(n):
                chosen.append(int((atoms @ rest).abs().argmax()))
                basis = atoms[chosen].T
                rest = target - basis @ torch.linalg.lstsq(basis, target[:, None]).solution[:, 0]
            assert float(error) == pytest.approx(
                float(rest.norm() / (target + beta).norm()), rel=1e-3
            )


def _recorded(*names):
    return [row for row in artifacts.recorded("controls")["rows"] if row["control"] in names]


def test_members_are_compared_one_per_photograph(monkeypatch):
    """Two concepts at right angles, six held-out photographs of each, by hand."""
    monkeypatch.setattr(controls, "MEMBERS", 2)
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).repeat(2).repeat_interleave(2)
    angles[1::2] += 0.05  # a second PFV of every photograph, further away
    which = torch.arange(2).repeat_interleave(12)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    x[which == 1] = x[which == 1].flip(1)
    ids = torch.arange(24) // 2
    concepts = Concepts(torch.eye(2), torch.zeros(2), which, "any")
    # The first concept's two nearest photographs are of one class, all others of classes apart.
    predictions = torch.tensor([0, 0, *range(1, 11)])
    pfvs = SimpleNamespace(
        held_out=lambda block: torch.ones(24, dtype=torch.bool), picture_ids=lambda block: ids,
        vectors=lambda block: x, photographs=torch.arange(12), predictions=lambda: predictions,
    )  # fmt: skip
    network = SimpleNamespace(class_vectors=torch.eye(11))
    here = {"pfvs": pfvs, "network": network, "profile": SimpleNamespace(seed=0)}
    row = controls.members(SimpleNamespace(**here, chain=[*"abc"]), concepts)
    assert confidences(row) == {run.together(3)}
    assert fields(row) == fields(_recorded("members")[0]) and row["concepts"] == 2
    nearest = torch.tensor([0.1, 0.2]).cos().mean()  # not 0.1 and 0.15, of one photograph
    assert row["cosine"]["nearest"]["mean"] == pytest.approx(float(nearest), abs=1e-6)
    low, high = torch.tensor([0.5, 0.6]).cos().mean(), torch.tensor([0.3, 0.4]).cos().mean()
    assert low <= row["cosine"]["drawn blindly"]["mean"] <= high, "of the others alone"
    alike = row["likeness of classes"]
    assert alike["nearest"]["mean"] == 0.5 and alike["drawn blindly"]["mean"] == 0


def test_concepts_come_back_from_another_seed_and_from_the_other_half(monkeypatch):
    """Eight photographs of two PFVs; the first and the fifth are held out."""
    ids, asked, beta = torch.arange(16) // 2, [], torch.zeros(1)
    x = ids[:, None].double()

    def made(kind):
        def fit(x, beta, k, seed=0):
            return SimpleNamespace(about=(kind, sorted({*x[:, 0].tolist()}), k, seed), beta=beta)

        return fit

    class Named(SimpleNamespace):
        def __len__(self):
            return 7

    monkeypatch.setattr(controls, "extract", lambda *a, **o: Named(**vars(made("tree")(*a, **o))))
    monkeypatch.setattr(controls, "random_pfvs", made("blind"))
    monkeypatch.setattr(
        controls, "_nearest",
        lambda one, other: asked.append((one.about, other.about)) or torch.tensor([0.95, 0.8, 0.1]),
    )  # fmt: skip
    pfvs = SimpleNamespace(
        photographs=torch.arange(8), picture_ids=lambda block: ids,
        held_out=lambda block: ids % 4 == 0,
    )  # fmt: skip
    given = SimpleNamespace(
        pfvs=pfvs, profile=Profile(pfvs_per_concept=2), kept=lambda block: x[ids % 4 > 0],
        concepts=lambda block, draw=0: Named(about=("ours", draw), beta=beta),
    )  # fmt: skip
    rows = controls._stability(given, "b")
    one, other = ("tree", [5.0, 6, 7], 3, 0), [1.0, 2, 3]
    assert asked == [
        (("ours", 0), ("ours", 1)), (one, ("tree", other, 3, 1)), (one, ("blind", other, 3, 0))
    ]  # fmt: skip
    assert [row["k"] for row in rows] == [7] * 3
    for row in rows:
        assert row["median"] == pytest.approx(0.8) and row["again"] == pytest.approx(1 / 3)


def test_families_are_counted_at_every_number_of_photographs(small, monkeypatch):
    monkeypatch.setattr(families, "LEVELS", (2, 4))
    monkeypatch.setattr(families, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(families, "members", lambda run, concepts: {"block": concepts.block})
    families.make(small)
    rows = written("families")["rows"]
    every = len(small.pfvs.photographs.unique())
    counted = [row for row in rows if "levels" in row]
    assert [(row["block"], row["photographs"]) for row in counted] == [
        (block, n) for block in BLOCKS for n in (round(every / 2), every)
    ]
    whole = counted[1]
    assert whole["pfvs"] == small.pfvs.count(BLOCKS[0]) > counted[0]["pfvs"]
    for row in counted:
        for at in row["levels"]:
            splits = torch.tensor(at["splits"], dtype=torch.double)
            assert len(splits) == 5 and at["excess"] == pytest.approx(float(splits.mean()))
    # Members are judged where all photographs support a level, and only there.
    supported = [row for row in counted if row["photographs"] == every and row["supported"]]
    judged = [row for row in rows if row not in counted]
    assert judged == [{"block": row["block"], "k": row["supported"]} for row in supported]
    assert judged


@pytest.mark.parametrize(("channels", "k", "as_many"), [(16, 4, 2), (8, 4, 1), (16, 2, 1)])
def test_codes_that_are_kept_are_those_that_bring_most(monkeypatch, channels, k, as_many):
    monkeypatch.setattr(extractors, "missed", lambda ours, x, count: (x[:, 0], torch.tensor(count)))
    pad = lambda rows: F.pad(rows, (0, channels - rows.shape[1]))  # noqa: E731
    vectors = pad(torch.diag(torch.tensor([1.0, 10, 1, 1])))
    encoder = Concepts(vectors, torch.zeros(channels), torch.arange(4), lam=1.0)
    ours = replace(encoder, vectors=vectors[:k])
    own, x = torch.tensor([[3.0, 1, 0, 0]]), pad(torch.tensor([[3.0, 10, 0, 1]]))
    monkeypatch.setattr(Concepts, "encode", lambda self, x: own)
    found = extractors._own.__wrapped__(encoder, ours, x, 1.0)
    for name, missing in {"own_codes": [1.0], "own_codes_kept": [3.0, 1]}.items():
        wanted = torch.tensor(missing).norm() / x.norm()
        torch.testing.assert_close(found[name], wanted[None])
    numbers = [float(found[f"nonzeros_{name}"]) for name in ("own_codes", "own_codes_kept")]
    assert numbers == [2, 1] and found["nonzeros_ours_at_own"] == as_many


def test_errors_at_so_many_non_zeros_are_of_centred_pfvs():
    x = 100 + torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    concepts = Concepts(torch.eye(8), torch.full((8,), 100.0), torch.arange(8))
    errors, count = extractors.missed(concepts, x, 4)
    assert float(count) == pytest.approx(4, rel=0.02) and (errors < 0.03).all()


def test_views_of_a_photograph_are_dealt_and_counted_as_one(monkeypatch):
    """Three photographs of two views, two PFVs of each; each photograph is a class of its own."""
    ids, photographs = torch.arange(12) // 2, torch.arange(6) // 2
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    pfvs = SimpleNamespace(
        picture_ids=lambda block: ids, photographs=photographs, vectors=lambda block: x,
        classes=lambda: photographs,
    )  # fmt: skip
    given = SimpleNamespace(
        pfvs=pfvs, profile=Profile(), kept=lambda block, k: x,
        made_of=lambda block, k: torch.ones(12).bool(),
        network=SimpleNamespace(device="cpu", bn_shift=lambda block: torch.zeros(4)),
    )  # fmt: skip
    asked, real = [], families.families.support

    def agreement(x, beta, photographs, classes, levels):
        asked.append((photographs, classes))
        return torch.zeros(5, len(levels))

    def support(labels, parents, photographs, excess, levels):
        asked.append((photographs, asked[-1][1]))
        return real(labels, parents, photographs, excess, levels)

    def comes_back(x, beta, photographs, classes, k, fit, seed):
        asked.append((photographs, classes))
        return {"excess": torch.tensor(0.5)}

    monkeypatch.setattr(families, "LEVELS", (2,))
    monkeypatch.setattr(families.families, "agreement", agreement)
    monkeypatch.setattr(families.families, "support", support)
    monkeypatch.setattr(extractors, "comes_back", comes_back)
    assert [families._support(given, "b", s)["photographs"] for s in (0.7, 1.0)] == [2, 3]
    assert extractors._again(given, "b", "bisecting", 2) == [0.5] * extractors.SEEDS
    assert [len(owners.unique()) for owners, _ in asked] == [2, 2, 3, 3, 3, 3, 3]
    assert all(torch.equal(owners, of_class) for owners, of_class in asked)


def test_controls_fall_apart_and_come_back(small, monkeypatch):
    monkeypatch.setattr(controls, "SHUFFLED_PICTURES", 2)
    monkeypatch.setattr(controls, "STAGES", ("fc", "layer4"))
    # Two dozen photographs leave no concept enough of them that are held out: see the next test.
    monkeypatch.setattr(controls, "members", lambda run, concepts: {"control": "members"})
    controls.make(small)
    rows = written("controls")["rows"]
    expected = {tuple(sorted(row)) for row in _recorded("stability", "shuffled weights")}
    assert {tuple(sorted(row)) for row in rows if len(row) > 1} == expected
    stable = [row for row in rows if row["control"] == "stability"]
    assert [row["block"] for row in stable] == [b for b in BLOCKS for _ in range(3)]
    assert all(0 < row["median"] <= 1 and 0 <= row["again"] <= 1 for row in stable)
    members = [row for row in rows if row["control"] == "members"]
    apart = [(row["block"], row["down to"]) for row in rows if row not in stable + members]
    assert apart == [("layer3.5", "fc"), ("layer4.2", "fc"), ("layer3.5", "layer4")]
    same = controls._apart(small, small.network, "layer4.2", "nothing")
    assert same["signed"]["mean"] == same["first ten in common"]["mean"] == 1
    concepts = small.concepts("layer4.2")
    assert float(controls._nearest(concepts, concepts).min()) == pytest.approx(1, abs=1e-5)


def test_weights_are_shuffled_one_part_after_the_other(monkeypatch):
    rows = []
    stubs = {
        "STAGES": ("fc", "layer4"), "_stability": lambda *_: [], "members": lambda *_: "members",
        "shuffled": lambda network, stage, seed: [*network, (stage, seed)],
        "_apart": lambda run, network, block, stage: (block, stage, network),
        "write": lambda run, name, made, **settings: rows.append(made[2:]),
    }  # fmt: skip
    for name, value in stubs.items():
        monkeypatch.setattr(controls, name, value)
    controls.make(
        SimpleNamespace(
            chain=BLOCKS, network=[], profile=Profile(seed=7), concepts=lambda block: None
        )
    )
    one, two = [("fc", 7)], [("fc", 7), ("layer4", 7)]
    assert rows[-1] == [
        ("layer3.5", "fc", one), ("layer4.2", "fc", one), ("layer3.5", "layer4", two)
    ]  # fmt: skip


def test_orders_of_a_shuffled_network_are_of_what_a_picture_uses(monkeypatch):
    """Eleven concepts of twelve, whose relevance has the opposite sign, by the true codes."""
    own = torch.tensor([*range(1, 12), 50.0])
    relevance = {"ours": own, "theirs": torch.cat([-own[:-1], own[-1:]])}
    seen, below = [], [50]

    def decomposed(network, images, concepts):
        seen.append(network)
        return SimpleNamespace(codes={"b": (own < below[0]).double().expand(2, 4, 12)})

    stubs = {
        "decompose": decomposed, "replace": lambda d, network: network,
        "attribute": lambda network, *_, **__: relevance[network].expand(2, 1, 12),
    }  # fmt: skip
    for name, value in stubs.items():
        monkeypatch.setattr(controls, name, value)
    given = SimpleNamespace(
        network="ours", profile=Profile(), concepts=lambda block: None,
        evaluated=lambda most: (None, [0, 1]),
    )  # fmt: skip
    names = "signed", "absolute", "first ten in common"
    for below[0], common in ((50, 0.9), (4, 1)):  # of three all are the first
        row = controls._apart(given, "theirs", "b", "fc")
        assert [row[name]["mean"] for name in names] == pytest.approx([-1, 1, common])
    assert seen == ["ours"] * 2
    apart = controls._nearest(
        *(Concepts(torch.tensor([[way, 0.0]]), torch.zeros(2), torch.zeros(1)) for way in (1, -2))
    )
    assert apart.tolist() == [-1]


def test_orders_of_the_logit_and_of_the_probability_are_told_apart(monkeypatch):
    number = {
        ("gig", "logit"): 0.0, ("gig", "probability"): 1.0, ("gradient", "logit"): 2.0,
        ("activation", "logit"): torch.nan, ("random", "logit"): 4.0,
    }  # fmt: skip
    asked, one = [], curves_of(1, 0.01)

    def attributed(d, block, classes, *, method, output, **options):
        return torch.full((4, 1, 2), number[method, output])

    def curved(d, block, classes, importance, tolerance):
        assert tolerance == Profile().bracket
        asked.append(importance[0, :, 0, 0].tolist())
        parts = (
            Curve(*(torch.stack([of, by * of], 1)[:, :, None] for by, of in ((1, w.x), (3, w.y))),
                  w.bracket[:, None, None].expand(4, 2, 1))
            for w in (one.deletion, one.insertion)
        )  # fmt: skip
        return {"probability": Curves(*parts)}

    d = SimpleNamespace(concepts={"b": [0, 1]})
    stubs = {"attribute": attributed, "deletion_insertion": curved, "decompose": lambda *_: d}
    stubs["class_fidelity"] = lambda d, block, labels, importance, subsets: importance[:, :, 0]
    for name, value in stubs.items():
        monkeypatch.setattr(readings, name, value)
    given = SimpleNamespace(
        profile=Profile(), chain=[*"abc"], network=None, concepts=lambda block: None,
        evaluated=lambda most: (None, [0, 1, 2, 3]),
    )  # fmt: skip
    row = readings._row(given, "b")
    assert asked == [[0.0, 1.0]] and confidences(row) == {run.together(3)}
    means = [of["mean"] for of in row["fidelity"].values()]
    assert means == [0, 1, 2, 0, 4], "none where nothing varies"
    apart = row["order, logit less probability"]
    assert apart["mean"] == pytest.approx(float((one.gain() - 3 * one.gain()).mean()))
    assert apart["bracket"] == pytest.approx(2 * 0.04)


def test_readings_have_the_fields_that_chapter_5_reads(small, monkeypatch):
    monkeypatch.setattr(readings, "PICTURES", 2)
    monkeypatch.setattr(readings, "SUBSETS", 60)
    readings.make(small)
    found = written("readings")
    assert fields(found) == fields(artifacts.recorded("readings"))
    assert [row["block"] for row in found["rows"]] == list(BLOCKS)
    assert confidences(found["rows"]) == {run.together(len(BLOCKS))}
    last = found["rows"][-1]["fidelity"]
    # Almost linear behind the last block; but a set of so few concepts may hold none in use.
    assert last["gig"]["high"] > 0.9 and last["gig"]["mean"] > last["random"]["mean"] + 0.3


def test_pairs_of_classes_that_are_alike_by_photographs_that_made_no_concept(monkeypatch):
    monkeypatch.setattr(shared, "PAIRS", 1)
    rows = torch.tensor([[1.0, 0], [20, 2], [0, 1], [1, 0], [-1, 0]])
    pictures = type("Rows", (), {"__getitem__": lambda self, rows: rows})()
    given = SimpleNamespace(
        left_out=[*range(1, 9)], network=SimpleNamespace(class_vectors=rows), pictures=pictures,
        right_by_class=lambda: {0: [0, 1, 2], 1: [3, 4], 2: [5, 6], 3: [7], 4: [8, 9]},
    )  # fmt: skip
    assert [*shared._pairs(given)] == [([1, 2, 3, 4], [0, 0, 1, 1])]


def test_what_is_shared_counts_by_the_class_that_loses_less(kept, monkeypatch):
    lost = {"shared": torch.tensor([1.0, 3.0]), "any in use": torch.tensor([2.0, 0.0])}
    monkeypatch.setattr(shared, "_pairs", lambda run: [(None, [0]), (None, [1]), (None, [2])])
    taken = ({name: by * of for name, of in lost.items()} for by in [1, 2, 3] * 2)
    monkeypatch.setattr(shared, "_taken_out", lambda *_: next(taken))
    shared.make(SimpleNamespace(chain=[*"ab"], concepts=lambda block: None))
    rows = kept["shared"]
    assert rows[0]["shared_minus"]["any in use"]["each"] == [1, 2, 3]
    assert rows[0]["lost"]["shared"]["second"]["mean"] == 6
    assert confidences(rows) == {run.together(2)}


def test_where_nothing_is_shared_any_concept_in_use_stands_for_it(monkeypatch):
    """Chosen on the first and third photographs, which use 1 and 3; what it costs is its number."""
    codes, asked = torch.zeros(4, 1, 5), []
    codes[0, 0, 1] = codes[2, 0, 3] = codes[1, 0, 0] = codes[3, 0, 0] = 1

    class Costs:
        def __getitem__(self, rows):
            asked.append([*rows])
            return self

        def logits(self, removed=None):
            return -torch.full((2, 10), float((removed or {"b": 0})["b"]))

    Costs.codes = {"b": codes}
    graph = nx.DiGraph()
    graph.add_node("b/2", group="7", concept=2)
    monkeypatch.setattr(shared, "decompose", lambda *_: Costs())
    monkeypatch.setattr(shared, "concept_graph", lambda *_, **__: graph)
    concepts, blind = Concepts(torch.eye(5), torch.zeros(5), torch.arange(5), "b"), set()
    for seed in range(8):
        given = SimpleNamespace(network=None, profile=Profile(seed=seed))
        lost = shared._taken_out(given, concepts, None, [7, 7, 9, 9])
        assert lost["the first's own"].tolist() == [2, 2]
        assert torch.equal(lost["shared"], lost["any in use"])
        blind |= {*lost["shared"].tolist()}
    assert blind == {1, 3} and asked == [[0, 2], [1, 3]] * 8


def test_a_concept_taken_out_costs_what_a_forward_pass_without_it_says(small, monkeypatch):
    """Chosen on the first photograph of each class, taken out of the second."""
    right = small.pfvs.right()
    one, other = right[:2]
    labels = [int(small.pfvs.predictions()[i]) for i in (one, one, other, other)]
    images = small.pictures[[one, right[2], other, right[3]]]
    monkeypatch.setattr(shared, "_pairs", lambda run: [(images, labels)] * 2)
    shared.make(small)
    found = written("shared")
    assert found["settings"]["photographs_of_each"] == 2
    assert [row["block"] for row in found["rows"]] == list(BLOCKS)
    network, concepts = small.network, small.concepts("layer4.2")
    lost = shared._taken_out(small, concepts, images, labels)["the first's own"]
    d = decompose(network, images, {"layer4.2": concepts})
    ours = int(attribute(d[[0]], "layer4.2", labels[0], rest=True)[0, 0, :-1].argmax())
    x = network.preactivations(images[[1]], ["layer4.2"])["layer4.2"]
    part = (d.codes["layer4.2"][1][:, ours, None] * concepts.vectors[ours]).T.reshape(x.shape)
    logits = (network.logits_from(y, "layer4.2")[0, labels[0]] for y in (x, x - part))
    before, after = logits
    assert float(lost[0]) == pytest.approx(float(before - after), abs=1e-3)


def test_edges_of_a_linear_network_forecast_every_loss():
    """What is taken out is u_q v_q, and gradients are right everywhere."""
    later = torch.tensor([[2.0, 1.0], [-1.0, 3.0]]).double()
    rest = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    d = linear(U, V, later, residual=rest)
    unit = torch.nn.functional.normalize(later, dim=1)
    sources, targets = torch.tensor([0, 2]), torch.tensor([1, 0])
    found = [*edges.losses(d, "a", "b", sources, targets)]
    before = (d.reconstruction("a") + d.residual("a"))[0] @ d.network.A.T @ unit[targets].T
    for q, (summed, largest) in zip(sources.tolist(), found, strict=True):
        lost = U[0, :, q, None] * (V.vectors[q] @ d.network.A.T) @ unit[targets].T
        torch.testing.assert_close(summed, lost.sum(dim=0))
        torch.testing.assert_close(largest, before.amax(dim=0) - (before - lost).amax(dim=0))
    scores = edges.of_picture(d.at("a"), 0, gap=0.01)
    for name in edges.FORECASTS:
        assert scores["ranks"][name] == pytest.approx(1)
        assert scores["signs"][name] == 1
    whole = (d.residual("a")[0] @ d.network.M[0]).sum() / (
        (d.reconstruction("a") + d.residual("a") - V.beta)[0] @ d.network.M[0]
    ).sum()
    assert scores["rest"][""] == pytest.approx(float(whole))


def test_edges_of_other_photographs_are_held_against_what_this_one_loses(monkeypatch):
    """Twice as much of each concept changes no rank; the opposite of each turns all around."""
    monkeypatch.setattr(transfer, "TARGETS", 2)
    later = torch.tensor([[2.0, 1.0], [-1.0, 3.0]]).double()
    own, same, other = (linear(U * by, V, later) for by in (1, 2, -1))
    scores = transfer._of_photograph(own, same, other, "a", "b", seed=0)
    for name, right in ((transfer.OWN, 1), (transfer.SAME, 1), (transfer.OTHER, 0)):
        assert scores["ranks"][name] == pytest.approx(2 * right - 1)
        assert scores["signs"][name] == right


def test_edges_are_between_what_the_others_of_a_class_use(monkeypatch):
    """Their sources, and of later concepts those whose vectors bring most."""
    monkeypatch.setattr(transfer, "TARGETS", 1)
    first, others = (U * torch.tensor(on) for on in ([1.0, 0, 0, 0], [0, 1.0, 1, 0]))
    long, short = torch.tensor([[9.0, 3.0]]).double(), torch.tensor([[0.5, 1.0]]).double()
    own = linear(first, V, torch.cat([long, short]))
    same = linear(others, V, torch.cat([short, long]))
    asked = []

    def losses(d, a, b, sources, targets):
        asked.append((d, sorted(sources.tolist()), targets.tolist()))
        return [(torch.tensor([float(q)]), torch.zeros(1)) for q in sources]

    monkeypatch.setattr(transfer, "losses", losses)
    monkeypatch.setattr(transfer, "ranks", lambda forecast, measured: 0.0)
    transfer._of_photograph(own, same, same, "a", "b", seed=0)
    assert asked == [(own, [1, 2], [1])]


def test_edges_of_the_networks_own_map_start_at_sources_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(transfer, "SOURCES", 2)
    monkeypatch.setattr(transfer, "TARGETS", 1)
    monkeypatch.setattr(transfer, "ranks", lambda forecast, measured: 0.0)
    d, drawn, options = linear(U, V, torch.ones(1, 2).double()), [], []

    def losses(d, a, b, sources, targets):
        drawn.append(sources.tolist())
        return [(torch.zeros(1), torch.zeros(1)) for _ in sources]

    def attributed(d, block, target, **given):
        options.append(given)
        return torch.zeros(1, 1, 5)

    monkeypatch.setattr(transfer, "losses", losses)
    monkeypatch.setattr(transfer, "attribute", attributed)
    for seed in range(4):
        transfer._of_photograph(d, d, d, "a", "b", seed)
    # Of the three concepts in use.
    orders = [torch.randperm(3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert drawn == [order[:2].tolist() for order in orders]
    assert all(given == {"tolerance": transfer.GAP, "rest": True} for given in options)


def test_edges_of_several_photographs_are_their_mean(monkeypatch):
    monkeypatch.setattr(transfer, "TARGETS", 2)
    later = torch.tensor([[2.0, 1.0], [-1.0, 3.0]]).double()
    own, two = linear(U, V, later), linear(torch.cat([-U, 3 * U]), V, later)
    scores = transfer._of_photograph(own, two, own, "a", "b", seed=0)
    assert scores["ranks"][transfer.SAME] == pytest.approx(1), "−1 and 3 times as much is 1 time"
    # What changes nothing has no sign: concept 0 brings nothing to a target at right angles.
    some = transfer._signs(torch.tensor([1.0, -1, 5]), torch.tensor([2.0, -3, 0]))
    assert some == 1


def test_what_helps_opposes_and_is_patched_by_brute_force():
    """Two ends that speak for the class; one source's effect along one target alone."""
    a, b = sides = {"layer3.0": 4, "layer4.0": 2}
    d, label, gap = random_decomposition(random_network("basic"), sides, 1), 3, 0.2
    found = edges.of_picture(d, label, gap)
    there = d.concepts[b]
    mass = d.codes[b][0].abs().sum(dim=0) * there.vectors.norm(dim=1)
    targets, sources = mass.topk(edges.TARGETS).indices, torch.arange(12)
    brought = attribute(d, a, (b, targets), tolerance=gap, rest=True)[0, :, :-1]
    helps = [attribute(d, block, label, tolerance=gap, rest=True)[0, 0] for block in (a, b)]
    lost = torch.stack([summed for summed, _ in edges.losses(d, a, b, sources, targets)], dim=1)
    counts = {"edges": 0, "oppose": 0, "truly": 0}
    for t, q in itertools.product(range(len(targets)), d.codes[a][0].any(dim=0).nonzero()[:, 0]):
        if helps[0][q] > 0 and helps[1][targets[t]] > 0:
            counts["edges"] += 1
            counts["oppose"] += bool(brought[t, q] < 0)
            counts["truly"] += bool(brought[t, q] < 0 and lost[t, q] < 0)
    assert found["helpful"] == counts and counts["edges"] > counts["oppose"] > 0

    n, m = edges.PATCHED
    given = torch.randn(m, n), [torch.rand(n), torch.rand(m)]
    patched = edges.patched(d, label, sources[:n], targets[:m], *given)
    segment, above = d.network.segment(a, b), d.network.segment(b)
    x, unit = d._maps[a], torch.nn.functional.normalize(there.vectors[targets[:m]], dim=1)
    before, measured = segment(x), torch.zeros(m, n)
    for t, q in itertools.product(range(m), range(n)):
        after = segment(x - d.codes[a][:, :, q, None] * d.concepts[a].vectors[q])
        along = (before - after) @ unit[t]
        measured[t, q] = (above(before) - above(before - along[..., None] * unit[t]))[0, label]
    whole = ((before[0] - there.beta) @ unit.T).sum(dim=0)
    forecast = given[0] / whole[:, None] * given[1][1][:, None]
    assert patched["GIG"] == pytest.approx(edges.ranks(forecast, measured), abs=1e-3)
    blind = given[1][0].expand(m, -1)
    found = patched["the source's relevance"]
    assert found == pytest.approx(edges.ranks(blind, measured), abs=1e-3)


def test_edges_are_chosen_on_photographs_that_made_concepts_and_tested_on_one_that_did_not():
    """Two views of a photograph are one; a class without either kind is left out."""
    by_class = {7: [0, 1, 2, 3], 8: [4, 5, 6], 9: [8, 9, 10, 11]}
    photographs = torch.tensor([0, 0, 1, 2, 4, 4, 5, 6, 8, 9, 10, 11])
    given = SimpleNamespace(
        left_out=[3, 6, 10], pfvs=SimpleNamespace(photographs=photographs),
        right_by_class=lambda: by_class,
    )  # fmt: skip
    found = transfer._photographs(given)
    assert len(found) == transfer.PHOTOGRAPHS
    assert [*dict.fromkeys((out, *others) for out, others in found)] == [(3, 0, 2), (10, 8, 9)]


def test_the_files_of_edges_and_circuits(small, monkeypatch):
    monkeypatch.setattr(edges, "PHOTOGRAPHS", 3)
    monkeypatch.setattr(edges, "TARGETS", 3)
    monkeypatch.setattr(edges, "PATCHED", (2, 3))
    supported = [{"block": block, "levels": [], "supported": 4} for block in BLOCKS]
    families_recorded = {"rows": supported}
    recorded = artifacts.recorded
    monkeypatch.setattr(
        edges.artifacts, "recorded",
        lambda name: families_recorded if name == "families" else recorded(name),
    )  # fmt: skip
    monkeypatch.setattr(run, "CHAIN", BLOCKS)
    monkeypatch.setattr(transfer, "TARGETS", 3)
    monkeypatch.setattr(transfer, "_photographs", lambda run: [(0, [1, 2]), (3, [4, 5]), (6, [7])])
    transfer.make(small)
    (row,) = written("transfer")["rows"]
    assert fields(row) == fields(recorded("transfer")["rows"][0])
    edges.make(small)
    rows = written("edges")["rows"]
    assert confidences(rows) == {run.together(len(BLOCKS))}
    places = [(BLOCKS[0], BLOCKS[1]), (BLOCKS[0], "class"), (BLOCKS[1], "class")]
    assert [(row["source"], row["target"]) for row in rows] == places * 2
    for row, before in zip(rows[:3], (recorded("edges")["rows"][0], None, None), strict=True):
        assert before is None or fields(row) == fields(before)
        assert all(-1 <= of["mean"] <= 1 for n, of in row["ranks"].items() if n != "gig_minus")


def test_a_classs_edges_are_those_of_its_others_and_of_the_next_one(kept, monkeypatch):
    """Of three photographs and two pairs of blocks, which are read together."""
    supported = [{"block": block, "levels": [], "supported": 4} for block in "abc"]
    monkeypatch.setattr(transfer.artifacts, "recorded", lambda name: {"rows": supported})
    tested = [(0, [1, 2]), (3, [4, 5]), (6, [7, 8])]
    monkeypatch.setattr(transfer, "_photographs", lambda run: tested)
    monkeypatch.setattr(transfer, "decompose", lambda network, pictures, concepts: pictures)
    asked = []

    def of_photograph(own, same, other, a, b, seed):
        asked.append((own, same, other))
        names = transfer.OWN, transfer.SAME, transfer.OTHER
        scores = {name: 0.1 * n + 0.01 * seed**2 for n, name in enumerate(names)}
        return {"ranks": scores, "signs": scores}

    monkeypatch.setattr(transfer, "_of_photograph", of_photograph)
    pictures = type("Rows", (), {"__getitem__": lambda self, rows: tuple(rows)})()
    concepts = SimpleNamespace(at=lambda level: level)
    transfer.make(
        SimpleNamespace(
            chain=[*"abc"], network=None, pictures=pictures, concepts=lambda block: concepts
        )
    )
    assert asked == [((0,), (1, 2), (4, 5)), ((3,), (4, 5), (7, 8)), ((6,), (7, 8), (1, 2))] * 2
    assert confidences(kept["transfer"]) == {run.together(2)}
    apart = kept["transfer"][0]["ranks"]["class_minus"][transfer.OWN]["mean"]
    assert apart == pytest.approx(0.1, abs=1e-6)


def test_circuits_of_all_sizes_are_read_together(kept, monkeypatch):
    def of_picture(d, label, gap, seed):
        scores = {"relevance": 0.5 + 0.1 * seed, "edges": 0.2 + 0.1 * seed}
        return {"faithful": {name: {2: value, 8: value} for name, value in scores.items()}}

    stubs = {"level": lambda: 8, "decompose": lambda *_: None, "of_picture": of_picture}
    for name, value in stubs.items():
        monkeypatch.setattr(circuits, name, value)
    circuits.make(
        SimpleNamespace(
            chain=[*"ab"], network=None, concepts=lambda block, k: None,
            evaluated=lambda most: (torch.zeros(3, 1), [0, 1, 2]),
        )
    )  # fmt: skip
    rows = kept["circuits"]
    assert [row["kept"] for row in rows] == [2, 8]
    assert rows[0]["score"]["edges"]["mean"] == pytest.approx(0.3)
    assert rows[0]["minus"]["edges"]["mean"] == pytest.approx(0.3)
    assert confidences(rows) == {run.together(len(circuits.SIZES))}


def test_edges_alone_hand_relevance_down_by_their_shares(monkeypatch):
    """By hand, on a linear network: each kept concept's relevance, times what made it."""
    monkeypatch.setattr(circuits, "SIZES", (1, 2))
    later = torch.tensor([[2.0, 1.0], [-1.0, 3.0], [0.5, 0.25]]).double()
    d = linear(U, V, later)
    end = torch.tensor([[3.0, 2.0, 1.0]]).double()

    def attributed(d, block, target, **options):
        if block == "b":
            return torch.cat([end, end[:, :1]], dim=1)[None] if options.get("rest") else end[None]
        return attribute(d, block, target, **options)

    monkeypatch.setattr(circuits, "attribute", attributed)
    found = circuits.orders(d, 0, 0.01, seed=0)["edges"]
    shares = attribute(d, "a", ("b", [0, 1]), rest=True)[0]
    shares = shares / shares.sum(dim=1, keepdim=True)
    by_hand = 3 * shares[0, :-1] + 2 * shares[1, :-1]
    assert found["b"] == [0, 1, 2] and found["a"] == by_hand.argsort(descending=True).tolist()


def test_a_circuit_of_all_is_the_network_and_of_none_nothing(monkeypatch):
    sides = {"layer3.1": 4, "layer4.1": 2}
    d = random_decomposition(random_network("resnet18"), sides, 1)
    monkeypatch.setattr(circuits, "SIZES", (2, 12))
    found = circuits.of_picture(d, 3, gap=0.2)
    for what, of in found.items():
        for order, shares in of.items():
            assert shares[12] == pytest.approx(float(what != "complement"), abs=1e-3), (what, order)
    kept = {b: attribute(d, b, 3, rest=True)[0, 0, :-1].topk(2).indices.tolist() for b in d.blocks}
    ends = [
        float(d.circuit(dict.fromkeys(d.blocks, of), rest=False)[0, 3]) for of in ([], range(12))
    ]
    score = (float(d.circuit(kept, rest=False)[0, 3]) - ends[0]) / (ends[1] - ends[0])
    assert found["without the rest"]["relevance"][2] == pytest.approx(score, abs=1e-3)


def test_graphs_know_what_their_concepts_are_made_of(small, monkeypatch):
    seen = sorted({*small.pfvs.predictions()[small.pfvs.right()].tolist()})
    names = [small.network.classes[c] for c in seen[:2]]
    missing = names[0], "no photograph of it"
    monkeypatch.setattr(graphs, "PAIRS", {"1": tuple(names), "6": missing})
    monkeypatch.setattr(graphs, "OF_EACH", 1)
    monkeypatch.setattr(small.network, "classes", (*small.network.classes, "no photograph of it"))
    graphs.make(small)
    found, recorded = written("graphs"), artifacts.recorded("graphs")
    (row,) = found["rows"]
    assert set(row) == set(recorded["rows"][0]) and row["classes"] == names
    graph = nx.node_link_graph(row["graph"], edges="edges")
    assert graph.graph["blocks"] == list(BLOCKS) and graph.graph["classes"] == seen[:2]
    node = next(n for n, d in graph.nodes(data=True) if d["block"] == "layer4.2")
    kept = (~small.pfvs.held_out("layer4.2")).nonzero()[:, 0]
    rows = kept[small.concepts("layer4.2").labels == graph.nodes[node]["concept"]]
    owners = {*small.pfvs.picture_ids("layer4.2")[rows].tolist()}
    assert graph.nodes[node]["photographs"] == len(owners)
    theirs = {small.network.classes[int(small.pfvs.predictions()[i])] for i in owners}
    assert set(graph.nodes[node]["classes"]) <= theirs
    weights = [w for _, b, w in graph.edges(data="weight") if not b.startswith("class/")]
    assert min(weights) >= graphs.WEAKEST and len(weights) < graph.graph["edges"]
    against = sum(raw < 0 for *_, raw in graph.edges(data="raw"))
    assert against <= graph.graph["opposing"] < graph.graph["edges"]


def paths_of_four(labels, stubs, monkeypatch):
    """The run over four photographs with these labels, in two blocks."""
    for name, value in stubs.items():
        monkeypatch.setattr(paths, name, value)
    paths.make(
        SimpleNamespace(
            profile=Profile(), chain=[*"ab"], network=None, concepts=lambda block: None,
            evaluated=lambda most: (torch.zeros(4, 1), labels),
        )
    )  # fmt: skip


def test_what_a_path_costs_beside_the_other_arms_by_hand(kept, monkeypatch):
    """A concept of the last block costs 100 more than its number, one of the first its number."""

    class Costs:
        def logits(self, removed):
            cost = sum((100 if block == "b" else 0) + q for block, q in removed.items())
            return torch.tensor([[-float(cost), 0.0]])

    draws = itertools.cycle([5, 6, 10])
    stubs = {
        "decompose": lambda *_: Costs(),
        "strongest_path": lambda d, label, tolerance: {"b": 10 * label, "a": 1 + label},
        "control_path": lambda d, path, generator: path | {"a": next(draws)},
        "attribute": lambda d, block, label, tolerance: torch.eye(9)[8][None, None],
    }  # fmt: skip
    paths_of_four([0, 0, 0, 1], stubs, monkeypatch)
    (row,) = kept["paths"]
    each = {name: arm["each"][0] for name, arm in row["lost"].items()}
    assert each == {
        "path": 101, "last concept alone": 100, "another class's path": 102, "no edges": 108,
        "control path": 107,
    }  # fmt: skip
    assert row["path_minus"]["no edges"]["each"][0] == 101 - 108


def test_another_class_is_that_of_the_next_photograph_that_has_one(kept, monkeypatch):
    asked = []
    d = SimpleNamespace(logits=lambda removed: torch.zeros(1, 3))
    stubs = {
        "decompose": lambda *_: d,
        "strongest_path": lambda d, label, tolerance: asked.append(label) or {"b": 0, "a": 0},
        "control_path": lambda d, path, generator: path,
        "attribute": lambda *_, **__: torch.zeros(1, 1, 2),
    }  # fmt: skip
    paths_of_four([0, 1, 2, 2], stubs, monkeypatch)
    assert asked == [0, 1, 1, 2, 2, 0, 2, 0]


def test_paths_have_the_fields_that_chapter_7_reads(small):
    paths.make(small)
    (row,), recorded = written("paths")["rows"], artifacts.recorded("paths")
    assert fields(row) == fields(recorded["rows"][0]) and row["blocks"] == list(BLOCKS)
    assert confidences([row]) == {run.together(len(row["lost"]) - 1)}
    lost = {name: arm["mean"] for name, arm in row["lost"].items()}
    for name, apart in row["path_minus"].items():
        assert apart["mean"] == pytest.approx(lost["path"] - lost[name], abs=1e-4)


def test_a_shortcut_is_taken_out_and_each_photograph_is_written_down(small, monkeypatch):
    for name, value in {"LEARNT": 8, "HELD_OUT": 6, "MISTAKES": 4, "GAP": 0.5}.items():
        monkeypatch.setattr(shortcut, name, value)
    shortcut.make(small)
    found, recorded = written("shortcut"), artifacts.recorded("shortcut")
    assert [row["block"] for row in found["rows"]] == [*BLOCKS]
    assert confidences(found["rows"]) == {run.together(len(BLOCKS))}
    assert not {*shortcut.parts(small)[0]} & {*shortcut.parts(small)[1]}
    for row in found["rows"]:
        assert fields(row) == fields(recorded["rows"][0])
        random_ones = [row["outcomes"][f"random {seed}, 3"]["right"]["mean"] for seed in range(3)]
        lead = row["outcomes"]["suspects, 3"]["right"]["mean"] - sum(random_ones) / 3
        assert row["minus"]["random"]["mean"] == pytest.approx(lead)
        for of in row["outcomes"].values():
            for part in of.values():
                each = [int(value) for value in part["each"]]
                assert len(each) == found["settings"]["evaluated"]
                assert sum(each) / len(each) == pytest.approx(part["mean"])
        three, nothing = (row["outcomes"][name] for name in ("suspects, 3", "nothing"))
        cost = three["clean"]["mean"] - nothing["clean"]["mean"]
        assert row["minus"]["clean, within the margin"]["mean"] == pytest.approx(cost + 0.03)
    wet = found["rows"][0]["outcomes"]["nothing"]
    assert wet == found["rows"][1]["outcomes"]["nothing"], "untouched, whatever the block"
    # By the network itself, of the photographs that no concept was made of.
    marked = small.pictures.changed(AddWatermark(224))
    labelled = [i for i, label in enumerate(small.pictures.labels) if label is not None]
    said = small.network.logits(marked[labelled]).argmax(1).tolist()
    right = sum(said[n] == small.pictures.labels[i] for n, i in enumerate(labelled))
    assert wet["right"]["each"].count("1") <= right


def test_what_is_learnt_of_one_watermark_meets_others_and_an_saes_units(small, monkeypatch):
    for name, value in {"LEARNT": 8, "HELD_OUT": 6, "MISTAKES": 2}.items():
        monkeypatch.setattr(shortcut, name, value)
    marks = {name: watermarks.MARKS[name] for name in ("the one learnt", "Latin letters")}
    for name, value in {"MARKS": marks, "SAES": (8,), "OUT": (1, 3), "GAP": 0.5}.items():
        monkeypatch.setattr(watermarks, name, value)
    watermarks.make(small)
    found = {name: written(name) for name in ("watermarks", "latents", "other_shortcut")}
    learnt, other = found["watermarks"]["rows"]
    assert confidences([learnt, other]) == {run.together(len(marks)), run.together(5)}
    for row in (learnt, other):
        right = {name: of["right"]["mean"] for name, of in row["outcomes"].items()}
        lead = right["suspects, 3"] - right["a direction from pairs"]
        assert row["minus"]["pairs"]["mean"] == pytest.approx(lead)
        for of in itertools.chain.from_iterable(part.values() for part in row["classes"].values()):
            less = of["before"]["mean"] - of["after"]["mean"]
            assert of["before_minus_after"]["mean"] == pytest.approx(less, abs=1e-5)
    assert fields(learnt) == fields(other) == fields(artifacts.recorded("watermarks")["rows"][0])
    # By the network itself: what is right, and what a watermark adds to a class.
    held = shortcut.parts(small)[1][:: watermarks.EVERY]
    labels = torch.tensor([small.pictures.labels[i] for i in held])
    dry = small.network.logits(small.pictures[held])
    carton = small.network.classes.index("carton")
    for row, options in ((learnt, {}), (other, {"text": "SHORTCUT"})):
        wet = small.network.logits(small.pictures.changed(AddWatermark(224, **options))[held])
        untouched = row["outcomes"]["nothing"]
        for what, right in {"right": wet, "clean": dry}.items():
            assert untouched[what]["mean"] == (right.argmax(1) == labels).double().mean()
        added = row["classes"]["carton"]["logit"]["before"]["each"]
        assert added == pytest.approx((wet - dry)[:, carton].tolist(), abs=1e-3)
    assert learnt["outcomes"]["suspects, 1"]["clean"] == other["outcomes"]["suspects, 1"]["clean"]
    families, sae = found["latents"]["rows"]
    assert families["ours_minus"]["suspects, 3"]["mean"] == 0 and sae["k"] == 8
    assert (
        families["outcomes"]["suspects, 3"]["right"] == learnt["outcomes"]["suspects, 3"]["right"]
    )
    recorded = artifacts.recorded("shortcut")["rows"][0]
    assert all(fields(row) == fields(recorded) for row in found["other_shortcut"]["rows"])


def test_a_planted_shortcut_and_a_twin_without_are_asked_alike(small, monkeypatch):
    sizes = {"TRAINED": 300, "LEARNT": 30, "HELD_OUT": 16, "LOCATED": 2, "SEEDS": 2, "GAP": 0.5}
    for name, value in (sizes | {"KINDS": {planted.convolutions: (8, 3e-3)}}).items():
        monkeypatch.setattr(planted, name, value)
    planted.make(small)
    found, recorded = written("planted")["rows"], artifacts.recorded("planted")
    assert [row["planted"] for row in found] == [True] * 3 + [False] * 3
    assert confidences(found) == {run.together(3)}
    for row in found:
        assert fields(row) == fields(recorded["rows"][0]) and len(row["suspects"]) == 2
        for of in row["outcomes"].values():
            assert [len(each) for each in of["right"]["each"]] == [16, 16]
            assert len(of["became"]["each"][0]) < 16, "digits of the class itself do not become it"
            for part in of.values():
                digits = "".join(part["each"])
                assert digits.count("1") / len(digits) == pytest.approx(part["mean"])
        assert all(0 <= value <= 1 for value in each_of(row["mass"]["each"]))
        by = {
            name: row["outcomes"][f"{name}, 3"]["right"]["mean"] for name in ("suspects", "random")
        }
        lead = by["suspects"] - by["random"]
        assert row["minus"]["random"]["mean"] == pytest.approx(lead)
    # One network: what it says untouched is alike, whichever block is asked about.
    assert len({str(row["outcomes"]["nothing"]) for row in found[:3]}) == 1
    became = {flag: [row["outcomes"]["nothing"]["became"]["mean"] for row in recorded["rows"]
                     if row["planted"] is flag] for flag in (True, False)}  # fmt: skip
    assert min(became[True]) > 5 * max(became[False]), "it was planted, and its twin has none"


def test_what_is_planted_is_judged_by_means_over_seeds_of_all_networks():
    names = ("nothing", "activation, 3", "random, 3", "suspects, 3")
    digits = torch.tensor([1.0, 1, 0, 0])
    seeds = [
        {
            "outcomes": {
                name: {"right": digits.roll(n * seed), "clean": torch.ones(4), "became": digits}
                for n, name in enumerate(names)
            },
            "suspect": {}, "mass": torch.tensor([0.0, 0.25, 0.5, 1.0]) * seed,
        }
        for seed in (0, 2)
    ]  # fmt: skip
    row = planted._summed(seeds)
    assert confidences(row) == {run.together(3 * len(planted.KINDS))}
    assert row["mass"]["mean"] == 0.4375
    area = (planted.SIDE / planted.WIDTH) ** 2
    assert row["mass_minus_area"]["mean"] == pytest.approx(0.4375 - area)
    assert row["outcomes"]["suspects, 3"]["right"]["each"] == ["1100", "0011"]
    assert row["minus"]["nine tenths of the clean"]["mean"] == pytest.approx(0.5 - 0.9)
    assert row["minus"]["nothing"]["mean"] == pytest.approx(0.5 - 0.5)


def test_a_planted_shortcut_is_judged_arm_by_arm():
    one = {
        "nothing": ("0000", "1110"), "activation, 3": ("1000", "0000"),
        "random, 3": ("1100", "0000"), "suspects, 3": ("1110", "1010"),
    }  # fmt: skip
    digits = {name: [each_of(text) for text in both] for name, both in one.items()}
    masses = torch.tensor([[0.0, 0.2, 0.4, 0.8], [0.2, 0.4, 0.8, 0.0]])
    seeds = [
        {
            "outcomes": {
                name: {"right": right, "clean": clean} for name, (right, clean) in digits.items()
            },
            "suspect": {}, "mass": mass,
        }
        for mass in masses
    ]  # fmt: skip
    row = planted._summed(seeds)
    found = {name: of["mean"] for name, of in row["minus"].items()}
    assert found == pytest.approx(
        {
            "nothing": 0.75, "activation": 0.5, "random": 0.25,
            "nine tenths of the clean": 0.75 - 0.9 * 0.75,
            "clean, within the margin": 0.5 - (0.75 - planted.MARGIN),
        }
    )  # fmt: skip
    assert row["mass"]["each"] == pytest.approx([0.1, 0.3, 0.6, 0.4])
    three = row["outcomes"]["suspects, 3"]["right"]
    wanted = interval(digits["suspects, 3"][0])
    assert (three["low"], three["high"]) == pytest.approx((wanted.low, wanted.high))


def test_uniform_draws_differ_from_those_by_contribution(small, monkeypatch):
    sampling.make(small)
    found = written("sampling")
    assert fields(found) == fields(artifacts.recorded("sampling"))
    assert [row["block"] for row in found["rows"]] == list(BLOCKS)
    assert confidences(found["rows"]) == {run.together(len(BLOCKS))}
    for row in found["rows"]:
        for of in (part for part in row.values() if isinstance(part, dict)):
            less = of["uniform"]["mean"] - of["ours"]["mean"]
            assert of["minus_ours"]["mean"] == pytest.approx(less, abs=1e-5)
    given = small.network, small.pictures, ["layer4.2"], 8, 2
    drawn, others = (sampling._uniform(*given, seed)["layer4.2"] for seed in (0, 1))
    assert not torch.equal(drawn, others)
    with torch.no_grad():
        x = small.network.preactivations(small.pictures[0][None], ["layer4.2"])["layer4.2"]
    # Eight different positions of the first picture's own map.
    distance = torch.cdist(drawn[0].double(), x[0].flatten(1).T.double())
    assert len({*distance.argmin(dim=1).tolist()}) == 8
    assert distance.amin(dim=1).max() < 1e-2 * drawn[0].norm(dim=1).min()
    # Equal concepts of either kind would serve a class alike; none is made of what is held out.
    made = 8 * (len(small.pictures) - len(small.left_out))

    def extract(x, beta, k, *_, block):
        assert len(x) == made
        return small.concepts(block)

    monkeypatch.setattr(sampling, "extract", extract)
    monkeypatch.setattr(sampling, "tune", lambda concepts, x, seed: concepts)
    row = sampling._row(small, "layer4.2", drawn)
    assert row["gain"]["minus_ours"]["mean"] == 0
    both = [curves_of(1, 0.01), curves_of(2, 0.1)]
    monkeypatch.setattr(sampling, "_curves", lambda run, concepts, orders: both[len(orders) > 1])
    beside = sampling._row(small, "layer4.2", drawn)["gain"]["minus_ours"]
    assert beside["bracket"] == pytest.approx(0.04 + 0.4)


def test_both_kinds_of_concepts_are_asked_about_what_made_neither(monkeypatch):
    """Eight pictures of two PFVs drawn uniformly, of which the first and the fifth are held out."""
    drawn = torch.arange(8.0)[:, None, None].expand(8, 2, 1)
    ours, theirs = (Concepts(torch.ones(k, 1), torch.zeros(1), torch.zeros(k)) for k in (3, 3))
    asked = []

    def missed(concepts, pfvs, nonzeros):
        asked.append(pfvs.flatten().tolist())
        return torch.arange(4.0) + 10 * (concepts is theirs), None

    stubs = {
        "extract": lambda x, beta, k, seed, block: (x.flatten().tolist(), k, seed),
        "tune": lambda made, x, seed: theirs if made == ([1, 1, 2, 2, 3, 3, 5, 5, 6, 6, 7, 7], 3, 9)
        and seed == 9 else None,
        "one_per_photograph": lambda run, block: (torch.tensor([[-1.0]]), torch.tensor([[-2.0]])),
        "wanted_nonzeros": lambda *_: 2, "missed": missed, "_curves": lambda *_: curves_of(1, 0.01),
    }  # fmt: skip
    for name, value in stubs.items():
        monkeypatch.setattr(sampling, name, value)
    row = sampling._row(
        SimpleNamespace(
            left_out=[0, 4], concepts=lambda block: ours, profile=Profile(seed=9), chain=[*"abc"]
        ), "b", drawn,
    )  # fmt: skip
    assert asked == [[-1.0]] * 2 + [[0.0, 4.0]] * 2
    for how in ("by contribution", "uniformly"):
        assert row[f"missed of PFVs drawn {how}"]["minus_ours"]["mean"] == 10
    assert confidences(row) == {run.together(3)}


def test_shuffling_permutes_one_part_alone(network):
    other = controls.shuffled(network, "layer4", seed=0)
    before, after = (dict(n.model.named_parameters()) for n in (network, other))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != name.startswith("layer4")
        assert torch.equal(tensor.flatten().sort().values, after[name].flatten().sort().values)


def test_every_seed_shuffles_its_own_way(monkeypatch):
    monkeypatch.setattr(controls, "Network", lambda model, *_, **__: model)
    given = SimpleNamespace(
        model=torch.nn.Sequential(torch.nn.Linear(4, 4)), name="", device="cpu", input_size=None
    )
    one, again, other = (controls.shuffled(given, "0", seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_scale_measures_every_stage_from_nothing(small, folder):
    before = sorted(folder.iterdir())
    # A tenth of so few pictures makes too few concepts for two.
    small = replace(small, profile=replace(small.profile, evaluation_targets=1))
    scale.make(small)
    found = written("scale")
    assert fields(found["rows"][:1]) == fields(artifacts.recorded("scale")["rows"][:1])
    stages = ["sampling", *["clustering", "penalty"] * 2, "class curves", "class curves"]
    stages += ["interlayer curves", "graph of a picture"]
    for count in {-(-len(small.pictures) // 10), len(small.pictures)}:
        rows = [row for row in found["rows"] if row["pictures"] == count]
        assert [row["stage"] for row in rows] == stages
        assert rows[0]["items"] == count
        assert [row["block"] for row in rows if row["stage"] == "class curves"] == list(BLOCKS)
        for row in rows:
            # What a picture's steps took is part of the stage.
            assert row["seconds"] >= sum(row.get("steps", {}).values())
            assert all(t > 0 for t in row.get("steps", {}).values())
    peaks = [row["peak_mb"] for row in found["rows"]]
    assert peaks == sorted(peaks) and peaks[0] > 100
    assert os.environ["GIG_ARTIFACTS"] == str(folder) and sorted(folder.iterdir()) == before


def test_growth_changes_one_thing_at_a_time(small, folder, monkeypatch):
    before = sorted(folder.iterdir())
    for name, sizes in {"PICTURES": (2, 8), "CONCEPTS": (4, 8), "BLOCKS": (1, 4)}.items():
        monkeypatch.setattr(growth, name, sizes)
    monkeypatch.setattr(growth, "NONZEROS", 2)
    growth.make(small)
    found = written("growth")
    assert fields(found) == fields(artifacts.recorded("growth"))
    rows = [(row["along"], row["count"], row["stage"]) for row in found["rows"]]
    expected = [("pictures", n, stage) for n in (2, 8) for stage in ("sampling", "clustering")]
    expected += [("concepts", k, s) for k in (4, 8) for s in ("clustering", "codes of a picture")]
    assert rows == [*expected, ("blocks", 1, "sampling"), ("blocks", 4, "sampling")]
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert sorted(folder.iterdir()) == before
    monkeypatch.setattr(growth, "PICTURES", (2, 1600))
    with pytest.raises(ValueError, match="growth takes 1600 pictures, but there are sample: "):
        growth.make(small)


def test_parts_by_name(monkeypatch):
    made = []
    monkeypatch.setattr(command, "start", lambda: "run")
    monkeypatch.setattr(
        command, "PARTS", {n: lambda r, n=n: made.append((n, r)) for n in command.PARTS}
    )
    monkeypatch.setattr("sys.argv", ["experiments"])
    command.main()
    assert made == [(n, "run") for n in command.PARTS if n not in {"growth", "scale"}]
    monkeypatch.setattr("sys.argv", ["experiments", "scale", "sclae"])
    with pytest.raises(SystemExit, match="no such part: sclae"):
        command.main()
