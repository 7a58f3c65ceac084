"""curves.py on a linear network, where every curve can be worked out by hand."""

import math

import pytest
import torch
from conftest import random_decomposition, random_network
from linear import GAMMA, Linear, U, V, concepts_of, linear

from gig_helpers import Decomposition, attribute, deletion_insertion
from gig_helpers.curves import SCORES, Curve, Curves, always_on, largest


@pytest.fixture
def d() -> Decomposition:
    return linear(U, V)


def logits(d, importance, classes=0, tolerance=0, **options) -> Curves:
    """The logit's curves (N, S) of one class, one step per concept."""
    curves = deletion_insertion(d, "a", classes, importance, tolerance=tolerance, **options)
    return curves["logit"][:, 0]


def rows(curve: Curve) -> list:
    return curve.y.tolist()


def test_logit_curves_and_areas_by_hand(d):
    curves = logits(d, GAMMA)
    # Order 0, 1, 3 (no coefficient), 2; the reconstruction has 3 + 2 − 4 − 1 = 0, β alone −1.
    assert curves.deletion.x.tolist() == curves.insertion.x.tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    torch.testing.assert_close(curves.deletion.y, torch.tensor([[0, -3, -5, -5, -1]]).double())
    torch.testing.assert_close(curves.insertion.y, torch.tensor([[-1, 2, 4, 4, 0]]).double())
    deletion, insertion = curves.auc()
    assert deletion.item() == pytest.approx((0 / 2 - 3 - 5 - 5 - 1 / 2) / 4)
    assert insertion.item() == pytest.approx((-1 / 2 + 2 + 4 + 4 + 0 / 2) / 4)
    assert curves.gain().item() == pytest.approx((9.5 + 13.5) / 4)
    assert not curves.deletion.bracket.any() and not curves.insertion.bracket.any()


def test_one_concept_alone_is_all_of_them():
    curves = logits(linear(U[..., :1], concepts_of(V.vectors[:1])), GAMMA[..., :1])
    assert curves.deletion.x.tolist() == curves.insertion.x.tolist() == [[0, 1]]
    assert rows(curves.deletion) == [[2, -1]] and rows(curves.insertion) == [[-1, 2]]


def test_the_mean_of_curves_that_were_run_at_other_places():
    x, y = torch.tensor([[0, 0.5, 1], [0, 0.25, 1]]), torch.tensor([[1.0, 0, 0], [1.0, 1, 0]])
    mean = Curve(x, y, torch.tensor([0.1, 0.3])).mean(0)
    assert mean.x.tolist() == [0, 0.25, 0.5, 1]
    # At 0.25 the first has 1/2 on its way down, at 0.5 the second 2/3.
    torch.testing.assert_close(mean.y, torch.tensor([1, 0.75, 1 / 3, 0]))
    assert mean.bracket.item() == pytest.approx(0.2)
    assert mean.area().item() == pytest.approx(Curve(x, y, mean.bracket).area().mean().item())


def test_agreement_and_probability(d):
    curves = deletion_insertion(d, "a", [0], GAMMA, tolerance=0)
    assert tuple(curves) == SCORES == ("agreement", "probability", "logit")
    # argmax is 0 where the logit is ≥ 0, the first of equals.
    assert rows(curves["agreement"].deletion) == [[[1, 0, 0, 0, 0]]]
    assert rows(curves["agreement"].insertion) == [[[0, 1, 1, 1, 1]]]
    probability, logit = curves["probability"].insertion.y, curves["logit"].insertion.y
    torch.testing.assert_close(probability, logit.sigmoid())
    assert d.network.seen == 2 * 4 - 2, "none to three concepts, both ways; both ends are shared"


