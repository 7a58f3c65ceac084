"""curves.py on a linear network, where every curve can be worked out by hand."""

import math

import pytest
import torch
from linear import GAMMA, Linear, U, V, concepts_of

from gig_helpers.codes import reconstruct
from gig_helpers.curves import (
    Curve,
    Curves,
    always_on,
    class_curves,
    interlayer_curves,
    largest,
    per_class,
)


@pytest.fixture
def net():
    return Linear()


def logits(*arguments, tolerance=0, **options) -> Curves:
    return class_curves(*arguments, tolerance=tolerance, **options)["logit"]


def rows(curve: Curve) -> list:
    return curve.y.tolist()


def test_logit_curves_and_areas_by_hand(net):
    curves = logits(net, U, V, GAMMA, [0])
    # Order 0, 1, 3 (no coefficient), 2; the reconstruction has 3 + 2 − 4 − 1 = 0, β alone −1.
    assert curves.deletion.x.tolist() == curves.insertion.x.tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    torch.testing.assert_close(curves.deletion.y, torch.tensor([[0, -3, -5, -5, -1]]).double())
    torch.testing.assert_close(curves.insertion.y, torch.tensor([[-1, 2, 4, 4, 0]]).double())
    deletion, insertion = curves.auc()
    assert deletion.item() == pytest.approx((0 / 2 - 3 - 5 - 5 - 1 / 2) / 4)
    assert insertion.item() == pytest.approx((-1 / 2 + 2 + 4 + 4 + 0 / 2) / 4)
    assert curves.gain().item() == pytest.approx((9.5 + 13.5) / 4)
    assert not curves.deletion.bracket.any() and not curves.insertion.bracket.any()


def test_the_mean_of_curves_that_were_run_at_other_places():
    x, y = torch.tensor([[0, 0.5, 1], [0, 0.25, 1]]), torch.tensor([[1.0, 0, 0], [1.0, 1, 0]])
    mean = Curve(x, y, torch.tensor([0.1, 0.3])).mean(0)
    assert mean.x.tolist() == [0, 0.25, 0.5, 1]
    # At 0.25 the first has 1/2 on its way down, at 0.5 the second 2/3.
    torch.testing.assert_close(mean.y, torch.tensor([1, 0.75, 1 / 3, 0]))
    assert mean.bracket.item() == pytest.approx(0.2)
    assert mean.area().item() == pytest.approx(Curve(x, y, mean.bracket).area().mean().item())


def test_agreement_and_probability(net):
    found = class_curves(net, U, V, GAMMA, [0], tolerance=0)
    assert list(found) == ["agreement", "probability", "logit"]
    # argmax is 0 where the logit is ≥ 0, the first of equals.
    assert rows(found["agreement"].deletion) == [[1, 0, 0, 0, 0]]
    assert rows(found["agreement"].insertion) == [[0, 1, 1, 1, 1]]
    probability, logit = found["probability"].insertion.y, found["logit"].insertion.y
    torch.testing.assert_close(probability, logit.sigmoid())
    assert net.seen == 2 * 4 - 2, "none, one, two, three concepts, both ways; both ends are shared"


def test_absolute_active_and_held(net):
    absolute = logits(net, U, V, GAMMA.abs(), [0])
    assert rows(absolute.insertion) == [[-1, -5, -2, 0, 0]]  # order 2, 0, 1, 3
    active = logits(net, U, V, GAMMA, [0], axis="active")
    assert rows(active.insertion) == [[-1, 2, 4, 0]]
    torch.testing.assert_close(active.insertion.x, torch.tensor([[0, 1 / 3, 2 / 3, 1]]).double())
    held = torch.tensor([True, False, False, False])
    kept = logits(net, U, V, GAMMA, [0], held=held)
    assert rows(kept.insertion) == [[2, 4, 4, 0]]
    assert rows(kept.deletion) == [[0, -2, -2, 2]]


def test_ranking_per_class(net):
    scores = torch.tensor([[1.0, 3], [3, 1], [0, 5]])
    expected = torch.tensor([[2.0, 2], [2, 2], [0, 5]])
    assert torch.equal(per_class(scores, [4, 4, 9]), expected)
    # The second picture's scores turn the order of the class round: 2 comes first.
    scores = torch.cat([GAMMA, torch.tensor([[0.0, 0, 99, 0]]).double()])
    curves = logits(net, U.repeat(2, 1, 1), V, per_class(scores, [0, 0]), [0, 0])
    assert rows(curves.insertion) == [[-1, -5, -2, 0, 0]] * 2


def test_the_concepts_own_beta_is_the_ground(net):
    own = concepts_of(V.vectors, torch.tensor([0.0, 0.5, 0]).double())  # 2 · 0.5 · 4 for logit 0
    curves = logits(net, U, own, GAMMA, [0])
    torch.testing.assert_close(curves.insertion.y, torch.tensor([[4, 7, 9, 9, 5]]).double())
    torch.testing.assert_close(curves.deletion.y, torch.tensor([[5, 2, 0, 0, 4]]).double())


