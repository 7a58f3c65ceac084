"""report/figures.py: what is drawn is what was given."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from gig_helpers.curves import Curve, Curves
from gig_helpers.report import figures
from gig_helpers.report.examples import Example
from gig_helpers.report.statistics import Comparison, Interval


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


def test_a_mean_stands_in_its_groups_place_where_others_lack_it():
    figure, axes = plt.subplots()
    one, low, high = (Interval(mean, mean - 1, mean + 2) for mean in (1.0, 5.0, 7.0))
    figures.intervals(axes, {"x": {"a": one}, "y": {"a": low, "b": high}, "z": {"b": one}}, "gain")
    places = {bars.get_label(): bars[0].get_xdata() for bars in axes.containers}
    assert places["a"] == pytest.approx([0 - 0.175, 1 - 0.175])
    assert places["b"] == pytest.approx([1 + 0.175, 2 + 0.175])
    plt.close(figure)


def test_the_mean_curve_is_that_of_all_pictures():
    x = torch.tensor([0.0, 1.0]).expand(2, 2)
    both = (Curve(x, torch.tensor([[0.0, 2.0], [4.0, 8.0]]), torch.zeros(2)) for _ in range(2))
    figure = figures.curve_grid({"one": {"a": Curves(*both)}}, "logit")
    means = [line.get_ydata().tolist() for line in figure.axes[0].lines if line.get_label() == "a"]
    assert means == [[2.0, 5.0]]
    plt.close(figure)


def test_maps_are_scaled_by_their_largest_values_of_either_sign():
    figure, (left, right) = plt.subplots(1, 2)
    values = np.array([[-4.0, 2.0, 0.0]])
    drawn = figures.located(left, Image.new("RGB", (6, 2)), values, limit=4.0)
    np.testing.assert_allclose(drawn.get_alpha(), [[0.9, 0.45, 0.0]])
    assert drawn.get_clim() == (-4.0, 4.0)
    figures.heat(right, values, signed=True)
    limit = np.percentile([4.0, 2.0, 0.0], 99.5)
    assert right.images[0].get_clim() == pytest.approx((-limit, limit))
    plt.close(figure)


def test_a_portraits_square_is_its_examples():
    grey = np.full((40, 40, 3), 128, np.uint8)
    drawn = figures.portrait(Example(grey, np.ones((40, 40)), (2, 12, 20), "a.png", None), size=80)
    rows, columns = (np.asarray(drawn) == (255, 0, 0)).all(axis=2).nonzero()
    assert (columns.min(), columns.max()) == (4, 43) and (rows.min(), rows.max()) == (24, 63)


def test_what_is_not_decided_has_no_tint():
    bounds = {"better": (0.1, 0.9), "worse": (-0.9, -0.1), "open": (-0.1, 1.1)}
    rivals = {"SAE": {n: Comparison(0.5, *ends, p_value=0.5) for n, ends in bounds.items()}}
    page = figures.verdicts(rivals).to_html()
    tints = [colour in page for colour in ("#b7dcf0", "#f6c7a6")]
    assert tints == [True, True] and page.count("background-color") == 2
    assert figures.verdicts(rivals).data.loc["SAE"].tolist() == ["+0.500", "+0.500", "(+0.500)"]


def test_a_flipbook_holds_every_figure_and_escapes_names():
    evil = '<img src=x onerror="alert(1)">'
    book = figures.flipbook({"first": plt.subplots()[0], evil: plt.subplots()[0]}, evil).data
    assert book.count("<img ") == 2 and evil not in book and 'max="1"' in book
    assert book.count("data:image/webp;base64,UklGR") == 2, "RIFF: pictures of their own"
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="a figure at least"):
        figures.flipbook({}, "nothing")
