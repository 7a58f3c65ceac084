"""GIG against Captum, finite differences and its own axioms."""

import re
import warnings

import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from conftest import random_network, sparse_codes
from torch import nn

from gig_helpers import Network, load_pictures
from gig_helpers import gig as module
from gig_helpers.concepts import extract
from gig_helpers.data.profiles import CHAIN
from gig_helpers.gig import class_relevance, gig, integrate
from gig_helpers.lasso import lasso_codes
from gig_helpers.network import Segment

PAIRS = [
    ("layer1.0", "layer1.1"),
    ("layer1.0", "layer2.0"),
    ("layer1.1", "layer3.1"),
    ("layer2.0", "layer2.1"),
    ("layer2.1", "layer4.0"),
    ("layer3.1", "layer4.1"),
    ("layer1.0", "layer4.1"),
]


@pytest.fixture(scope="module")
def net() -> Network:
    return eight_blocks()


def eight_blocks(seed: int = 0) -> Network:
    """Bottleneck blocks in float64."""
    return random_network(
        "v1.5",
        torch.float64,
        layers=(2, 2, 2, 2),
        seed=seed,
        input_size=(96, 64),
        num_classes=7,
        width_per_group=8,
    )


def case(net, source, pictures=2, shape=(3, 2), k=11, dtype=torch.float64):
    """Sparse random codes (N, HW, k) and concepts of one block."""
    generator = torch.Generator().manual_seed(1)
    codes = sparse_codes(pictures, shape[0] * shape[1], k, dtype=dtype)
    concepts = torch.randn(k, net.channels(source), generator=generator, dtype=dtype)
    return codes, concepts


