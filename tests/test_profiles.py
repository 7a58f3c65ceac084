"""data/profiles.py: sizes by name, and what the environment changes."""

import pytest

from gig_helpers.data import profiles


def test_profiles_are_named_and_overridden(monkeypatch):
    monkeypatch.delenv("GIG_PROFILE", raising=False)
    monkeypatch.delenv("GIG_IMAGES", raising=False)
    assert profiles.get() == profiles.get("quick")
    monkeypatch.setenv("GIG_PROFILE", "paper")
    assert len(profiles.get().blocks) == 16
    monkeypatch.setenv("GIG_IMAGES", "mine")
    assert profiles.get("quick").pictures == "mine"
    with pytest.raises(ValueError, match="quick, workstation, colab, paper"):
        profiles.get("big")
    paper = profiles.get("paper")
    assert paper.n_concepts(256, 50_000) == 2048
    assert paper.n_concepts(2048, 50_000) == 16384
    assert profiles.get("quick").n_concepts(2048, 1000) == 200
