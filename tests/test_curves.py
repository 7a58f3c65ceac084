"""curves.py on a linear network, where every curve can be worked out by hand."""

import math

import pytest
import torch
from linear import GAMMA, Linear, U, V, concepts_of

from gig_helpers.codes import reconstruct
from gig_helpers.curves import (
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


def logits(*arguments, **options) -> Curves:
    return class_curves(*arguments, **options)["logit"]


def test_logit_curves_and_areas_by_hand(net):
    curves = logits(net, U, V, GAMMA, [0])
    # Order 0, 1, 3 (no coefficient), 2; the reconstruction has 3 + 2 − 4 − 1 = 0, β alone −1.
    assert curves.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(curves.deletion, torch.tensor([[0, -3, -5, -5, -1]]).double())
    torch.testing.assert_close(curves.insertion, torch.tensor([[-1, 2, 4, 4, 0]]).double())
    deletion, insertion = curves.auc()
    assert deletion.item() == pytest.approx((0 / 2 - 3 - 5 - 5 - 1 / 2) / 4)
    assert insertion.item() == pytest.approx((-1 / 2 + 2 + 4 + 4 + 0 / 2) / 4)
    assert curves.gain().item() == pytest.approx((9.5 + 13.5) / 4)
    two = Curves(curves.x, torch.stack([curves.deletion, 0 * curves.deletion], 1), curves.insertion)
    torch.testing.assert_close(two.mean(1).deletion, curves.deletion / 2)


def test_agreement_and_probability(net):
    found = class_curves(net, U, V, GAMMA, [0])
    assert list(found) == ["agreement", "probability", "logit"]
    # argmax is 0 where the logit is ≥ 0, the first of equals.
    assert found["agreement"].deletion.tolist() == [[1, 0, 0, 0, 0]]
    assert found["agreement"].insertion.tolist() == [[0, 1, 1, 1, 1]]
    torch.testing.assert_close(found["probability"].insertion, found["logit"].insertion.sigmoid())
    assert net.seen == 2 * 4, "one run for all scores: none, one, two, three concepts; twice"


def test_absolute_active_and_held(net):
    absolute = logits(net, U, V, GAMMA.abs(), [0])
    assert absolute.insertion.tolist() == [[-1, -5, -2, 0, 0]]  # order 2, 0, 1, 3
    active = logits(net, U, V, GAMMA, [0], axis="active", steps=3)
    assert active.insertion.tolist() == [[-1, 2, 4, 0]]
    torch.testing.assert_close(active.x, torch.tensor([0, 0.25, 0.75, 1]).double())
    held = torch.tensor([True, False, False, False])
    kept = logits(net, U, V, GAMMA, [0], held=held)
    assert kept.insertion.tolist() == [[2, 4, 4, 0]]
    assert kept.deletion.tolist() == [[0, -2, -2, 2]]


def test_ranking_per_class(net):
    scores = torch.tensor([[1.0, 3], [3, 1], [0, 5]])
    expected = torch.tensor([[2.0, 2], [2, 2], [0, 5]])
    assert torch.equal(per_class(scores, [4, 4, 9]), expected)
    # The second picture's scores turn the order of the class round: 2 comes first.
    scores = torch.cat([GAMMA, torch.tensor([[0.0, 0, 99, 0]]).double()])
    curves = logits(net, U.repeat(2, 1, 1), V, per_class(scores, [0, 0]), [0, 0])
    assert curves.insertion.tolist() == [[-1, -5, -2, 0, 0]] * 2


def test_the_concepts_own_beta_is_the_ground(net):
    own = concepts_of(V.vectors, torch.tensor([0.0, 0.5, 0]).double())  # 2 · 0.5 · 4 for logit 0
    curves = logits(net, U, own, GAMMA, [0])
    torch.testing.assert_close(curves.insertion, torch.tensor([[4, 7, 9, 9, 5]]).double())
    torch.testing.assert_close(curves.deletion, torch.tensor([[5, 2, 0, 0, 4]]).double())


def test_steps_that_change_nothing_are_not_run(net):
    codes = torch.zeros(1, 4, 500, dtype=torch.float64)
    codes[0, 0, [3, 77, 400]] = 1
    concepts = concepts_of(torch.ones(500, 3).double())
    curves = logits(net, codes, concepts, torch.rand(1, 500), [0])
    assert len(curves.x) == 501
    assert net.seen == 2 * 4  # none, one, two, three concepts; twice


def test_few_steps_lie_close_together_at_both_ends(net):
    concepts = concepts_of(torch.ones(64, 3).double())
    curves = logits(
        net, torch.ones(1, 1, 64).double(), concepts, torch.arange(64.0)[None], [0], steps=6
    )
    # From 1 to 32 by factors of 32^(1/2) = 5.7, and the same from the other end.
    assert (curves.x * 64).tolist() == [0, 1, 6, 32, 58, 63, 64]
    # By hand: u v = s(1, 1, 1), of which logit 0 takes 1 + 2 − 4.
    torch.testing.assert_close(curves.insertion[0], -0.25 - 64 * curves.x, rtol=0, atol=1e-9)
    assert curves.auc()[1].item() == pytest.approx(-0.25 - 32)  # exact for a straight line


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("axis", ["all", "active"])
def test_ends_are_the_reconstruction_and_beta(net, axis, steps):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 4, 40, generator=generator)
    codes = codes * (torch.rand(codes.shape, generator=generator) < 0.02)
    concepts = concepts_of(torch.randn(40, 3, generator=generator))
    scores = torch.randn(3, 40, generator=generator)
    curves = logits(net, codes, concepts, scores, [0, 1, 0], axis=axis, steps=steps, batch_size=3)
    full = codes.double() @ concepts.vectors.double() + net.bn_shift("a")
    maps = full.transpose(1, 2).reshape(3, 3, 2, 2)
    whole = net.propagate(maps, "a")[torch.arange(3), [0, 1, 0]]
    nothing = torch.tensor([-1.0, 0.0, -1.0], dtype=torch.float64)
    # States of which batches differ in size round differently in float64.
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(curves.deletion[:, -1], nothing, **close)
    torch.testing.assert_close(curves.insertion[:, 0], nothing, **close)
    torch.testing.assert_close(curves.insertion[:, -1], curves.deletion[:, 0], **close)
    # Against another order of summation.
    torch.testing.assert_close(curves.deletion[:, 0], whole, **close)


