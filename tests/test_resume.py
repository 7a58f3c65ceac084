"""The whole chain, killed in every stage, goes on and ends with the bytes of an undisturbed run."""

import os
import signal
from pathlib import Path

import torch
from conftest import processes, save_pictures, tiny_network

from gig_helpers import Profile, decompose, fit_concepts, load_pictures, sample
from gig_helpers.report.studies import study

PROFILE = Profile(
    blocks=("0", "3"),
    per_image=6,
    batch_size=2,
    pfvs_per_concept=4,
    gap=0.5,
    bracket=0.5,
    families=None,
)
STAGES = {"pfv", "concepts", "codes", "study"}


def _chain(folder: Path, photographs: Path, writes: int | None) -> None:
    """Sampling, clustering with λ, codes and a study; killed before write number ``writes``."""
    os.environ["GIG_ARTIFACTS"] = str(folder)
    torch.set_num_threads(1)
    rename, done = os.replace, []

    def replace_or_die(source, target):
        if len(done) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        rename(source, target)

    os.replace = replace_or_die
    network = tiny_network()
    pictures = load_pictures(str(photographs))
    pfvs = sample(network, pictures, PROFILE)
    d = decompose(
        network, torch.stack([pictures[i] for i in range(2)]), fit_concepts(pfvs, PROFILE)
    )
    for block in PROFILE.blocks:
        study(d, block, pfvs.predictions()[:2, None], ["gig"], PROFILE)


def _files(folder: Path) -> dict[str, bytes]:
    """Contents by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_killed_in_every_stage(tmp_path):
    photographs = save_pictures(tmp_path / "pictures", 12)

    def run(name: str, writes: int | None) -> int | None:
        arguments = (tmp_path / name, photographs, writes)
        child = processes().Process(target=_chain, args=arguments)
        child.start()
        child.join()
        return child.exitcode

    assert run("whole", None) == 0
    expected = _files(tmp_path / "whole")
    assert {name.partition("/")[0].rpartition("-")[0] for name in expected} == STAGES
    kills = 0
    # Every run adds one file and dies in the middle of the next.
    while run("killed", 1) == -signal.SIGKILL:
        kills += 1
        assert kills <= len(expected), "a run that was killed must go on where it was"
    assert kills >= len(expected) - 2
    assert _files(tmp_path / "killed") == expected
