"""The larger runs: every part writes the fields that chapters read, in numbers that add up."""

import json
import os
from dataclasses import replace

import pytest

from experiments import __main__ as command
from experiments import classes, extractors, interlayer, run, scale
from gig_helpers.data import artifacts, profiles
from gig_helpers.importance import METHODS

BLOCKS = ("layer4.1", "layer4.2")


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
        evaluation_targets=1, bracket=0.5, per_image=8, pfvs_per_concept=10,
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
        key: fields(next(iter(value.values())) if key in by_name else value)
        for key, value in part.items()
    }


def but_for(part, names):
    """The same fields without some of them."""
    if not isinstance(part, dict):
        return part
    return {key: but_for(value, names) for key, value in part.items() if key not in names}


@pytest.mark.parametrize(("part", "name"), [(classes, "classes"), (interlayer, "interlayer")])
def test_curves_have_the_fields_that_chapters_read(small, part, name):
    part.make(small)
    found, recorded = written(name), artifacts.recorded(name)
    # The files at hand are of runs with a fixed number of points and steps.
    assert but_for(fields(found["rows"]), {"gap", "bracket"}) == fields(recorded["rows"])
    older = set(recorded["settings"]) - {"points", "steps"}
    assert set(found) == set(recorded) and set(found["settings"]) >= older | {"gap", "bracket"}
    assert all({"gap"} <= set(row) for row in found["rows"])
    affordable = {method for method, what in METHODS.items() if what.affordable}
    wanted = [affordable, set(METHODS)] if part is classes else [affordable | {"cosine"}]
    assert len(found["rows"]) == len(wanted)
    for row, methods in zip(found["rows"], wanted, strict=True):
        assert set((row["agreement"] if part is classes else row)["orders"]) == methods
        steps = row["seconds_per_picture"]
        others = {"codes"} if part is classes else {"codes", "targets"}
        assert set(steps) == others | methods | {f"curves of {method}" for method in methods}
        assert all(t > 0 for t in steps.values())


def test_extractors_are_compared_at_equal_non_zeros(small, monkeypatch):
    few = {n: extractors.EXTRACTORS[n] for n in ("bisecting", "random PFVs", "SAE, 5 epochs")}
    monkeypatch.setattr(extractors, "EXTRACTORS", few)
    extractors.make(small)
    found, recorded = written("concepts"), artifacts.recorded("concepts")
    assert found["settings"] == recorded["settings"]
    assert [row["block"] for row in found["rows"]] == list(BLOCKS)
    for row in found["rows"]:
        assert list(row["methods"]) == sorted(few)  # JSON's order
        for name, one in row["methods"].items():
            assert fields(one) == fields(recorded["rows"][0]["methods"][name])
            assert len(one["records"]) == extractors.SEEDS.get(name, 1)
            for record in one["records"]:
                for where in ("left_out", "seen"):
                    # 2 %, within which lambda_for stops, or one code of one PFV where they are few.
                    assert record[f"nonzeros_{where}"] == pytest.approx(row["nonzeros"], rel=0.05)
        ours = row["methods"]["bisecting"]["left_out"]
        assert ours["minus_ours"]["mean"] == 0 and 0 < ours["mean"] < 1


def test_scale_measures_every_stage_from_nothing(small, folder):
    before = sorted(folder.iterdir())
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


def test_parts_by_name(monkeypatch):
    made = []
    monkeypatch.setattr(command, "start", lambda: "run")
    monkeypatch.setattr(
        command, "PARTS", {n: lambda r, n=n: made.append((n, r)) for n in command.PARTS}
    )
    monkeypatch.setattr("sys.argv", ["experiments"])
    command.main()
    assert made == [(n, "run") for n in ("classes", "interlayer", "extractors")]
    monkeypatch.setattr("sys.argv", ["experiments", "scale", "sclae"])
    with pytest.raises(SystemExit, match="no such part: sclae"):
        command.main()
