"""report/provenance.py: the line that says what a chapter ran on."""

from importlib.metadata import version
from types import SimpleNamespace

import torch

from gig_helpers.data import profiles
from gig_helpers.report.provenance import provenance


def test_provenance_names_what_a_run_depends_on():
    network = SimpleNamespace(
        name="resnet50", weights="keras", version="v1", device=torch.device("cpu")
    )
    line = provenance(profiles.get("quick"), network, "sample: 26 photographs")
    for part in ("resnet50", "keras", "v1", "26 photographs", "quick", "seed 0", version("torch")):
        assert part in line