def test_absolute_active_and_held(d):
    absolute = logits(d, GAMMA.abs())
    assert rows(absolute.insertion) == [[-1, -5, -2, 0, 0]]  # order 2, 0, 1, 3
    active = logits(d, GAMMA, axis="active")
    assert rows(active.insertion) == [[-1, 2, 4, 0]]
    torch.testing.assert_close(active.insertion.x, torch.tensor([[0, 1 / 3, 2 / 3, 1]]).double())
    held = torch.tensor([True, False, False, False])
    kept = logits(d, GAMMA, held=held)
    assert rows(kept.insertion) == [[2, 4, 4, 0]]
    assert rows(kept.deletion) == [[0, -2, -2, 2]]
    both = logits(d, GAMMA, held=held, axis="active")
    assert rows(both.insertion) == [[2, 4, 0]] and both.insertion.x.tolist() == [[0, 0.5, 1]]


def test_the_concepts_own_beta_is_the_ground():
    own = concepts_of(V.vectors, torch.tensor([0.0, 0.5, 0]).double())  # 2 · 0.5 · 4 for logit 0
    curves = logits(linear(U, own), GAMMA)
    torch.testing.assert_close(curves.insertion.y, torch.tensor([[4, 7, 9, 9, 5]]).double())
    torch.testing.assert_close(curves.deletion.y, torch.tensor([[5, 2, 0, 0, 4]]).double())


def test_the_residual_stays_in_every_state():
    # 3 for logit 0, in the second channel of one position.
    error = torch.zeros(1, 4, 3).double()
    error[0, 3, 1] = 1.5
    d = linear(U, V, residual=error)
    kept = logits(d, GAMMA, residual=True)
    torch.testing.assert_close(kept.insertion.y, torch.tensor([[2, 5, 7, 7, 3]]).double())
    assert rows(logits(d, GAMMA).insertion) == [[-1, 2, 4, 4, 0]]


def test_steps_that_change_nothing_are_not_run():
    codes = torch.zeros(1, 4, 500, dtype=torch.float64)
    codes[0, 0, [3, 77, 400]] = 1
    d = linear(codes, concepts_of(torch.ones(500, 3).double()))
    importance = torch.zeros(1, 1, 500)
    importance[0, 0, [77, 3]] = torch.tensor([2.0, 1.0])  # 400 comes after all others before it
    curves = logits(d, importance)
    assert d.network.seen == 2 * 4 - 2  # none, one, two, three concepts; both ways
    # A state is a plateau for as long as nothing changes: 77 and 3 go first, 400 in its turn.
    assert (curves.deletion.x * 500).round().tolist() == [[0, 1, 2, 400, 401, 500]]


