"""The strongest path to a class taken out of the network, at the paper's size (chapter 7)."""

import torch

from gig_helpers import attribute, decompose
from gig_helpers.paths import control_path, strongest_path

from .run import Run, means, minus_others, write

PHOTOGRAPHS, DRAWS = 10, 3
"""Left out; and control paths of each, whose mean counts."""


def make(run: Run) -> None:
    """Write ``paths.json``: the class's logit that each arm costs, over held-out photographs.

    One arm knows no edge: the concept of the largest relevance for the class in each block.
    """
    profile, last = run.profile, run.chain[-1]
    concepts = {block: run.concepts(block) for block in run.chain}
    generator = torch.Generator().manual_seed(profile.seed)
    images, labels = run.evaluated(PHOTOGRAPHS)
    rows = []
    for n, (image, label) in enumerate(zip(images.split(1), labels, strict=True)):
        d = decompose(run.network, image, concepts)
        # The edges of another photograph's class, below the same last concept.
        wrong = next((c for c in labels[n:] + labels[:n] if c != label), label)
        path, other = (strongest_path(d, c, tolerance=profile.gap) for c in (label, wrong))
        drawn = [control_path(d, path, generator) for _ in range(DRAWS)]
        end = {last: path[last]}
        relevance = {b: attribute(d, b, label, tolerance=profile.gap)[0, 0] for b in run.chain}
        blind = {b: int(of_block.argmax()) for b, of_block in relevance.items()}
        taken_out = [path, end, other | end, blind | end, *drawn]
        logits = torch.cat([d.logits(removed) for removed in ({}, *taken_out)])[:, label]
        lost = logits[0] - logits[1:]
        rows.append(torch.stack([*lost[:4], lost[4:].mean()]).cpu())
    names = "path", "last concept alone", "another class's path", "no edges", "control path"
    arms = dict(zip(names, torch.stack(rows).T, strict=True))
    minus = minus_others(arms, "path", len(arms) - 1)
    row = {"blocks": run.chain, "lost": means(arms), "path_minus": minus}
    write(
        run, "paths", [row], evaluated=len(labels), held_out=True, gap=profile.gap, draws=DRAWS,
        seed=profile.seed,
    )  # fmt: skip
