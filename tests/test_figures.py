"""report/figures.py: what is drawn is what was given."""

import math

import pytest
import torch
from matplotlib import pyplot as plt

from gig_helpers.curves import Curves
from gig_helpers.report import figures
from gig_helpers.report.statistics import Interval


def test_curves_show_mean_and_standard_error():
    values = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    figure, axes = plt.subplots()
    figures.curves(axes, torch.tensor([0.0, 1.0]), values, "label", figures.COLOURS[0])
    assert axes.lines[0].get_ydata().tolist() == [2.0, 0.0]
    band = axes.collections[0].get_paths()[0].vertices
    # Standard deviation √2 of two values: standard error 1.
    assert band[:, 1].max() == pytest.approx(2 + 1.96)
    assert math.isclose(band[:, 1].min(), 0.0, abs_tol=1e-9)
    plt.close(figure)


def test_a_label_has_one_colour_in_every_panel():
    line = torch.tensor([0.0, 0.5, 1.0])
    both = Curves(line, torch.stack([1 - line, 1 - line]), torch.stack([line, line]))
    figure = figures.curve_grid({"one": {"a": both}, "two": {"b": both, "a": both}}, "logit")
    top, bottom = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in top] == ["one", "two"]
    colours = [{drawn.get_label(): drawn.get_color() for drawn in axes.lines} for axes in top]
    assert colours[0]["a"] == colours[1]["a"] != colours[1]["b"]
    assert top[0].lines[0].get_ydata().tolist() == [1, 0.5, 0]
    assert bottom[0].lines[0].get_ydata().tolist() == [0, 0.5, 1]
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