def crowd(count: int = 400, seed: int = 0):
    """One picture with many concepts, of which few matter, and an order that knows them."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.rand(count, 3, generator=generator, dtype=torch.float64) ** 8
    concepts = concepts_of(vectors * torch.tensor([1.0, 1, 0]))
    codes = torch.ones(1, 1, count, dtype=torch.float64) * 0.2
    return linear(codes, concepts), (vectors[:, 0] + 2 * vectors[:, 1])[None, None]


@pytest.mark.parametrize("seed", range(4))
def test_halving_finds_the_area_of_one_step_a_concept(seed):
    """Within the bracket that it states, with a tenth of the states; a random order too."""
    d, good = crowd(seed=seed)
    network = d.network
    for importance in (good, torch.rand(good.shape, generator=torch.Generator().manual_seed(seed))):
        network.seen = 0
        exact = deletion_insertion(d, "a", 0, importance, tolerance=0)
        every, network.seen = network.seen, 0
        halved = deletion_insertion(d, "a", 0, importance, tolerance=0.02)
        assert network.seen <= every / 10
        for score in ("agreement", "probability"):
            for way in ("deletion", "insertion"):
                few, all_ = getattr(halved[score], way), getattr(exact[score], way)
                assert (all_.y.diff() >= 0).all() or (all_.y.diff() <= 0).all(), "monotone"
                assert (few.bracket <= 0.02).all() and not all_.bracket.any()
                # Rounding of sums: a millionth of what the bracket allows.
                assert ((few.area() - all_.area()).abs() <= few.bracket + 1e-8).all()


def test_a_finer_tolerance_runs_more():
    d, importance = crowd()
    seen = []
    for tolerance in (0.1, 0.01, 0.001):
        d.network.seen = 0
        deletion_insertion(d, "a", 0, importance, tolerance=tolerance)
        seen.append(d.network.seen)
    assert seen[0] < seen[1] < seen[2]


def test_orders_that_agree_are_run_once():
    d, importance = crowd()
    network = d.network
    alone = logits(d, importance, tolerance=0.01)
    once, network.seen = network.seen, 0
    orders = torch.stack([importance, 3 * importance, -importance], dim=1)
    together = deletion_insertion(d, "a", 0, orders, tolerance=0.01)["logit"][:, :, 0]
    for m in (0, 1):
        assert torch.equal(together[:, m].deletion.at(alone.deletion.x[0]), alone.deletion.y)
    # Deleting in one order leaves what inserting in the opposite one has put in.
    assert network.seen < 2 * once
    swapped = together[0, 2].insertion.at(1 - alone.deletion.x[0])
    torch.testing.assert_close(swapped, alone.deletion.y[0], rtol=0, atol=0.05)


@pytest.fixture(scope="module")
def bent() -> Decomposition:
    """Two pictures in random concepts of two blocks of a network that is not linear."""
    network = random_network("resnet18", torch.float64)
    return random_decomposition(network, {"layer3.1": 4, "layer4.1": 2}, 2)


@pytest.mark.parametrize("tolerance", [0, 0.05])
def test_classes_and_methods_together_are_as_each_alone(bent, tolerance):
    d = bent.at("layer3.1")
    block, targets = "layer3.1", torch.tensor([[12, 7], [13, 12]])
    names = "gig", "activation", "random"
    importance = torch.stack(
        [attribute(d, block, targets, method=name, tolerance=0.1) for name in names], dim=1
    )
    together = deletion_insertion(d, block, targets, importance, tolerance=tolerance)
    for n, m, t in torch.cartesian_prod(*map(torch.arange, (2, 3, 2))).tolist():
        alone = deletion_insertion(
            d[[n]], block, targets[[n], t : t + 1], importance[[n], m, t : t + 1],
            tolerance=tolerance,
        )  # fmt: skip
        for score, curves in alone.items():
            assert together[score].deletion.bracket.shape == (2, 3, 2)
            for way in ("deletion", "insertion"):
                of_all, own = (getattr(c, way) for c in (together[score][n, m, t], curves[0, 0]))
                torch.testing.assert_close(of_all.at(own.x), own.y)
                torch.testing.assert_close(of_all.bracket, own.bracket)


def test_halving_looks_at_every_targets_own_scores():
    """One target's score never changes, and needs no halving; the one beside it does."""
    d, importance = crowd()
    d = linear(d.codes["a"], d.concepts["a"], later=torch.eye(2).double())

    def project(w, unit):
        return w.new_ones(len(w)) if unit[0] else w[:, 0] @ unit

    brackets = [
        deletion_insertion(
            d, "a", ("b", [0, 1]), importance.expand(1, 2, -1), project=project, tolerance=tolerance
        )["projection"].deletion.bracket[0].tolist()
        for tolerance in (1.0, 0.02)
    ]  # fmt: skip
    (still, coarse), (same, fine) = brackets
    assert still == same == 0 and coarse > 0.02 >= fine > 0


LATER = torch.tensor([[5.0, 0.0]]).double()


def between(codes, importance, residual_of_picture=None, later=LATER, **options) -> Curves:
    """The curves (N, S) of one concept of block b, one step per concept."""
    d = linear(codes, V, later, residual_of_picture)
    curves = deletion_insertion(d, "a", ("b", 0), importance, tolerance=0, **options)
    assert list(curves) == ["projection"]
    return curves["projection"][:, 0]