VECTOR = torch.tensor([5.0, 0.0])


def test_interlayer_curves_by_hand(net):
    scores = torch.tensor([[3.0, 0, 2, 0]])
    arguments = (net, U, V, "b", VECTOR, scores)
    # ⟨w_i, (1, 0)⟩ = x_0 + 2 x_2 with x_0 = u_0 − 0.25: 0.75 and 3.75, and −0.25 without codes.
    # Order 0, 2, 1, 3.
    curves = interlayer_curves(*arguments)
    expected = torch.tensor([[-0.25, 1.75, 3.75, 3.75, 3.75]]).double() / 3.75
    torch.testing.assert_close(curves.insertion, expected)
    expected = torch.tensor([[3.75, 1.75, -0.25, -0.25, -0.25]]).double() / 3.75
    torch.testing.assert_close(curves.deletion, expected)
    shift = net.bn_shift("b")  # (1, 0)
    centred = interlayer_curves(*arguments, project=lambda w, unit: largest(w - shift, unit))
    expected = torch.tensor([[-1.25, 0.75, 2.75, 2.75, 2.75]]).double() / 2.75
    torch.testing.assert_close(centred.insertion, expected)


def test_each_picture_may_have_its_own_target(net):
    codes, scores = U.repeat(2, 1, 1), torch.tensor([[3.0, 0, 2, 0]] * 2)
    vectors = torch.tensor([[5.0, 0], [0, 2]])
    both = interlayer_curves(net, codes, V, "b", vectors, scores)
    for n, vector in enumerate(vectors):
        one = interlayer_curves(net, U, V, "b", vector, scores[:1])
        torch.testing.assert_close(both.insertion[n], one.insertion[0])
        torch.testing.assert_close(both.deletion[n], one.deletion[0])
    assert not torch.allclose(both.insertion[0], both.insertion[1])


def test_the_maximum_may_be_fixed(net):
    # Without concept 0 at all, the second position still has the most through concept 2, but
    # with concept 2 gone first and 0 kept both are compared anew.
    codes = torch.zeros(1, 4, 4).double()
    codes[0, :2] = torch.tensor([[4.0, 0, 0, 0], [1, 0, 2, 0]])  # projections 3.75 and 4.75
    scores = torch.tensor([[0.0, 0, 1, -1]])
    arguments = (net, codes, V, "b", VECTOR, scores)
    each = interlayer_curves(*arguments).deletion[0, 1]
    fixed = interlayer_curves(*arguments, project=lambda w, unit: w[:, 1] @ unit).deletion[0, 1]
    assert each == pytest.approx(3.75 / 4.75) and fixed == pytest.approx(0.75 / 4.75)


def test_residual_and_reference(net):
    scores = torch.tensor([[3.0, 0, 2, 0]])
    arguments = (net, U, V, "b", VECTOR, scores)
    error = torch.zeros(1, 4, 3).double()
    error[0, 1, 0] = 1
    original = reconstruct(U, V) + error  # its maximum is 4.75
    other = interlayer_curves(*arguments, reference=original)
    assert other.deletion[0, 0] == pytest.approx(3.75 / 4.75)
    kept = interlayer_curves(*arguments, residual=error)
    assert kept.deletion[0, 0] == pytest.approx(1)
    assert kept.deletion[0, -1] == pytest.approx(0.75 / 4.75)  # β and ε remain
    for name in ("residual", "reference"):
        with pytest.raises(ValueError, match=rf"{name} \(1, 1, 3\), expected \(1, 4, 3\)"):
            interlayer_curves(*arguments, **{name: original[:, :1]})


def test_a_target_that_is_not_there(net):
    everywhere = U[:, [0, 1, 0, 1]]
    arguments = (net, everywhere, V, "b", torch.tensor([-1.0, 0.0]), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="picture 0: the target's largest projection is -0.75"):
        interlayer_curves(*arguments)


def test_always_on():
    assert always_on(U).tolist() == [True, False, False, False]
    assert always_on(U, share=0.25).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda n: class_curves(n, U[:, :2], V, GAMMA, [0]), "2 positions, not 1×1"),
        (lambda n: class_curves(n, U, V, GAMMA, [0], axis="y"), "unknown axis"),
        (lambda n: class_curves(n, U, V, GAMMA[0], [0]), "expected"),
        (lambda n: class_curves(n, U, V, GAMMA * math.nan, [0]), "no NaN"),
        (lambda n: class_curves(n, U, V, GAMMA, [0, 0]), "2 classes for 1 pictures"),
        (lambda n: class_curves(n, U, concepts_of(V.vectors[:3]), GAMMA, [0]), "do not fit a"),
        (lambda n: class_curves(n, U / 0, V, GAMMA, [0]), "codes hold NaN"),
        (lambda n: per_class(GAMMA, [1, 2]), "do not fit"),
    ],
)
def test_bad_input_is_named(net, call, match):
    with pytest.raises(ValueError, match=match):
        call(net)