def test_steps_that_change_nothing_are_not_run(net):
    codes = torch.zeros(1, 4, 500, dtype=torch.float64)
    codes[0, 0, [3, 77, 400]] = 1
    concepts = concepts_of(torch.ones(500, 3).double())
    importance = torch.zeros(1, 500)
    importance[0, [77, 3]] = torch.tensor([2.0, 1.0])  # 400 comes after all the others before it
    curves = logits(net, codes, concepts, importance, [0])
    assert net.seen == 2 * 4 - 2  # none, one, two, three concepts; both ways
    # A state is a plateau for as long as nothing changes: 77 and 3 go first, 400 in its turn.
    assert (curves.deletion.x * 500).round().tolist() == [[0, 1, 2, 400, 401, 500]]


def crowd(count: int = 400, seed: int = 0):
    """One picture with many concepts, of which few matter, and an order that knows them."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.rand(count, 3, generator=generator, dtype=torch.float64) ** 8
    concepts = concepts_of(vectors * torch.tensor([1.0, 1, 0]))
    codes = torch.ones(1, 1, count, dtype=torch.float64) * 0.2
    return codes, concepts, (vectors[:, 0] + 2 * vectors[:, 1])[None]


@pytest.mark.parametrize("seed", range(4))
def test_halving_finds_the_area_of_one_step_a_concept(net, seed):
    """Within the bracket that it states, with a tenth of the states; a random order too."""
    codes, concepts, good = crowd(seed=seed)
    for importance in (good, torch.rand(good.shape, generator=torch.Generator().manual_seed(seed))):
        net.seen = 0
        exact = class_curves(net, codes, concepts, importance, [0], tolerance=0)
        every, net.seen = net.seen, 0
        found = class_curves(net, codes, concepts, importance, [0], tolerance=0.02)
        assert net.seen <= every / 10
        for score in ("agreement", "probability"):
            for way in ("deletion", "insertion"):
                one, all_ = getattr(found[score], way), getattr(exact[score], way)
                assert (all_.y.diff() >= 0).all() or (all_.y.diff() <= 0).all(), "monotone"
                assert (one.bracket <= 0.02).all() and not all_.bracket.any()
                # Rounding of sums: a millionth of what the bracket allows.
                assert ((one.area() - all_.area()).abs() <= one.bracket + 1e-8).all()


def test_a_finer_tolerance_runs_more(net):
    codes, concepts, importance = crowd()
    seen = []
    for tolerance in (0.1, 0.01, 0.001):
        net.seen = 0
        class_curves(net, codes, concepts, importance, [0], tolerance=tolerance)
        seen.append(net.seen)
    assert seen[0] < seen[1] < seen[2]


def test_orders_that_agree_are_run_once(net):
    codes, concepts, importance = crowd()
    alone = logits(net, codes, concepts, importance, [0], tolerance=0.01)
    once, net.seen = net.seen, 0
    both = torch.stack([importance, 3 * importance, -importance], dim=1)
    found = logits(net, codes, concepts, both, [0], tolerance=0.01)
    for m in (0, 1):
        assert torch.equal(found[:, m].deletion.at(alone.deletion.x[0]), alone.deletion.y)
    # Deleting in one order leaves what inserting in the opposite one has put in.
    assert net.seen < 2 * once
    swapped = found[0, 2].insertion.at(1 - alone.deletion.x[0])
    torch.testing.assert_close(swapped, alone.deletion.y[0], rtol=0, atol=0.05)


VECTOR = torch.tensor([[5.0, 0.0]])


def between(*arguments, **options) -> Curves:
    """The curves (N, S) of one target, one step per concept."""
    return interlayer_curves(*arguments, tolerance=0, **options)[:, 0]


def test_interlayer_curves_by_hand(net):
    scores = torch.tensor([[[3.0, 0, 2, 0]]])
    arguments = (net, U, V, "b", VECTOR, scores)
    # ⟨w_i, (1, 0)⟩ = x_0 + 2 x_2 with x_0 = u_0 − 0.25: 0.75 and 3.75, and −0.25 without codes.
    # Order 0, 2, 1, 3.
    curves = between(*arguments)
    expected = torch.tensor([[-0.25, 1.75, 3.75, 3.75]]).double() / 3.75
    torch.testing.assert_close(curves.insertion.y[:, :4], expected)
    expected = torch.tensor([[3.75, 1.75, -0.25, -0.25]]).double() / 3.75
    torch.testing.assert_close(curves.deletion.y[:, :4], expected)
    shift = net.bn_shift("b")  # (1, 0)
    centred = between(*arguments, project=lambda w, unit: largest(w - shift, unit))
    expected = torch.tensor([[-1.25, 0.75, 2.75, 2.75]]).double() / 2.75
    torch.testing.assert_close(centred.insertion.y[:, :4], expected)


def test_targets_and_methods_of_a_picture_share_their_states(net):
    codes = U.repeat(2, 1, 1)
    orders = torch.tensor([[3.0, 0, 2, 0], [0, 2, 3, 1]])
    vectors = torch.tensor([[[5.0, 0], [0, 2]], [[1.0, 1], [2, 0]]])
    importance = orders[:, None].expand(2, 2, 2, 4)  # two methods, of which each has one order
    many = interlayer_curves(net, codes, V, "b", vectors, importance, tolerance=0)
    assert many.deletion.bracket.shape == (2, 2, 2)
    seen, net.seen = net.seen, 0
    for n, m, t in ((n, m, t) for n in (0, 1) for m in (0, 1) for t in (0, 1)):
        one = between(net, U, V, "b", vectors[n, t][None], orders[m][None, None])
        for way in ("deletion", "insertion"):
            torch.testing.assert_close(getattr(many, way).y[n, m, t], getattr(one, way).y[0])
    assert seen < net.seen / 2
    assert not torch.allclose(many.insertion.y[0, 0, 0], many.insertion.y[0, 0, 1])


def test_the_maximum_may_be_fixed(net):
    # Without concept 0 at all, the second position still has the most through concept 2, but
    # with concept 2 gone first and 0 kept both are compared anew.
    codes = torch.zeros(1, 4, 4).double()
    codes[0, :2] = torch.tensor([[4.0, 0, 0, 0], [1, 0, 2, 0]])  # projections 3.75 and 4.75
    scores = torch.tensor([[[0.0, 0, 1, -1]]])
    arguments = (net, codes, V, "b", VECTOR, scores)
    each = between(*arguments).deletion.y[0, 1]
    fixed = between(*arguments, project=lambda w, unit: w[:, 1] @ unit).deletion.y[0, 1]
    assert each == pytest.approx(3.75 / 4.75) and fixed == pytest.approx(0.75 / 4.75)


def test_residual_and_reference(net):
    scores = torch.tensor([[[3.0, 0, 2, 0]]])
    arguments = (net, U, V, "b", VECTOR, scores)
    error = torch.zeros(1, 4, 3).double()
    error[0, 1, 0] = 1
    original = reconstruct(U, V) + error  # its maximum is 4.75
    other = between(*arguments, reference=original)
    assert other.deletion.y[0, 0] == pytest.approx(3.75 / 4.75)
    kept = between(*arguments, residual=error)
    assert kept.deletion.y[0, 0] == pytest.approx(1)
    assert kept.deletion.y[0, -1] == pytest.approx(0.75 / 4.75)  # β and ε remain
    for name in ("residual", "reference"):
        with pytest.raises(ValueError, match=rf"{name} \(1, 1, 3\), expected \(1, 4, 3\)"):
            interlayer_curves(*arguments, **{name: original[:, :1]})


def test_a_target_that_is_not_there(net):
    everywhere = U[:, [0, 1, 0, 1]]
    arguments = (net, everywhere, V, "b", torch.tensor([[-1.0, 0.0]]), torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="picture 0: a target's largest projection is -0.75"):
        interlayer_curves(*arguments)


def test_always_on():
    assert always_on(U).tolist() == [True, False, False, False]
    assert always_on(U, share=0.25).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda n: class_curves(n, U[:, :2], V, GAMMA, [0]), "2 positions are no map"),
        (lambda n: class_curves(n, U, V, GAMMA, [0], axis="y"), "unknown axis"),
        (lambda n: class_curves(n, U, V, GAMMA[0], [0]), "does not fit codes"),
        (lambda n: class_curves(n, U, V, GAMMA[:, :3], [0]), "does not fit codes"),
        (lambda n: class_curves(n, U, V, GAMMA * math.nan, [0]), "importance holds NaN"),
        (lambda n: class_curves(n, U, V, GAMMA, [0], tolerance=-1), "tolerance must not be"),
        (lambda n: interlayer_curves(n, U, V, "b", VECTOR, GAMMA), "does not fit 1 targets"),
        (lambda n: class_curves(n, U, V, GAMMA, [0, 0]), "2 classes for 1 pictures"),
        (lambda n: class_curves(n, U, concepts_of(V.vectors[:3]), GAMMA, [0]), "do not fit a"),
        (lambda n: class_curves(n, U / 0, V, GAMMA, [0]), "codes hold NaN"),
        (lambda n: per_class(GAMMA, [1, 2]), "do not fit"),
    ],
)
def test_bad_input_is_named(net, call, match):
    with pytest.raises(ValueError, match=match):
        call(net)