def test_interlayer_curves_by_hand():
    scores = torch.tensor([[[3.0, 0, 2, 0]]])
    # ⟨w_i, (1, 0)⟩ = x_0 + 2 x_2 with x_0 = u_0 − 0.25: 0.75 and 3.75, and −0.25 without codes.
    # Order 0, 2, 1, 3.
    curves = between(U, scores)
    expected = torch.tensor([[-0.25, 1.75, 3.75, 3.75]]).double() / 3.75
    torch.testing.assert_close(curves.insertion.y[:, :4], expected)
    expected = torch.tensor([[3.75, 1.75, -0.25, -0.25]]).double() / 3.75
    torch.testing.assert_close(curves.deletion.y[:, :4], expected)
    shift = Linear().bn_shift("b")  # (1, 0)
    centred = between(U, scores, project=lambda w, unit: largest(w - shift, unit))
    expected = torch.tensor([[-1.25, 0.75, 2.75, 2.75]]).double() / 2.75
    torch.testing.assert_close(centred.insertion.y[:, :4], expected)


def test_targets_and_methods_of_a_picture_share_their_states():
    later = torch.tensor([[5.0, 0], [0, 2], [1.0, 1]]).double()
    d = linear(U.repeat(2, 1, 1), V, later)
    targets = torch.tensor([[0, 1], [2, 0]])
    orders = torch.tensor([[3.0, 0, 2, 0], [0, 2, 3, 1]])
    importance = orders[:, None].expand(2, 2, 2, 4)  # two methods, of which each has one order
    together = deletion_insertion(d, "a", ("b", targets), importance, tolerance=0)["projection"]
    assert together.deletion.bracket.shape == (2, 2, 2)
    seen, alone_seen = d.network.seen, 0
    for n, m, t in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        d.network.seen = 0
        one_target = "b", targets[n, t]
        alone = deletion_insertion(d[[n]], "a", one_target, orders[[m], None], tolerance=0)
        alone_seen += d.network.seen
        for way in ("deletion", "insertion"):
            of_all, own = (getattr(c, way).y for c in (together, alone["projection"]))
            torch.testing.assert_close(of_all[n, m, t], own[0, 0])
    assert seen < alone_seen / 2
    assert not torch.allclose(together.insertion.y[0, 0, 0], together.insertion.y[0, 0, 1])


def test_the_maximum_may_be_fixed():
    # Without concept 0 at all, the second position still has the most through concept 2, but
    # with concept 2 gone first and 0 kept both are compared anew.
    codes = torch.zeros(1, 4, 4).double()
    codes[0, :2] = torch.tensor([[4.0, 0, 0, 0], [1, 0, 2, 0]])  # projections 3.75 and 4.75
    scores = torch.tensor([[[0.0, 0, 1, -1]]])
    each = between(codes, scores).deletion.y[0, 1]
    fixed = between(codes, scores, project=lambda w, unit: w[:, 1] @ unit).deletion.y[0, 1]
    assert each == pytest.approx(3.75 / 4.75) and fixed == pytest.approx(0.75 / 4.75)


def test_residual_and_reference():
    scores = torch.tensor([[[3.0, 0, 2, 0]]])
    error = torch.zeros(1, 4, 3).double()
    error[0, 1, 0] = 1  # the picture's maximum is 4.75, the reconstruction's 3.75
    other = between(U, scores, error, reference="picture")
    assert other.deletion.y[0, 0] == pytest.approx(3.75 / 4.75)
    kept = between(U, scores, error, residual=True, reference="picture")
    assert kept.deletion.y[0, 0] == pytest.approx(1)
    assert kept.deletion.y[0, -1] == pytest.approx(0.75 / 4.75)  # β and ε remain


