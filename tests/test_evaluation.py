"""evaluation.py on a linear network, where every curve can be worked out by hand."""

import math

import pytest
import torch
from scipy import stats

from gig_helpers.evaluation import (
    ORDERS,
    always_on,
    class_curves,
    class_fidelity,
    class_study,
    compare,
    concept_scores,
    interlayer_curves,
    interlayer_study,
    interval,
    per_class,
)


class Linear:
    """Blocks a → b → two logits, all linear: channel maps A (a to b) and M (a to logits)."""

    blocks = ("a", "b")
    device = torch.device("cpu")
    A = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=torch.float64)
    M = torch.tensor([[1.0, 2, -4], [0, 0, 0]], dtype=torch.float64)
    seen = 0

    def channels(self, block):
        return {"a": 3, "b": 2}[block]

    def bn_shift(self, block):
        return torch.tensor({"a": [-0.5, 0, 0], "b": [1.0, 0]}[block], dtype=torch.float64)

    def logits_from(self, x, block):
        self.seen += len(x)
        return x.sum(dim=(2, 3)) @ self.M.T

    def span(self, source, target):
        return 0, 1

    def between(self, x, source, target):
        self.seen += len(x)
        return torch.einsum("dc,nchw->ndhw", self.A, x)


# One picture of two positions (1×2); concepts are the channels and a fourth that is never used.
U = torch.tensor([[[1.0, 1, 0, 0], [2, 0, 1, 0]]], dtype=torch.float64)
V = torch.cat([torch.eye(3), torch.ones(1, 3)]).double()
LINE = {"shape": (1, 2)}
# β brings −0.5 to logit 0 at each position, −1 in all; the concepts Σ_p u_pq · M_0q:
GAMMA = torch.tensor([[3.0, 2.0, -4.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def net():
    return Linear()


def test_scores_of_a_linear_network(net):
    for order in ("gig", "gradient", "ablation"):
        scores = concept_scores(order, net, U, V, "a", classes=[0, 1], **LINE)
        torch.testing.assert_close(scores[:, 0], GAMMA)
        assert (scores[:, 1] == 0).all()
    for order in ("gig", "gradient", "ablation"):
        # Σ_p u_pq ⟨A v_q, (0, 1)⟩
        scores = concept_scores(
            order, net, U, V, "a", target="b", target_vectors=torch.tensor([[0.0, 3.0]]), **LINE
        )
        torch.testing.assert_close(scores[0, 0], torch.tensor([0, 1, -1, 0]).double())
    activation = concept_scores("activation", net, -U, V, "a", classes=[0], **LINE)
    torch.testing.assert_close(activation[0, 0], torch.tensor([3, 1, 1, 0]).double())


def test_cosine_of_concepts_alone(net):
    scores = concept_scores(
        "cosine", net, U, V, "a", target="b", target_vectors=torch.tensor([[2.0, 0.0]]), **LINE
    )
    # A v_q = (1, 0), (0, 1), (2, −1), (3, 0)
    expected = torch.tensor([1, 0, 2 / math.sqrt(5), 1]).double()
    torch.testing.assert_close(scores[0, 0], expected)
    scores = concept_scores("cosine", net, 0 * U, V, "a", classes=[0], **LINE)
    torch.testing.assert_close(scores[0, 0], torch.tensor([1, 1, -1, -1]).double())


def test_random_scores_are_seeded(net):
    first, again, other = (
        concept_scores("random", net, U, V, "a", classes=[0], seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_logit_curves_and_areas_by_hand(net):
    curves = class_curves(net, U, V, "a", GAMMA, [0], score="logit", **LINE)
    # Order 0, 1, 3 (no coefficient), 2; the reconstruction has 3 + 2 − 4 − 1 = 0, β alone −1.
    assert curves.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(curves.deletion, torch.tensor([[0, -3, -5, -5, -1]]).double())
    torch.testing.assert_close(curves.insertion, torch.tensor([[-1, 2, 4, 4, 0]]).double())
    deletion, insertion = curves.auc()
    assert deletion.item() == pytest.approx((0 / 2 - 3 - 5 - 5 - 1 / 2) / 4)
    assert insertion.item() == pytest.approx((-1 / 2 + 2 + 4 + 4 + 0 / 2) / 4)


def test_agreement_and_probability(net):
    agreement = class_curves(net, U, V, "a", GAMMA, [0], **LINE)
    # argmax is 0 where the logit is ≥ 0, the first of equals.
    assert agreement.deletion.tolist() == [[1, 0, 0, 0, 0]]
    assert agreement.insertion.tolist() == [[0, 1, 1, 1, 1]]
    probability = class_curves(net, U, V, "a", GAMMA, [0], score="probability", **LINE)
    logit = class_curves(net, U, V, "a", GAMMA, [0], score="logit", **LINE)
    torch.testing.assert_close(probability.insertion, logit.insertion.sigmoid())


def test_absolute_active_and_held(net):
    absolute = class_curves(net, U, V, "a", GAMMA, [0], score="logit", absolute=True, **LINE)
    assert absolute.insertion.tolist() == [[-1, -5, -2, 0, 0]]  # order 2, 0, 1, 3
    active = class_curves(net, U, V, "a", GAMMA, [0], score="logit", axis="active", steps=3, **LINE)
    assert active.insertion.tolist() == [[-1, 2, 4, 0]]
    torch.testing.assert_close(active.x, torch.tensor([0, 0.25, 0.75, 1]).double())
    held = torch.tensor([True, False, False, False])
    kept = class_curves(net, U, V, "a", GAMMA, [0], score="logit", held=held, **LINE)
    assert kept.insertion.tolist() == [[2, 4, 4, 0]]
    assert kept.deletion.tolist() == [[0, -2, -2, 2]]


def test_ranking_per_class(net):
    scores = torch.tensor([[1.0, 3], [3, 1], [0, 5]])
    expected = torch.tensor([[2.0, 2], [2, 2], [0, 5]])
    assert torch.equal(per_class(scores, [4, 4, 9]), expected)
    # The second picture's scores turn the order of the class round: 2 comes first.
    scores = torch.cat([GAMMA, torch.tensor([[0.0, 0, 99, 0]]).double()])
    curves = class_curves(
        net, U.repeat(2, 1, 1), V, "a", scores, [0, 0], score="logit", ranking="class", **LINE
    )
    assert curves.insertion.tolist() == [[-1, -5, -2, 0, 0]] * 2


def test_steps_that_change_nothing_are_not_run(net):
    codes = torch.zeros(1, 2, 500, dtype=torch.float64)
    codes[0, 0, [3, 77, 400]] = 1
    concepts = torch.ones(500, 3).double()
    curves = class_curves(net, codes, concepts, "a", torch.rand(1, 500), [0], **LINE)
    assert len(curves.x) == 501
    assert net.seen == 2 * 4  # none, one, two, three concepts; twice


def test_few_steps_lie_close_together_at_both_ends(net):
    curves = class_curves(
        net, torch.ones(1, 1, 64).double(), torch.ones(64, 3).double(), "a",
        torch.arange(64.0)[None], [0], score="logit", steps=6,
    )  # fmt: skip
    # From 1 to 32 by factors of 32^(1/2) = 5.7, and the same from the other end.
    assert (curves.x * 64).tolist() == [0, 1, 6, 32, 58, 63, 64]
    # By hand: u v = s(1, 1, 1), of which logit 0 takes 1 + 2 − 4.
    torch.testing.assert_close(curves.insertion[0], -0.5 - 64 * curves.x, rtol=0, atol=1e-9)
    assert curves.auc()[1].item() == pytest.approx(-0.5 - 32)  # exact for a straight line


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("axis", ["all", "active"])
def test_ends_are_the_reconstruction_and_beta(net, axis, steps):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3, 4, 40, generator=generator)
    codes = codes * (torch.rand(codes.shape, generator=generator) < 0.02)
    concepts = torch.randn(40, 3, generator=generator)
    scores = torch.randn(3, 40, generator=generator)
    curves = class_curves(
        net, codes, concepts, "a", scores, [0, 1, 0], score="logit", axis=axis, steps=steps,
        batch_size=3,
    )  # fmt: skip
    codes, concepts = codes.double(), concepts.double()
    full = (codes @ concepts + net.bn_shift("a")).transpose(1, 2).reshape(3, 3, 2, 2)
    whole = net.logits_from(full, "a")[torch.arange(3), [0, 1, 0]]
    nothing = torch.tensor([-2.0, 0.0, -2.0], dtype=torch.float64)
    assert torch.equal(curves.deletion[:, -1], nothing)
    assert torch.equal(curves.insertion[:, 0], nothing)
    assert torch.equal(curves.insertion[:, -1], curves.deletion[:, 0])
    # Against another order of summation.
    torch.testing.assert_close(curves.deletion[:, 0], whole, rtol=1e-12, atol=1e-12)


def test_interlayer_curves_by_hand(net):
    scores = torch.tensor([[3.0, 0, 2, 0]])
    arguments = (net, U, V, "a", "b", torch.tensor([5.0, 0.0]), scores)
    # ⟨w_i, (1, 0)⟩ = x_0 + 2 x_2 with x_0 = u_0 − 0.5: 0.5 and 3.5. Order 0, 2, 1, 3.
    curves = interlayer_curves(*arguments, **LINE)
    expected = torch.tensor([[-0.5, 1.5, 3.5, 3.5, 3.5]]).double() / 3.5
    torch.testing.assert_close(curves.insertion, expected)
    expected = torch.tensor([[3.5, 1.5, -0.5, -0.5, -0.5]]).double() / 3.5
    torch.testing.assert_close(curves.deletion, expected)
    centred = interlayer_curves(*arguments, centred=True, **LINE)  # μ_BN of b is (1, 0)
    expected = torch.tensor([[-1.5, 0.5, 2.5, 2.5, 2.5]]).double() / 2.5
    torch.testing.assert_close(centred.insertion, expected)


def test_the_maximum_may_be_fixed(net):
    # Without concept 0 at all, the second position still has the most through concept 2, but
    # with concept 2 gone first and 0 kept both are compared anew.
    codes = torch.tensor([[[4.0, 0, 0, 0], [1, 0, 2, 0]]]).double()  # projections 3.5 and 4.5
    scores = torch.tensor([[0.0, 0, 1, -1]])
    arguments = (net, codes, V, "a", "b", torch.tensor([1.0, 0.0]), scores)
    each = interlayer_curves(*arguments, **LINE).deletion[0, 1]
    fixed = interlayer_curves(*arguments, maximum="fixed", **LINE).deletion[0, 1]
    assert each == pytest.approx(3.5 / 4.5) and fixed == pytest.approx(0.5 / 4.5)


def test_residual_and_denominator(net):
    scores = torch.tensor([[3.0, 0, 2, 0]])
    arguments = (net, U, V, "a", "b", torch.tensor([1.0, 0.0]), scores)
    error = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]]).double()
    original = U @ V + net.bn_shift("a") + error  # its maximum is 4.5
    other = interlayer_curves(*arguments, denominator="original", original=original, **LINE)
    assert other.deletion[0, 0] == pytest.approx(3.5 / 4.5)
    kept = interlayer_curves(*arguments, residual=True, original=original, **LINE)
    assert kept.deletion[0, 0] == pytest.approx(1)
    assert kept.deletion[0, -1] == pytest.approx(0.5 / 4.5)  # β and ε remain
    with pytest.raises(ValueError, match="need original="):
        interlayer_curves(*arguments, residual=True, **LINE)
    with pytest.raises(ValueError, match="expected"):
        interlayer_curves(*arguments, residual=True, original=original[:, :1], **LINE)


def test_a_target_that_is_not_there(net):
    arguments = (net, U, V, "a", "b", torch.tensor([-1.0, 0.0]), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="picture 0: the target's largest projection is -0.5"):
        interlayer_curves(*arguments, **LINE)


def test_fidelity_of_a_linear_network_is_one(net):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2, 4, 30, generator=generator)
    concepts = torch.randn(30, 3, generator=generator)
    gamma = concept_scores("gig", net, codes, concepts, "a", classes=[0])[:, 0]
    for correlation in ("spearman", "pearson"):
        found = class_fidelity(
            net, codes, concepts, "a", gamma, [0, 0], correlation=correlation, subsets=50
        )
        torch.testing.assert_close(found, torch.ones(2).double(), rtol=0, atol=1e-9)
        found = class_fidelity(
            net, codes, concepts, "a", -gamma, [0, 0], correlation=correlation, subsets=50
        )
        torch.testing.assert_close(found, -torch.ones(2).double(), rtol=0, atol=1e-9)
    noise = torch.randn(2, 30, generator=generator)
    other = class_fidelity(net, codes, concepts, "a", noise, [0, 0])
    assert (other.abs() < 0.9).all()
    together = class_fidelity(net, codes, concepts, "a", torch.stack([noise, gamma], 1), [0, 0])
    torch.testing.assert_close(together[:, 0], other)
    torch.testing.assert_close(together[:, 1], torch.ones(2).double(), rtol=0, atol=1e-9)


