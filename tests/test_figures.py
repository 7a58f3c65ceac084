"""report/figures.py: what is drawn is what was given."""

import pytest
import torch
from matplotlib import pyplot as plt

from gig_helpers.curves import Curve, Curves
from gig_helpers.report import figures
from gig_helpers.report.statistics import Interval


def test_a_label_has_one_colour_in_every_panel():
    line = torch.tensor([0.0, 0.5, 1.0])
    falls, rises = (Curve(*torch.stack([line, y]).expand(2, 2, 3).unbind(1), torch.zeros(2))
                    for y in (1 - line, line))  # fmt: skip
    both = Curves(falls, rises)
    figure = figures.curve_grid({"one": {"a": both}, "two": {"b": both, "a": both}}, "logit")
    top, bottom = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in top] == ["one", "two"]
    colours = [{drawn.get_label(): drawn.get_color() for drawn in axes.lines} for axes in top]
    assert colours[0]["a"] == colours[1]["a"] != colours[1]["b"]
    (above,), (below,) = (
        [drawn.get_ydata().tolist() for drawn in axes.lines if drawn.get_label() == "a"]
        for axes in (top[0], bottom[0])
    )
    assert above == [1, 0.5, 0] and below == [0, 0.5, 1]
    assert len(top[0].lines) == 2 + 1, "each picture, and their mean"
    plt.close(figure)


def test_intervals_reach_from_low_to_high():
    figure, axes = plt.subplots()
    groups = {"first": {"a": Interval(1.0, 0.5, 2.0)}, "second": {"a": Interval(3.0, 3.0, 3.0)}}
    figures.intervals(axes, groups, "gain", zero=True)
    (bars,) = axes.containers
    ends = [segment[:, 1].tolist() for segment in bars[2][0].get_segments()]
    assert ends == [[0.5, 2.0], [3.0, 3.0]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["first", "second"]
    plt.close(figure)


def test_a_flipbook_holds_every_figure_and_escapes_names():
    evil = '<img src=x onerror="alert(1)">'
    book = figures.flipbook({"first": plt.subplots()[0], evil: plt.subplots()[0]}, evil).data
    assert book.count("<img ") == 2 and evil not in book and 'max="1"' in book
    assert book.count("data:image/webp;base64,UklGR") == 2, "RIFF: pictures of their own"
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="a figure at least"):
        figures.flipbook({}, "nothing")
