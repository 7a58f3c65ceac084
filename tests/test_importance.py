"""importance.py: on a linear network by hand, and every method on a real architecture."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_network, sparse_codes
from linear import GAMMA, Linear, U, V, concepts_of

from gig_helpers import Concepts
from gig_helpers.gig import class_relevance, gig
from gig_helpers.importance import METHODS, class_importance, interlayer_importance


@pytest.fixture
def net():
    return Linear()


@pytest.mark.parametrize("method", ["gig", "gradient", "ablation"])
def test_importance_of_a_linear_network(net, method):
    found = class_importance(method, net, U, V, [0, 1])
    torch.testing.assert_close(found[:, 0], GAMMA)
    assert (found[:, 1] == 0).all()
    # Σ_p u_pq ⟨A v_q, (0, 1)⟩
    found = interlayer_importance(method, net, U, V, "b", torch.tensor([[0.0, 3.0]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([0, 1, -1, 0]).double())


def test_activation_is_blind_to_the_target(net):
    found = class_importance("activation", net, -U, V, [0, 1])
    torch.testing.assert_close(found[0], torch.tensor([[3, 1, 1, 0]] * 2).double())


def test_cosine_of_concepts_alone(net):
    found = interlayer_importance("cosine", net, U, V, "b", torch.tensor([[2.0, 0.0]]))
    # A v_q = (1, 0), (0, 1), (2, −1), (3, 0)
    expected = torch.tensor([1, 0, 2 / math.sqrt(5), 1]).double()
    torch.testing.assert_close(found[0, 0], expected)
    found = class_importance("cosine", net, 0 * U, V, [0])
    torch.testing.assert_close(found[0, 0], torch.tensor([1, 1, -1, -1]).double())


def test_random_importance_is_seeded(net):
    first, again, other = (
        class_importance("random", net, U, V, [0], seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_random_in_use_puts_what_is_not_used_last(net):
    codes = U * torch.tensor([1.0, 0.0, 1.0, 0.0])
    whole, used = (
        class_importance(name, net, codes, V, [0], seed=1) for name in ("random", "random in use")
    )
    assert torch.equal(used[0, 0, [0, 2]], whole[0, 0, [0, 2]]) and not used[0, 0, [1, 3]].any()


def test_methods_say_what_they_are_and_cost():
    assert next(iter(METHODS)) == "gig", "the paper's comes first"
    for method in METHODS.values():
        assert method.importance.__doc__ and method.cost
    dear = [name for name, method in METHODS.items() if not method.affordable]
    assert dear == ["cosine", "ablation"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_a_real_architecture(name):
    network = random_network("v1.5", torch.float64, width_per_group=8)
    codes = sparse_codes(2, 4, 6, share=0.5)
    own = Concepts(torch.randn(6, 512), torch.randn(512), torch.arange(6), "layer2.0")
    found = interlayer_importance(name, network, codes, own, "layer3.0", torch.randn(3, 1024))
    assert found.shape == (2, 3, 6) and found.isfinite().all()
    found = class_importance(name, network, codes, own, [[1], [3]])
    assert found.shape == (2, 1, 6) and found.isfinite().all()


def test_paths_begin_at_the_concepts_own_beta():
    network = random_network("v1.5", torch.float64, width_per_group=8)
    codes, block, target = sparse_codes(2, 4, 6, dtype=torch.float64), "layer2.0", "layer3.0"
    shift = network.bn_shift(block)
    here = Concepts(torch.randn(6, 512).double(), shift, torch.arange(6), block)
    own = replace(here, beta=shift + 1)
    vectors = torch.randn(3, 1024).double()
    options = {"points": 4}
    found = class_importance("gig", network, codes, own, [1, 3], **options)
    given = (network, codes, own.vectors, block)
    wanted = class_relevance(*given, [1, 3], beta=own.beta, **options)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, class_relevance(*given, [1, 3], **options))
    found = interlayer_importance("gig", network, codes, own, target, vectors, **options)
    wanted = gig(*given, target, vectors, beta=own.beta, **options)
    torch.testing.assert_close(found, wanted)
    for method in ("ablation", "cosine"):
        found, other = (class_importance(method, network, codes, c, [1, 3]) for c in (own, here))
        assert not torch.allclose(found, other)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda n: class_importance("best", n, U, V, [0]), "unknown method 'best'"),
        (
            lambda n: class_importance("gig", n, U, concepts_of(V.vectors[:3]), [0]),
            "do not fit a with 3",
        ),
        (lambda n: class_importance("gig", n, U[0], V, [0]), "do not fit a with 3"),
        (
            lambda n: class_importance(
                "gig", n, U, Concepts(torch.eye(4), torch.zeros(4), torch.arange(4), "a"), [0]
            ),
            "do not fit a with 3",
        ),
        (lambda n: class_importance("gig", n, U / 0, V, [0]), "codes hold NaN"),
        (lambda n: class_importance("gig", n, U[:, :2], V, [0]), "2 positions are no map"),
    ],
)
def test_bad_input_is_named(net, call, match):
    with pytest.raises(ValueError, match=match):
        call(net)