def test_intervals_and_paired_comparison():
    generator = torch.Generator().manual_seed(0)
    hard = 10 * torch.randn(40, generator=generator)  # pictures differ more than methods do
    a, b = hard + 1 + 0.1 * torch.randn(40, generator=generator), hard
    found = interval(a - b)
    assert found.low < found.mean < found.high and found.mean == pytest.approx(1, abs=0.1)
    standard = (a - b).std().item() / math.sqrt(40)
    # The percentile interval of a mean is close to the normal one at 40 pictures.
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard, rel=0.15)
    paired = compare(a, b)
    assert paired.low > 0.9 and paired.mean == pytest.approx(found.mean)
    assert paired.p_value == pytest.approx(stats.wilcoxon((a - b).double().numpy()).pvalue)
    unpaired = interval(a).high - interval(a).low
    assert unpaired > 10 * (paired.high - paired.low)
    assert compare(a, a) == compare(b, b) and compare(a, a).p_value == 1


def test_always_on():
    assert always_on(U).tolist() == [True, True, True, False]
    assert always_on(U, share=0.6).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda n: concept_scores("best", n, U, V, "a", classes=[0]), "unknown order 'best'"),
        (lambda n: concept_scores("gig", n, U, V, "a"), "either classes"),
        (lambda n: concept_scores("gig", n, U, V, "a", target="b"), "either classes"),
        (lambda n: concept_scores("gig", n, U, V[:3], "a", classes=[0]), "do not fit a with 3"),
        (lambda n: concept_scores("gig", n, U / 0, V, "a", classes=[0]), "codes hold NaN"),
        (lambda n: class_curves(n, U, V, "a", GAMMA, [0]), "2 positions, not 1×1"),
        (lambda n: class_curves(n, U, V, "a", GAMMA, [0], score="p", **LINE), "unknown score"),
        (lambda n: class_curves(n, U, V, "a", GAMMA, [0], axis="y", **LINE), "unknown axis"),
        (lambda n: class_curves(n, U, V, "a", GAMMA[0], [0], **LINE), "expected"),
        (lambda n: class_curves(n, U, V, "a", GAMMA * math.nan, [0], **LINE), "no NaN"),
        (lambda n: class_curves(n, U, V, "a", GAMMA, [0, 0], **LINE), "2 classes for 1 pictures"),
        (lambda n: class_fidelity(n, U, V, "a", GAMMA, [0], fraction=0.0, **LINE), "sets of 0"),
        (lambda n: class_study(n, U, [0], None, 1.0, [], measures=["p"]), "unknown score"),
        (lambda n: interval(torch.ones(1)), "two or more"),
        (lambda n: compare(torch.ones(2), torch.ones(3)), "not the same pictures"),
        (lambda n: per_class(GAMMA, [1, 2]), "do not fit"),
    ],
)
def test_bad_input_is_named(net, call, match):
    with pytest.raises(ValueError, match=match):
        call(net)


