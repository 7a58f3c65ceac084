"""data/profiles.py: sizes by name, and what the environment changes."""

from dataclasses import replace

import pytest
from conftest import random_network

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
    assert [profiles.get("quick").n_concepts(2048, n) for n in (1000, 1004, 9)] == [200, 200, 2]


def test_a_profile_of_ones_own_names_what_differs():
    mine, quick = profiles.Profile(per_image=8), profiles.get("quick")
    assert mine.name == "own" and mine.pictures == "sample" and mine.blocks == ()
    own = {"name": "own", "per_image": 8, "blocks": ()}
    assert mine == replace(quick, pictures="sample", **own)
    with pytest.raises(TypeError):
        profiles.Profile("mine", 8)


def test_no_blocks_are_all_of_the_networks():
    network = random_network()
    assert profiles.Profile().blocks_of(network) == network.blocks
    assert profiles.get("quick").blocks_of(network) == profiles.CHAIN