def directions(net, block, targets=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(targets, net.channels(block), generator=generator, dtype=dtype)


def on_codes(net, concepts, source, beta, shape, value):
    """U ↦ T(UV + β), as Captum wants it."""

    def forward(u):
        x = (u @ concepts + beta).transpose(1, 2).reshape(len(u), -1, *shape)
        return value(x)

    return forward


def concept_value(net, source, target, vectors):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return lambda x: torch.einsum("bchw,tc->bt", net.between(x, source, target), unit)


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# ----------------------------------------------------------------------------- against Captum


@pytest.mark.parametrize("baseline", ["beta", "zero"])
@pytest.mark.parametrize("source, target", PAIRS)
def test_concepts_agree_with_captum(net, source, target, baseline):
    codes, concepts = case(net, source)
    vectors = directions(net, target)
    beta = net.bn_shift(source) if baseline == "beta" else torch.zeros(net.channels(source))
    captum = IntegratedGradients(
        on_codes(net, concepts, source, beta, (3, 2), concept_value(net, source, target, vectors))
    )
    ours, delta = gig(
        net, codes, concepts, source, target, vectors, beta=net.bn_shift(source), points=7,
        baseline=baseline, positions=True, batch_size=5, return_convergence_delta=True,
    )  # fmt: skip
    assert ours.shape == (2, 3, 6, 11) and ours.dtype == torch.float64
    for t in range(3):
        theirs, their_delta = captum.attribute(
            codes, target=t, n_steps=7, method="gausslegendre", return_convergence_delta=True
        )
        # Two orders of summation in float64; rounding explains about 1e-14.
        assert relative(ours[:, t], theirs) < 1e-9
        torch.testing.assert_close(delta[:, t], their_delta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("baseline", ["beta", "zero"])
@pytest.mark.parametrize("source", ["layer1.1", "layer3.0", "layer4.1"])
def test_classes_agree_with_captum(net, source, baseline, output):
    codes, concepts = case(net, source)
    beta = net.bn_shift(source) if baseline == "beta" else torch.zeros(net.channels(source))

    def value(x):
        logits = net.logits_from(x, source)
        return logits if output == "logit" else logits.softmax(dim=1)

    captum = IntegratedGradients(on_codes(net, concepts, source, beta, (3, 2), value))
    ours = class_relevance(
        net, codes, concepts, source, [6, 0], beta=net.bn_shift(source), output=output,
        baseline=baseline, points=6, positions=True,
    )  # fmt: skip
    for t, number in enumerate([6, 0]):
        theirs = captum.attribute(codes, target=number, n_steps=6, method="gausslegendre")
        assert relative(ours[:, t], theirs) < 1e-9


@pytest.mark.parametrize(
    "rule", ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
)
def test_the_other_rules_are_captums(net, rule):
    codes, concepts = case(net, "layer3.0")
    value = concept_value(net, "layer3.0", "layer3.1", directions(net, "layer3.1"))
    beta = net.bn_shift("layer3.0")
    captum = IntegratedGradients(on_codes(net, concepts, "layer3.0", beta, (3, 2), value))
    theirs = captum.attribute(codes, target=1, n_steps=5, method=rule).sum(dim=1)
    ours = gig(
        net, codes, concepts, "layer3.0", "layer3.1", directions(net, "layer3.1"), beta=beta,
        rule=rule, points=5,
    )  # fmt: skip
    assert relative(ours[:, 1], theirs) < 1e-9


def test_layer_integrated_gradients_share_out_the_same_positions(net):
    # LayerIntegratedGradients attributes the channels of X; what a position's channels get
    # together is what its concepts get together.
    source, target = "layer2.1", "layer3.1"
    codes, concepts = case(net, source)
    vectors = directions(net, target)

    class Decoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.decode = nn.Linear(*concepts.shape)
            self.decode.weight.data, self.decode.bias.data = concepts.T, net.bn_shift(source)

        def forward(self, u):
            x = self.decode(u).transpose(1, 2).reshape(len(u), -1, 3, 2)
            return concept_value(net, source, target, vectors)(x)

    decoded = Decoded()
    captum = LayerIntegratedGradients(decoded, decoded.decode)
    theirs = captum.attribute(codes, target=1, n_steps=6, method="gausslegendre")
    beta = net.bn_shift(source)
    ours = gig(net, codes, concepts, source, target, vectors, beta=beta, points=6, positions=True)
    assert relative(ours[:, 1].sum(dim=2), theirs.sum(dim=2)) < 1e-9


# --------------------------------------------------------------------------- brute force, axioms


def test_finite_differences_of_equation_4():
    # With seed 0 a ReLU's kink lies so near to a point that a difference steps over it.
    net = eight_blocks(seed=1)
    source, target = "layer1.0", "layer2.0"
    codes, concepts = case(net, source, pictures=1, k=4)
    vectors = directions(net, target, targets=1)
    value = concept_value(net, source, target, vectors)
    forward = on_codes(net, concepts, source, net.bn_shift(source), (3, 2), value)
    steps = 200
    alphas = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    path = alphas[:, None, None] * codes
    brute = torch.zeros_like(codes[0])
    h = 1e-7
    for p, q in codes[0].nonzero():
        bump = torch.zeros_like(codes)
        bump[0, p, q] = h
        slope = (forward(path + bump) - forward(path - bump)) / (2 * h)
        brute[p, q] = codes[0, p, q] * slope.mean()
    options = {"beta": net.bn_shift(source), "points": steps, "positions": True}
    arguments = (net, codes[0], concepts, source, target, vectors)
    # At the same points: the error of a difference, 1e-16 / h.
    assert relative(gig(*arguments, rule="riemann_middle", **options)[0], brute) < 1e-6
    # At others: a ReLU's kink between two points costs up to half their distance of its jump.
    assert relative(gig(*arguments, **options)[0], brute) < 1e-2


def test_positions_add_up_and_pictures_do_not_mix(net):
    arguments = ("layer2.0", "layer3.1", directions(net, "layer3.1"))
    codes, concepts = case(net, "layer2.0")
    beta = net.bn_shift("layer2.0")
    kept = gig(net, codes, concepts, *arguments, beta=beta, positions=True, batch_size=3)
    summed = gig(net, codes, concepts, *arguments, beta=beta)
    torch.testing.assert_close(kept.sum(dim=2), summed, rtol=1e-10, atol=1e-12)
    alone = gig(net, codes[1], concepts, *arguments, beta=beta)
    assert alone.shape == (3, 11)
    torch.testing.assert_close(alone, summed[1], rtol=1e-10, atol=1e-12)


def test_targets_of_each_picture(net):
    codes, concepts = case(net, "layer3.0")
    vectors = directions(net, "layer4.0", targets=4)
    # So many points: by need, targets that are asked together get as many as the worst one takes.
    options = {"beta": net.bn_shift("layer3.0"), "points": 4}
    shared = gig(net, codes, concepts, "layer3.0", "layer4.0", vectors, **options)
    own = torch.stack([vectors[:2], vectors[2:]])
    each = gig(net, codes, concepts, "layer3.0", "layer4.0", own, **options)
    torch.testing.assert_close(each, torch.stack([shared[0, :2], shared[1, 2:]]))
    shared = class_relevance(net, codes, concepts, "layer3.0", [4, 2], **options)
    each = class_relevance(net, codes, concepts, "layer3.0", [[4], [2]], **options)
    torch.testing.assert_close(each, torch.stack([shared[0, :1], shared[1, 1:]]))


def test_linear_in_the_target_and_blind_to_its_length(net):
    codes, concepts = case(net, "layer3.0")
    a, b = directions(net, "layer3.1", targets=2)
    a, b = a / a.norm(), b / b.norm()
    total = 2 * a - 3 * b
    of = gig(
        net, codes, concepts, "layer3.0", "layer3.1", torch.stack([a, b, total, 9 * total]),
        beta=net.bn_shift("layer3.0"), points=8,
    )  # fmt: skip
    torch.testing.assert_close(total.norm() * of[:, 2], 2 * of[:, 0] - 3 * of[:, 1])
    torch.testing.assert_close(of[:, 3], of[:, 2])


def test_a_zero_code_gets_exactly_zero(net):
    codes, concepts = case(net, "layer3.0")
    codes[:, :, 4] = 0
    beta = net.bn_shift("layer3.0")
    kept = class_relevance(net, codes, concepts, "layer3.0", [1], beta=beta, positions=True)
    assert (kept[:, 0][codes == 0] == 0).all()
    assert (kept[:, 0][codes != 0] != 0).all()


def test_no_codes_at_all(net):
    codes, concepts = case(net, "layer3.0")
    nothing, delta = class_relevance(
        net, 0 * codes, concepts, "layer3.0", [1], beta=net.bn_shift("layer3.0"),
        return_convergence_delta=True,
    )  # fmt: skip
    assert (nothing == 0).all() and (delta == 0).all()


def test_a_linear_value_needs_no_quadrature(net):
    # T(X) = Σ ⟨x_p, a⟩: the attribution of q is ⟨v_q, a⟩ Σ_p u_pq whatever the rule.
    codes, concepts = case(net, "layer3.0")
    a = directions(net, "layer3.0", targets=1)[0]
    by_hand = codes.sum(dim=1) * (concepts @ a)
    beta = net.bn_shift("layer3.0")
    for rule in ("gausslegendre", "endpoint"):
        ours = integrate(
            lambda x, rows: torch.einsum("bpc,c->b", x, a)[:, None], codes, concepts, beta,
            points=2, rule=rule,
        )  # fmt: skip
        torch.testing.assert_close(ours[:, 0], by_hand)


def test_endpoint_is_gradient_times_code(net):
    codes, concepts = case(net, "layer3.0")
    value = net.logits_from
    u = codes.clone().requires_grad_()
    x = (u @ concepts + net.bn_shift("layer3.0")).transpose(1, 2).reshape(2, -1, 3, 2)
    value(x, "layer3.0")[:, 5].sum().backward()
    ours = class_relevance(
        net, codes, concepts, "layer3.0", [5], beta=net.bn_shift("layer3.0"), rule="endpoint",
        positions=True,
    )  # fmt: skip
    torch.testing.assert_close(ours[:, 0], codes * u.grad)


@pytest.mark.parametrize("positions", [False, True])
def test_the_rest_is_one_more_atom_at_each_position(net, positions):
    """A residual is an atom of its own at each position, with the code 1 (eq. 4)."""
    codes, concepts = case(net, "layer2.0")
    beta = net.bn_shift("layer2.0")
    n, p, k = codes.shape
    rest = torch.randn(n, p, concepts.shape[1], generator=torch.Generator().manual_seed(3)).double()
    options = {"beta": beta, "points": 4, "positions": positions}
    ours = class_relevance(net, codes, concepts, "layer2.0", [2, 5], rest=rest, **options)
    for i in range(n):
        u, v = torch.cat([codes[i], torch.eye(p).double()], dim=1), torch.cat([concepts, rest[i]])
        theirs = class_relevance(net, u, v, "layer2.0", [2, 5], **options)
        of_rest = theirs[..., k:].sum(dim=-1, keepdim=True)
        expected = torch.cat([theirs[..., :k], of_rest], dim=-1)
        torch.testing.assert_close(ours[i], expected)
    with pytest.raises(ValueError, match="does not fit"):
        class_relevance(net, codes, concepts, "layer2.0", [2], rest=rest[:, :-1], **options)


@pytest.mark.parametrize("baseline", ["beta", "zero"])
def test_a_tolerance_is_kept(net, baseline):
    codes, concepts = case(net, "layer3.1")
    arguments = (net, codes, concepts, "layer3.1", [0, 1])
    options = {
        "beta": net.bn_shift("layer3.1"), "baseline": baseline, "return_convergence_delta": True,
    }  # fmt: skip
    _, coarse = class_relevance(*arguments, points=7, rule="riemann_trapezoid", **options)
    values, delta = class_relevance(*arguments, **options)
    change = values.sum(dim=2) - delta
    assert (coarse.abs() > 1e-2 * change.abs()).any(), "the points it begins with would have done"
    assert (delta.abs() <= 1e-2 * change.abs()).all()
    # The same integral as many points of another rule find. Errors of single concepts may cancel
    # in the gap: with the six positions of this network they are up to 7 % where it is 1 %.
    exact = class_relevance(*arguments, points=512, **options)[0]
    assert ((values - exact).abs().sum(dim=2) <= 0.1 * exact.abs().sum(dim=2)).all()


def test_no_point_is_run_twice_and_targets_that_are_there_rest(net):
    """A path that is straight for one target and bent for the other: only the bent one goes on."""
    codes, concepts = case(net, "layer3.1", pictures=1)
    seen, backward = [], []

    def value(x, rows):
        seen.extend(x.detach().flatten(1).sum(1).tolist())
        straight = x.sum(dim=(1, 2))
        bent = x.square().sum(dim=(1, 2)).square() / 100
        for name, part in (("straight", straight), ("bent", bent)):
            # The other target's gradient passes here too, as zeros.
            part.register_hook(lambda g, name=name: backward.append(name) if g.any() else None)
        return torch.stack([straight, bent], dim=1)

    brought, delta = integrate(
        value, codes, concepts, net.bn_shift("layer3.1"), batch_size=1, tolerance=1e-3,
        return_convergence_delta=True,
    )  # fmt: skip
    change = brought.sum(dim=2) - delta
    assert (delta.abs() <= 1e-3 * change.abs()).all() and change[0, 1] > 1
    assert len(set(seen)) == len(seen) == backward.count("bent") > 7
    assert backward.count("straight") == 7


def test_a_tolerance_out_of_reach_warns(net, monkeypatch):
    monkeypatch.setattr(module, "MAX_POINTS", 12)
    codes, concepts = case(net, "layer1.1")
    given = net, codes, concepts, "layer1.1"
    options = {"beta": net.bn_shift("layer1.1"), "tolerance": 0.0}
    message = "tolerance 0.0 was not reached for 4 targets, first picture 0, target 0 .*, picture 0"
    with pytest.warns(UserWarning, match=message) as told:
        values, delta = class_relevance(*given, [3, 0], return_convergence_delta=True, **options)
    off, change = delta[0, 0].abs(), (values.sum(2) - delta)[0, 0].abs()
    assert f"picture 0, target 0 (off by {off:.1e} of {change:.1e})" in str(told[0].message)
    assert told[0].filename == __file__, "the line that asked"


class Cosine(nn.Module):
    """Logits that are cosines, which a path's length does not change."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return nn.functional.linear(
            nn.functional.normalize(x), nn.functional.normalize(self.weight)
        )


HEADS = {
    "softmax inside": lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)),
    "saturated softmax": lambda: nn.Sequential(
        nn.Linear(8, 4), nn.Hardtanh(-1e3, 1e3), nn.Softmax(1)
    ),
    "cosine head": Cosine,
    "norms of two": lambda: nn.Sequential(nn.GroupNorm(4, 8), nn.Linear(8, 4)),
}


@pytest.mark.parametrize("head", HEADS)
def test_quadrature_ends_whatever_the_head(head, monkeypatch):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*body, HEADS[head]()).double()  # in float32 a cosine's change is rounding
    network = Network(model, device="cpu", input_size=(16, 16))
    codes, concepts = torch.rand(2, 64, 3).double(), torch.randn(3, 8).double()
    if head == "saturated softmax":
        concepts *= 1e4
    passed, real = [], Segment.__call__
    monkeypatch.setattr(Segment, "__call__", lambda s, x: passed.append(len(x)) or real(s, x))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        values, delta = class_relevance(
            network, codes, concepts, "0", [0, 1, 2, 3],
            beta=torch.zeros(8).double(), return_convergence_delta=True,
        )  # fmt: skip
    assert sum(passed) <= 2 * (module.MAX_POINTS + 2) and values.isfinite().all()
    short = delta.abs() > 0.0101 * (values.sum(2) - delta).abs()
    text = " ".join(str(w.message) for w in told)
    # Those that it ends without, in the order in which it gave them up, and no others.
    wanted = {(f"{n}", f"{t}") for n, t in short.nonzero().tolist()}
    named = re.findall(r"picture (\d+), target (\d+)", text)
    assert len({*named}) == len(named) == min(5, len(wanted)) and {*named} <= wanted
    assert not wanted or f"was not reached for {len(wanted)} targets" in text


def test_a_target_that_hardly_changes_is_given_up():
    """The sum of normalised channels is the same everywhere on the path but for rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1),
        nn.InstanceNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    network = Network(model, device="cpu", input_size=(32, 32))
    source, target = network.blocks
    segment, passed = network.segment(source, target), []

    def value(x, rows):
        passed.extend(rows.tolist())
        return segment(x).sum(dim=(1, 2))[:, None]

    codes, concepts = torch.rand(256, 3), torch.randn(3, 8)
    with pytest.warns(UserWarning, match="picture 0, target 0 .*: .* or the target hardly changes"):
        integrate(value, codes, concepts, torch.zeros(8))
    assert len(passed) <= module.MAX_POINTS
    with pytest.warns(UserWarning, match="was not reached for 1 targets"):
        gig(network, codes, concepts, source, target, torch.randn(1, 8), beta=torch.zeros(8))


def test_what_is_within_rounding_takes_no_more_points(net):
    codes, concepts = case(net, "layer3.1", pictures=1)
    passed = []

    def value(x, rows):
        passed.extend(rows.tolist())
        noise = 1e-13 * (1e3 * x.detach().sum(dim=(1, 2))).sin()
        return (0 * x.sum(dim=(1, 2)) + 100 + noise)[:, None]

    with pytest.warns(UserWarning, match="or the target hardly changes along the path"):
        integrate(value, codes, concepts, net.bn_shift("layer3.1"))
    assert len(passed) == 7, "those that it begins with"


def test_a_jump_ends_where_no_point_lies_between_two(net):
    """No gradient says what a step brings: its interval is halved until floats are neighbours."""
    codes, concepts = case(net, "layer3.1", pictures=1)
    middle = (codes @ concepts).sum() / 3
    passed = []

    def value(x, rows):
        passed.extend(rows.tolist())
        step = (x.detach().sum(dim=(1, 2)) * middle.sign() > middle.abs()).to(x)
        return (0 * x.sum(dim=(1, 2)) + step)[:, None]

    with pytest.warns(UserWarning, match="was not reached for 1 targets"):
        brought = integrate(value, codes, concepts, 0 * net.bn_shift("layer3.1"))
    assert not brought.any() and len(passed) < 2 * 64, "a double has 53 digits"


def test_no_grad_outside_does_not_matter(net):
    codes, concepts = case(net, "layer3.0")
    options = {"beta": net.bn_shift("layer3.0"), "points": 4}
    expected = class_relevance(net, codes, concepts, "layer3.0", [1], **options)
    with torch.no_grad():
        within = class_relevance(net, codes, concepts, "layer3.0", [1], **options)
    torch.testing.assert_close(within, expected)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"target": "layer2.0"}, ValueError, "layer2.0 must come after source layer3.0"),
        ({"target": "layer3.0"}, ValueError, "must come after"),
        ({"target": "layer9.0"}, KeyError, "layer9.0"),
        ({"source": "layer3.7"}, KeyError, "layer3.7"),
        ({"codes": torch.ones(2, 6, 10)}, ValueError, "do not fit"),
        ({"codes": torch.ones(6)}, ValueError, "do not fit"),
        ({"concepts": torch.ones(11, 5)}, ValueError, "concepts have 5"),
        ({"codes": torch.full((2, 6, 11), torch.nan)}, ValueError, "codes hold NaN"),
        ({"concepts": torch.full((11, 64), torch.inf)}, ValueError, "concepts hold NaN or inf"),
        ({"codes": [[1.0]]}, TypeError, "codes: expected a tensor, got list"),
        ({"codes": torch.ones(5, 11)}, ValueError, "5 positions are no map of the shape of"),
        ({"beta": torch.zeros(3)}, ValueError, r"beta has \(3,\)"),
        ({"beta": torch.full((1024,), torch.nan)}, ValueError, "beta hold NaN"),
        ({"target_vectors": torch.ones(3, 5)}, ValueError, "target_vectors have 5 channels"),
        ({"target_vectors": torch.ones(3, 1, 1024)}, ValueError, "do not fit codes"),
        ({"target_vectors": torch.zeros(1, 1024)}, ValueError, "zero vector"),
        ({"target_vectors": torch.full((1, 1024), torch.nan)}, ValueError, "target_vectors hold"),
        ({"baseline": "mean"}, ValueError, "unknown baseline 'mean'"),
        ({"rule": "simpson"}, ValueError, "unknown rule 'simpson'"),
        ({"points": 1}, ValueError, "points must be 2 or more, not 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be positive"),
        ({"tolerance": -0.1}, ValueError, "tolerance must not be negative"),
    ],
)
def test_bad_input_is_named(net, change, error, match):
    codes, concepts = case(net, "layer3.0")
    arguments = {
        "codes": codes, "concepts": concepts, "source": "layer3.0", "target": "layer3.1",
        "target_vectors": directions(net, "layer3.1"), "beta": net.bn_shift("layer3.0"), **change,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        gig(net, **arguments)


@pytest.mark.parametrize("classes", [[7], [-1], [0.5], [], [[1], [2], [3]]])
def test_bad_classes_are_named(net, classes):
    given = (net, *case(net, "layer3.0"), "layer3.0")
    beta = net.bn_shift("layer3.0")
    with pytest.raises(ValueError, match="classes"):
        class_relevance(*given, classes, beta=beta)
    with pytest.raises(ValueError, match="unknown output"):
        class_relevance(*given, [1], beta=beta, output="p")


def test_where_a_path_begins_is_never_guessed(net):
    codes, concepts = case(net, "layer3.0")
    with pytest.raises(TypeError, match="beta"):
        gig(net, codes, concepts, "layer3.0", "layer3.1", directions(net, "layer3.1"))
    with pytest.raises(TypeError, match="beta"):
        class_relevance(net, codes, concepts, "layer3.0", [1])


# ------------------------------------------------------------------------------ the real network


@pytest.mark.slow
def test_the_default_number_of_points_is_complete(network):
    """On 20 photographs, every pair of the chain, and the class: a gap of at most 1 %."""
    pictures = load_pictures("sample")
    wholes = [i for i, box in enumerate(pictures.boxes) if box == (0, 0, 1, 1)][:20]
    images = pictures[wholes]
    with torch.no_grad():
        maps = network.preactivations(images, CHAIN)
        classes = network.logits(images).argmax(dim=1)
    generator, concepts = torch.Generator().manual_seed(0), {}
    for block, x in maps.items():
        flat = x.transpose(0, 1).flatten(1).T
        some = flat[torch.randperm(len(flat), generator=generator)[:600]]
        concepts[block] = extract(some, network.bn_shift(block), 100)
    gaps = {}
    for source, target in zip(CHAIN, (*CHAIN[1:], None), strict=True):
        v, beta = concepts[source].vectors, concepts[source].beta
        for n, x in enumerate(maps[source].flatten(2).transpose(1, 2)):
            lam = 0.2 * float(((x - beta) @ v.T).abs().max())
            given = network, lasso_codes(x, v, lam, beta=beta, tol=1e-3), v, source
            if target is None:
                values, delta = class_relevance(
                    *given, classes[n : n + 1], beta=beta, return_convergence_delta=True
                )
            else:
                unit = torch.nn.functional.normalize(concepts[target].vectors, dim=1)
                present = (maps[target][n].flatten(1).T @ unit.T).sum(dim=0)
                fullest = unit[present.topk(1).indices]
                values, delta = gig(
                    *given, target, fullest, beta=beta, return_convergence_delta=True
                )
            gap = delta.abs() / (values.sum(dim=1) - delta).abs()
            gaps[source] = max(gaps.get(source, 0.0), float(gap.max()))
    # The bound, plus what float32 loses where the change is computed back from the sum.
    assert max(gaps.values()) <= 0.01 + 1e-4, gaps


@pytest.mark.parametrize("source, target", list(zip(CHAIN, (*CHAIN[1:], None), strict=True)))
def test_the_real_network_agrees_with_captum(network, source, target):
    side = {"1": 56, "2": 28, "3": 14, "4": 7}[source[5]]
    codes, concepts = case(network, source, 1, (side, side), k=6, dtype=torch.float32)
    concepts = concepts / concepts.norm(dim=1, keepdim=True)
    options = {"beta": network.bn_shift(source), "points": 3}
    if target is None:
        value = lambda x: network.logits_from(x, source)[:, [7, 3]]  # noqa: E731
        ours = class_relevance(network, codes, concepts, source, [7, 3], **options)
    else:
        vectors = directions(network, target, 2, dtype=torch.float32)
        value = concept_value(network, source, target, vectors)
        ours = gig(network, codes, concepts, source, target, vectors, **options)
    beta = network.bn_shift(source)
    captum = IntegratedGradients(on_codes(network, concepts, source, beta, (side, side), value))
    for t in range(2):
        theirs = captum.attribute(codes, target=t, n_steps=3, method="gausslegendre")
        # The bound for float32; sums run over up to 3136 positions.
        assert relative(ours[:, t], theirs.sum(dim=1)) < 1e-4