def test_every_order_on_a_real_architecture():
    import torchvision

    from gig_helpers.network import Network

    torch.manual_seed(0)
    small = Network(torchvision.models.resnet18(num_classes=5).double(), device="cpu")
    codes = torch.randn(2, 4, 6) * (torch.rand(2, 4, 6) < 0.5)
    concepts = torch.randn(6, 128)
    vectors = torch.randn(3, 256)
    for order in ORDERS:
        scores = concept_scores(
            order, small, codes, concepts, "layer2.1", target="layer3.0", target_vectors=vectors
        )
        assert scores.shape == (2, 3, 6) and scores.isfinite().all()
        scores = concept_scores(order, small, codes, concepts, "layer2.1", classes=[[1], [3]])
        assert scores.shape == (2, 1, 6) and scores.isfinite().all()


def test_studies_are_what_the_functions_find_and_are_kept(tmp_path, monkeypatch):
    import torchvision

    from gig_helpers import decomposition
    from gig_helpers.clustering import Concepts
    from gig_helpers.network import Network

    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path))
    torch.manual_seed(0)
    small = Network(torchvision.models.resnet18(num_classes=5), device="cpu")
    images = torch.randn(3, 3, 64, 64)
    blocks = ("layer3.1", "layer4.0")
    found = small.preactivations(images, blocks)
    concepts, penalties = {}, dict.fromkeys(blocks, 0.5)
    for b in blocks:
        beta = small.bn_shift(b)
        vectors = found[b].transpose(0, 1).flatten(1).T[:7] - beta
        concepts[b] = Concepts(vectors.clone(), beta, torch.zeros(7), b)
    here, labels = concepts["layer3.1"], [0, 1, 2]

    def both(n):
        one = class_study(
            small, images[:n], labels[:n], here, 0.5, ["random", "gig"], points=4, steps=4
        )
        two = interlayer_study(
            small, images[:n], labels[:n], *concepts.values(), penalties, ["random", "gig"],
            targets=2, points=4, steps=4,
        )  # fmt: skip
        return one, two

    both(2)
    codes = decomposition.picture_codes(small, images, concepts, penalties)
    made = len(list(tmp_path.iterdir()))
    with monkeypatch.context() as patch:  # the first two pictures are read, not run
        patch.setattr(small, "preactivations", None)
        both(2)
    one, two = both(3)
    assert len(list(tmp_path.iterdir())) == made * 3 // 2
    assert list(one.scores) == list(two.curves) == ["random", "gig"]
    assert one.seconds["gig"].shape == (3,) and two.targets.shape == (3, 2)

    u, v = codes["layer3.1"], here.vectors
    scores = concept_scores("gig", small, u, v, "layer3.1", classes=[[c] for c in labels], points=4)
    # Batches of another size round differently in float32.
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(one.scores["gig"], scores, **close)
    for score in ("agreement", "probability"):
        direct = class_curves(
            small, u, v, "layer3.1", one.scores["gig"][:, 0], labels, score=score, steps=4
        )
        for way in ("x", "deletion", "insertion"):
            stored = getattr(one.curves[f"gig, {score}"], way)
            torch.testing.assert_close(stored, getattr(direct, way), **close)
    for t in range(2):
        vectors = concepts["layer4.0"].vectors[two.targets[:, t]]
        direct = interlayer_curves(
            small, u, v, "layer3.1", "layer4.0", vectors, two.scores["gig"][:, t], steps=4
        )
        torch.testing.assert_close(two.curves["gig"].insertion[:, t], direct.insertion, **close)
        torch.testing.assert_close(two.curves["gig"].deletion[:, t], direct.deletion, **close)


def test_codes_are_kept_as_they_are(tmp_path, monkeypatch):
    import torchvision

    from gig_helpers import decomposition
    from gig_helpers.clustering import Concepts
    from gig_helpers.network import Network

    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path))
    torch.manual_seed(0)
    small = Network(torchvision.models.resnet18(num_classes=5), device="cpu")
    images = torch.randn(2, 3, 64, 64)
    beta = small.bn_shift("layer3.1")
    here = Concepts(torch.randn(9, 256), beta, torch.zeros(9), "layer3.1")
    first = decomposition.load_codes(small, images, here, 2.0)
    alone = [
        decomposition.picture_codes(small, image[None], {"layer3.1": here}, {"layer3.1": 2.0})
        for image in images
    ]
    assert torch.equal(first, torch.cat([codes["layer3.1"] for codes in alone]))
    monkeypatch.setattr(small, "preactivations", None)
    assert torch.equal(decomposition.load_codes(small, images, here, 2.0), first)
