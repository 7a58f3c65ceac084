"""The paper's own numbers, from ``paper.json``: Tables 1 and 2, and the sizes of its run."""

import json
import re
from pathlib import Path
from typing import Any

PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text("utf-8"))
"""``table_1`` and ``table_2`` by block and extractor (``None`` where the paper has a blank)."""


def place(block: str) -> tuple[int, int]:
    """Stage and index of a ResNet's block, which order its names as numbers.

    Raises
    ------
    KeyError
        If the name is not that of a block of a ResNet-50's stages.

    Examples
    --------
    >>> place("layer3.10")
    (3, 10)
    """
    found = re.fullmatch(r"layer([1-4])\.(\d+)", block)
    if found is None:
        raise KeyError(f"the paper has no block {block!r}: its blocks are layer1.0 to layer4.2")
    return int(found[1]), int(found[2])


def nonzeros(block: str) -> int:
    """Non-zero codes per PFV in Table 1: (1 − l0 ratio of "Ours") · 8C.

    A block that the table leaves out gets the count of the block before it in the same stage, or,
    for a stage's first block, of the one after it.

    Raises
    ------
    KeyError
        If the block is of no stage that the table lists.

    Examples
    --------
    >>> nonzeros("layer4.2"), nonzeros("layer3.5"), nonzeros("layer1.0")
    (105, 31, 11)
    """
    stage, index = place(block)
    listed = sorted(name for name in PAPER["table_1"] if place(name)[0] == stage)
    before = [name for name in listed if place(name)[1] <= index]
    ratio = PAPER["table_1"][(before or listed[:1])[-1]]["bisecting"]["l0_ratio"]
    channels = 128 * 2**stage
    return round((1 - ratio) * PAPER["expansion"] * channels)
