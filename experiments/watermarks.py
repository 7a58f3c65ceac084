"""How far the cure of a shortcut carries: to other marks, classes and networks; and an SAE's units.

What is learnt from chapter 10's watermark, as in ``shortcut``, meets what it was not learnt from.
"""

from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts, PFVDataset, load_network, load_pictures, suspects
from gig_helpers.data.pictures import Pictures

from .run import Run, mean, means, minus, write
from .shortcut import GAP, STEPS, concepts_of, mistakes_of, parts, seen, taken_out, watermarked

MARKS: dict[str, dict[str, Any]] = {
    "the one learnt": {}, "another text": {"text": "版权所有翻印"},
    "another place": {"y_pos": 0.75}, "half as opaque": {"opacity": 0.25},
    "Latin letters": {"text": "SHORTCUT"},
}  # fmt: skip
"""Watermarks by what differs from the one that concepts are learnt from."""

PULLED = "carton", "monitor", "safe", "broom", "apron"
"""Classes that the watermark is known to pull to (Bykov et al., Mark My Words, 2023)."""

SAES, OUT = (8, 64), (1, 2, 3, 8)
"""Latents of an SAE, as many as families and more; how many are taken out."""

EVERY, OTHER = 2, "efficientnet_lite0"
"""Of the photographs held out, which are evaluated; the other network."""


def make(run: Run) -> None:
    """Write ``watermarks.json``, ``latents.json`` and ``other_shortcut.json``."""
    learnt, held = parts(run)
    held, block = held[::EVERY], run.chain[-2]
    true = torch.tensor([run.pictures.labels[i] for i in held])
    settings = {"learnt": len(learnt), "evaluated": len(held), "block": block}
    write(run, "watermarks", _marks(run, learnt, held, block, true), **settings)
    write(run, "latents", _latents(run, learnt, held, block, true), **settings)
    network = load_network(OTHER)
    other = Run(run.profile, network, load_pictures(run.profile.pictures, network))
    learnt, held = parts(other)
    rows = taken_out(other, learnt, held[::EVERY], network.blocks[-3:])
    settings = {"learnt": len(learnt), "evaluated": len(held[::EVERY]), "network": OTHER}
    write(other, "other_shortcut", rows, **settings)


def _marks(
    run: Run, learnt: list[int], held: list[int], block: str, true: Tensor
) -> list[dict[str, Any]]:  # fmt: skip
    pfvs, concepts = concepts_of(run, learnt, [block])
    here, above, names = concepts[block], run.network.segment(block), run.network.classes
    order = _order(pfvs, here)
    sides = watermarked(run)[learnt], run.pictures[learnt]
    apart = [seen(run, images, block).mean(dim=(0, 1)) for images in sides]
    directions = {f"projection, {n}": here.directions[order[:n]] for n in STEPS}
    directions["a direction from pairs"] = (apart[0] - apart[1])[None]
    layers = {n: run.network.without(block, v, here.beta)[1] for n, v in directions.items()}

    def logits(pictures: Pictures) -> dict[str, Tensor]:
        x = seen(run, pictures[held], block)
        codes = _codes(here, x)
        cuts = {"nothing": x} | {f"suspects, {n}": x - _part(here, codes, order[:n]) for n in STEPS}
        for name, layer in layers.items():
            cuts[name] = run.network.positions(layer(run.network.arranged(x, block)), block)
        return {name: above(y).double().cpu() for name, y in cuts.items()}

    clean, pulled = logits(run.pictures), [names.index(name) for name in PULLED]
    right, rows = {name: _right(of, true) for name, of in clean.items()}, list[dict[str, Any]]()
    for mark, options in MARKS.items():
        marked = logits(watermarked(run, **options))
        outcomes = {
            name: {
                "right": mean(_right(of, true)),
                "carton": mean(_right(of, torch.full_like(true, pulled[0]))),
                "clean": mean(right[name]),
            }
            for name, of in marked.items()
        }
        back = {name: _right(of, true) for name, of in marked.items()}
        three, whole = back["suspects, 3"], right["nothing"]
        rivals = {
            "suspects, 3": (three, back["nothing"]),
            "projection, 1": (back["projection, 1"], back["nothing"]),
            "nine tenths of the clean": (three, 0.9 * whole),
            "pairs": (three, back["a direction from pairs"]),
        }
        tests = {name: minus(*pair, len(MARKS)) for name, pair in rivals.items()}
        moved = {
            unit: {
                n: (how(marked[n]) - how(clean[n]))[:, pulled] for n in ("nothing", "suspects, 3")
            }
            for unit, how in {"logit": Tensor.double, "probability": _probability}.items()
        }
        rows.append(
            {
                "mark": mark, "outcomes": outcomes, "minus": tests,
                "classes": {
                    name: {unit: _moved(of, n) for unit, of in moved.items()}
                    for n, name in enumerate(PULLED)
                },
            }
        )  # fmt: skip
    return rows


def _latents(
    run: Run, learnt: list[int], held: list[int], block: str, true: Tensor
) -> list[dict[str, Any]]:  # fmt: skip
    """What as many units of an SAE undo as families do, and what they cost."""
    sides = [seen(run, of[held], block) for of in (watermarked(run), run.pictures)]
    kinds: list[dict[str, Any]] = [{"extractor": "bisecting"}]
    kinds += [{"extractor": "sae", "k": k} for k in SAES]
    ours, rows = torch.empty(0), list[dict[str, Any]]()
    for kind in kinds:
        pfvs, concepts = concepts_of(run, learnt, [block], **kind)
        here, found = concepts[block], dict[str, dict[str, Tensor]]()
        written = [(x, _codes(here, x)) for x in sides]
        order = _order(pfvs, here)
        for n in OUT:
            cuts = (x - _part(here, codes, order[:n]) for x, codes in written)
            wet, dry = (_right(run.network.segment(block)(y).cpu(), true) for y in cuts)
            found[f"suspects, {n}"] = {"right": wet, "clean": dry}
        if not len(ours):
            ours = found["suspects, 3"]["right"]
        tests = {n: minus(ours, of["right"], len(kinds) - 1) for n, of in found.items()}
        each = {n: {what: mean(v) for what, v in of.items()} for n, of in found.items()}
        rows.append(kind | {"outcomes": each, "ours_minus": tests})
    return rows


def _order(pfvs: PFVDataset, here: Concepts) -> list[int]:
    """Concepts, those first that mislead most."""
    mistakes, true = mistakes_of(pfvs, here)
    return suspects(mistakes, here.block, true, tolerance=GAP).index.tolist()


def _codes(here: Concepts, x: Tensor) -> Tensor:
    return torch.stack([here.encode(one) for one in x])


def _part(here: Concepts, codes: Tensor, concepts: list[int]) -> Tensor:
    atoms = here.atoms(concepts)
    return codes[:, :, atoms] @ here.vectors[atoms]


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).double()


def _probability(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _moved(by_cut: dict[str, Tensor], n: int) -> dict[str, Any]:
    """What the watermark adds for one class, before the cut and after, and what the cut takes."""
    before, after = (values[:, n] for values in by_cut.values())
    arms = {"before": before, "after": after}
    return means(arms) | {"before_minus_after": minus(before, after, len(PULLED))}