def test_residual_and_reference_against_brute_force(bent):
    """Each state set up position by position."""
    d, network = bent[[0]], bent.network
    source, later, target = "layer3.1", "layer4.1", 9
    here, unit = d.concepts[source], d.concepts[later].vectors[target]
    unit = unit / unit.norm()
    picture = network.preactivations(d.images, [source])[source][0]

    def projection(present, residual):
        x = picture.clone()
        for p, u in enumerate(d.codes[source][0]):
            row, column = divmod(p, 4)
            own = here.beta + sum(u[q] * here.vectors[q] for q in range(12))
            kept = here.beta + sum(u[q] * here.vectors[q] for q in present)
            x[:, row, column] += kept - own
            if not residual:
                x[:, row, column] = kept
        w = network.between(x[None], source, later)[0]
        return max(float(w[:, i, j] @ unit) for i in range(2) for j in range(2))

    importance = attribute(d, source, (later, target), method="random")
    order = importance[0, 0].argsort(descending=True).tolist()
    # With the residual, all concepts together are the picture.
    originals = {
        "picture": projection(order, True), "reconstruction": projection(order, False)
    }  # fmt: skip
    shares = torch.arange(13, dtype=torch.float64) / 12
    for residual in (False, True):
        left = [projection(order[j:], residual) for j in range(13)]
        there = [projection(order[:j], residual) for j in range(13)]
        for reference in originals:
            options = {"residual": residual, "reference": reference, "tolerance": 0}
            curves = deletion_insertion(d, source, (later, target), importance, **options)
            # The residual has a part in the original that states are compared with, too.
            whole = originals["picture" if residual else reference]
            for way, states in (("deletion", left), ("insertion", there)):
                curve = getattr(curves["projection"][0, 0], way)
                wanted = torch.tensor(states, dtype=torch.float64) / whole
                torch.testing.assert_close(curve.at(shares), wanted)


def test_a_target_that_is_not_there():
    everywhere = U[:, [0, 1, 0, 1]]
    with pytest.raises(ValueError, match="picture 0: a target's largest projection is -0.75"):
        between(everywhere, torch.zeros(1, 1, 4), later=torch.tensor([[-1.0, 0.0]]).double())


def test_always_on():
    assert always_on(U).tolist() == [True, False, False, False]
    assert always_on(U, share=0.25).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "target, importance, options, match",
    [
        (0, GAMMA, {"axis": "y"}, "unknown axis"),
        (0, GAMMA, {"reference": "pixels"}, "unknown reference"),
        (0, GAMMA, {"tolerance": -1}, "tolerance must not be"),
        (0, GAMMA[0], {}, r"does not fit \(N, T, k\) \(1, 1, 4\)"),
        ([0, 1], GAMMA, {}, r"does not fit \(N, T, k\) \(1, 2, 4\)"),
        (0, GAMMA[..., :3], {}, r"does not fit \(N, T, k\) \(1, 1, 4\)"),
        (0, GAMMA.repeat(2, 1, 1), {}, r"does not fit \(N, T, k\) \(1, 1, 4\)"),
        (0, GAMMA * math.nan, {}, "importance holds NaN"),
        ([[0], [0]], GAMMA, {}, r"expected \(T,\), or \(N, T\) of 1"),
        (2, GAMMA, {}, r"classes \[2\] leave 0 … 1"),
    ],
)
def test_bad_input_is_named(d, target, importance, options, match):
    with pytest.raises(ValueError, match=match):
        deletion_insertion(d, "a", target, importance, **options)


def test_positions_that_are_no_map_are_named():
    d = random_decomposition(random_network("resnet18"), {"layer3.1": 4}, 1)
    few = Decomposition(d.network, d.images, d.concepts, {"layer3.1": d.codes["layer3.1"][:, :5]})
    with pytest.raises(ValueError, match="5 positions are no map"):
        deletion_insertion(few, "layer3.1", 0, torch.zeros(1, 1, 12))
