"""data/paper.py: the paper's numbers, and what follows from them."""

import math

import pytest

from gig_helpers.data.paper import PAPER, nonzeros, place
from gig_helpers.data.profiles import ALL_BLOCKS

METHODS = {"bisecting", "SAE", "dictionary learning"}


def test_counts_follow_from_table_1():
    # (1 − l0 ratio) · 8C of the row "Ours", rounded.
    for block, ratio, channels in (
        ("layer1.1", 0.9947, 256),
        ("layer2.2", 0.9961, 512),
        ("layer3.4", 0.9962, 1024),
        ("layer4.2", 0.9936, 2048),
    ):
        assert nonzeros(block) == round((1 - ratio) * 8 * channels)
    counts = [nonzeros(block) for block in PAPER["table_1"]]
    assert counts == [11, 15, 16, 24, 27, 31, 52, 105]
    assert nonzeros("layer1.0") == nonzeros("layer1.2") == 11
    assert nonzeros("layer2.3") == 16 and nonzeros("layer3.5") == 31


def test_blocks_are_ordered_as_numbers_not_as_text():
    """ResNet-101's third stage has 23 blocks: 10 comes after 4, which is the last one listed."""
    assert nonzeros("layer3.10") == nonzeros("layer3.22") == 31
    assert nonzeros("layer3.4") == 31 != nonzeros("layer3.0")
    assert sorted(["layer3.10", "layer3.9", "layer2.11"], key=place) == [
        "layer2.11", "layer3.9", "layer3.10",
    ]  # fmt: skip


@pytest.mark.parametrize("block", ["layer7.0", "stem", "layer3", "layer3.x"])
def test_a_block_that_there_is_not(block):
    with pytest.raises(KeyError, match=f"no block '{block}'"):
        nonzeros(block)


def test_tables_are_whole():
    assert set(PAPER["table_2"]) == set(ALL_BLOCKS) and set(PAPER["table_1"]) < set(ALL_BLOCKS)
    for table, names in (
        ("table_1", {"rel_l2", "l0_ratio"}),
        ("table_2", {"deletion", "insertion"}),
    ):
        for row in PAPER[table].values():
            assert set(row) == METHODS
            for cell in row.values():
                assert set(cell) == names
                numbers = [value for value in cell.values() if value is not None]
                assert all(math.isfinite(value) and value >= 0 for value in numbers)
    assert PAPER["table_1"]["layer4.2"]["bisecting"] == {"rel_l2": 0.5095, "l0_ratio": 0.9936}
    assert PAPER["table_2"]["layer4.1"]["bisecting"] == {"deletion": 0.0029, "insertion": 0.9362}
