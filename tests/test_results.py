"""The larger runs of book/results: every stage measured, from nothing, in numbers that add up."""

import json
import os
from dataclasses import replace

from bookbuild import results
from gig_helpers import profiles


def test_scale_measures_every_stage_from_nothing(network, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "artifacts"))
    blocks = ("layer4.1", "layer4.2")
    profile = replace(
        profiles.get("quick"), blocks=blocks, evaluation_steps=2, points=2, evaluation_targets=1
    )
    few = pictures.subset(range(0, len(pictures), 3))
    results.scale(results.Run(profile, network, few))
    found = json.loads((tmp_path / "results" / "scale.json").read_text(encoding="utf-8"))
    stages = ["sampling", *["clustering", "penalty"] * 2, "class curves", "class curves"]
    stages += ["interlayer curves", "graph of a picture"]
    for count in {-(-len(few) // 10), len(few)}:
        rows = [row for row in found["rows"] if row["pictures"] == count]
        assert [row["stage"] for row in rows] == stages
        assert rows[0]["items"] == count
        assert [row["block"] for row in rows if row["stage"] == "class curves"] == list(blocks)
        for row in rows:
            # What a picture's steps took is part of the stage; the rest is reading and writing.
            assert row["seconds"] >= sum(row.get("steps", {}).values())
            assert all(t > 0 for t in row.get("steps", {}).values())
    peaks = [row["peak_mb"] for row in found["rows"]]
    assert peaks == sorted(peaks) and peaks[0] > 100
    assert os.environ["GIG_ARTIFACTS"] == str(tmp_path / "artifacts")
    assert not list((tmp_path / "artifacts").iterdir())
