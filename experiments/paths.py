"""The strongest path to a class taken out of the network, at the paper's size (chapter 7)."""

from dataclasses import asdict

import torch

from gig_helpers.codes import load_codes
from gig_helpers.data.profiles import CHAIN
from gig_helpers.paths import control_path, logits_without, strongest_path
from gig_helpers.report.statistics import compare, interval

from .run import Run, together, write

DRAWS = 5
"""Control paths of a picture, whose mean counts."""


def make(run: Run) -> None:
    """Write ``paths.json``: the class's logit that each arm costs, over held-out photographs."""
    network, profile = run.network, run.profile
    concepts = {block: run.concepts(block) for block in CHAIN if block in profile.blocks}
    last = list(concepts)[-1]
    generator = torch.Generator().manual_seed(profile.seed)
    images, labels = run.evaluated()
    rows = []
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        codes = {b: load_codes(network, image[None], here) for b, here in concepts.items()}
        # The edges of another photograph's class, below the same last concept.
        wrong = next((c for c in labels[n:] + labels[:n] if c != label), label)
        path, other = (
            strongest_path(network, codes, concepts, c, tolerance=profile.gap)
            for c in (label, wrong)
        )
        drawn = [control_path(codes, concepts, path, generator) for _ in range(DRAWS)]
        end = {last: path[last]}
        paths = [{}, path, end, other | end, *drawn]
        logits = logits_without(network, image[None], codes, concepts, paths)[:, label]
        lost = logits[0] - logits[1:]
        rows.append(torch.stack([*lost[:3], lost[3:].mean()]).cpu())
    names = "path", "last concept alone", "another class's path", "control path"
    arms = dict(zip(names, torch.stack(rows).T, strict=True))
    row = {
        "blocks": list(concepts),
        "lost": {name: asdict(interval(values)) for name, values in arms.items()},
        "path_minus": {
            name: asdict(compare(arms["path"], values, together(len(arms) - 1)))
            for name, values in arms.items()
            if name != "path"
        },
    }
    write(
        run, "paths", [row], evaluated=len(labels), held_out=True, gap=profile.gap, draws=DRAWS,
        seed=profile.seed,
    )  # fmt: skip
