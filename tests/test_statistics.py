"""report/statistics.py: intervals and tests against the normal one and SciPy's."""

import math

import pytest
import torch
from scipy import stats

from gig_helpers.report.statistics import Comparison, Interval, compare, interval


def test_intervals_and_paired_comparison():
    generator = torch.Generator().manual_seed(0)
    hard = 10 * torch.randn(40, generator=generator)  # pictures differ more than methods do
    a, b = hard + 1 + 0.1 * torch.randn(40, generator=generator), hard
    apart = interval(a - b)
    assert apart.low < apart.mean < apart.high and apart.mean == pytest.approx(1, abs=0.1)
    standard = (a - b).std().item() / math.sqrt(40)
    # At 40 pictures it is close to the normal one.
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * standard, rel=0.15)
    paired = compare(a, b)
    assert paired.low > 0.9 and paired.mean == pytest.approx(apart.mean)
    assert paired.p_value == pytest.approx(stats.wilcoxon((a - b).double().numpy()).pvalue)
    unpaired = interval(a).high - interval(a).low
    assert unpaired > 10 * (paired.high - paired.low)
    assert compare(a, a) == compare(b, b) and compare(a, a).p_value == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.randn(12, generator=g),
        lambda g: -torch.rand(12, generator=g).log() - 1,
        lambda g: (torch.rand(12, generator=g) < 0.3).double() - 0.3,
        lambda g: (torch.rand(50, generator=g) < 0.1).double() - 0.1,
    ],
    ids=["normal", "exponential", "zeros and ones", "few ones"],
)
def test_intervals_keep_their_level_at_twelve_pictures(draw):
    """Of 400 samples with mean 0; a percentile bootstrap holds 0.88 to 0.90 of them."""
    generator = torch.Generator().manual_seed(0)
    held = [i.low <= 0 <= i.high for i in (interval(draw(generator)) for _ in range(400))]
    assert sum(held) / 400 > 0.925


def test_an_interval_of_nearly_equal_values_stays_among_them():
    """Most resamples have next to no spread: the bootstrap's ends lay a hundred times off."""
    values = torch.tensor([-0.026, 0.0005, *[0.0] * 10]).double()
    found = interval(values, 0.9917)
    student = stats.t.interval(0.9917, 11, loc=float(values.mean()), scale=stats.sem(values))
    assert found.low == pytest.approx(min(student[0], -0.026))
    assert found.high == pytest.approx(max(student[1], 0.0005))


def test_of_right_and_wrong_the_interval_is_the_binomial_one():
    """3 of 20, in whatever units; of fewer pictures two values may be any."""
    values = torch.zeros(20).index_fill(0, torch.arange(3), 1.0)
    exact = stats.binomtest(3, 20).proportion_ci(0.9, method="exact")
    for scaled in (values, 5 * values - 2):
        found, scale = interval(scaled, 0.9), float(scaled.max() - scaled.min())
        ends = [float(scaled.min()) + scale * end for end in (exact.low, exact.high)]
        assert [found.low, found.high] == pytest.approx(ends)
    assert interval(torch.tensor([0.0, 1.0])).low < -1
    ten = stats.binomtest(3, 10).proportion_ci(method="exact")
    assert (interval(values[:10]).low, interval(values[:10]).high) == pytest.approx([*ten])


def test_intervals_are_as_wide_as_the_confidence_asks():
    three = torch.tensor([1.0, 2.0, 3.0])
    for confidence in (0.5, 0.95, 0.995):
        ends = stats.t.interval(confidence, 2, loc=2, scale=stats.sem(three.numpy()))
        for found in (interval(three, confidence), compare(three, 0 * three, confidence)):
            assert (found.low, found.high) == pytest.approx(ends)
    many = torch.randn(40, generator=torch.Generator().manual_seed(0)).exp()
    widths = [(i := interval(many, c)).high - i.low for c in (0.5, 0.9, 0.99)]
    assert widths[0] < 0.6 * widths[1] < 0.6 * 0.8 * widths[2]


def test_the_seed_is_that_of_the_resamples():
    many = torch.randn(40, generator=torch.Generator().manual_seed(0)).exp()
    one, other = (compare(many, 0 * many, 0.9, seed) for seed in (0, 3))
    assert one.high == interval(many, 0.9).high != other.high == interval(many, 0.9, seed=3).high


def test_a_bracket_widens_both_ends_and_what_touches_nothing_is_open():
    record = {"mean": 0.5, "low": 0.1, "high": 0.9, "p_value": 0.01}
    for found in (Comparison(**record).widened(0.2), Comparison.of(record | {"bracket": 0.2})):
        assert (found.low, found.high) == pytest.approx((-0.1, 1.1)) and found.mean == 0.5
    assert Comparison.of(record | {"each": []}) == Comparison(**record)
    for low, high in ((0.0, 1.0), (-1.0, 0.0)):
        assert Comparison(0.5, low, high, 0.01).verdict == "undecided"


def test_equal_values_have_no_spread():
    assert interval(torch.full((5,), 0.25)) == Interval(0.25, 0.25, 0.25)


def test_verdicts_and_texts():
    for low, high, verdict in ((0.1, 0.2, "better"), (-1, -0.5, "worse"), (-0.1, 3, "undecided")):
        assert Comparison(0.5, low, high, 0.01).verdict == verdict
    assert str(Interval(0.1234, 0.1, 0.2)) == "0.123 [0.100, 0.200]"
    assert str(Comparison(0.1234, -0.1, 0.2, 0.5)) == "+0.123 [-0.100, +0.200]"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="two or more"):
        interval(torch.ones(1))
    with pytest.raises(ValueError, match="finite"):
        interval(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="not the same pictures"):
        compare(torch.ones(2), torch.ones(3))
