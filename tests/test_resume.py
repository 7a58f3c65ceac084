"""The whole chain, killed in every stage, goes on and ends with the bytes of an undisturbed run."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from gig_helpers import assets, clustering, decomposition, evaluation, pfv, profiles
from gig_helpers.network import Network

BLOCKS = ("layer2.1", "layer4.0")
PROFILE = replace(
    profiles.get("quick"), blocks=BLOCKS, per_image=6, batch_size=2, pfvs_per_concept=4
)
STAGES = {"pfv", "concepts", "penalty", "codes", "class-study"}


def _chain(folder: Path, photographs: Path, writes: int | None) -> None:
    """Sampling, clustering, λ, codes and both studies; killed before write number ``writes``."""
    os.environ["GIG_ARTIFACTS"] = str(folder)
    torch.set_num_threads(1)
    rename, done = os.replace, []

    def replace_or_die(source, target):
        if len(done) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        rename(source, target)

    os.replace = replace_or_die
    torch.manual_seed(0)
    network = Network(torchvision.models.resnet18(weights=None), "resnet18", device="cpu")
    pictures = assets.pictures(str(photographs))
    dataset = pfv.sample(network, pictures, PROFILE)
    found = [clustering.load_concepts(network, dataset, PROFILE, block) for block in BLOCKS]
    penalties = [decomposition.load_penalty(dataset, PROFILE, concepts) for concepts in found]
    images = torch.stack([pictures[i] for i in range(2)])
    classes = dataset.predictions()[:2]
    for concepts, penalty in zip(found, penalties, strict=True):
        evaluation.class_study(
            network, images, classes, concepts, penalty, ["gig"], points=2, steps=2
        )


def _files(folder: Path) -> dict[str, bytes | None]:
    """Contents by name. A study's record holds seconds, which no two runs have in common."""
    return {
        str(path.relative_to(folder)): None
        if path.suffix == ".json" and "-study-" in path.name
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_killed_in_every_stage(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "pictures" / "junco" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gig_helpers.evaluation", "torchvision"])

    def run(name: str, writes: int | None) -> int | None:
        arguments = (tmp_path / name, tmp_path / "pictures", writes)
        child = context.Process(target=_chain, args=arguments)
        child.start()
        child.join()
        return child.exitcode

    assert run("whole", None) == 0
    expected = _files(tmp_path / "whole")
    assert {name.partition("/")[0].rpartition("-")[0] for name in expected} == STAGES
    artifacts, kills = sum(name.endswith(".safetensors") for name in expected), 0
    # Four files are the manifest, the two of one artifact and the first of the next: every run adds
    # one artifact and dies in the middle of another.
    while run("killed", 4) == -signal.SIGKILL:
        kills += 1
        assert kills <= artifacts, "a run that was killed must go on where it was"
    assert kills >= artifacts - 4
    assert _files(tmp_path / "killed") == expected
