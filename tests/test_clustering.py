"""clustering.py: a scikit-learn estimator that does what appendix B says, many splits at a time."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import BisectingKMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from gig_helpers import clustering
from gig_helpers.clustering import BisectingSphericalKMeans, cut, nearest_centre

EXPECTED_FAILURES = {
    "check_estimators_dtypes": "its integer data hold a row of zeros, which has no direction",
    "check_non_transformer_estimators_n_iter": "every split has a number of iterations of its own",
}


@parametrize_with_checks(
    [BisectingSphericalKMeans()], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
def test_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def correlated(n, channels, seed=0):
    """Vectors of a few dozen directions with noise: neither uniform nor well apart."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((24, channels))
    return directions[rng.integers(24, size=n)] + 0.7 * rng.standard_normal((n, channels))


def mean_cosine(x, labels):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sums = np.zeros((labels.max() + 1, x.shape[1]))
    np.add.at(sums, labels, unit)
    centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return (unit * centroids[labels]).sum(1).mean()


def one_at_a_time(x, k, seed, tol=0.0, max_iter=100):
    """Appendix B word for word: split the largest cluster, look again, until there are k.

    Only the start of a split is shared with the module, since the random draws must be the same.
    """
    unit = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    root = np.uint64(np.random.RandomState(seed).randint(2**31 - 1))
    clusters, seeds = [np.arange(len(x))], [root]
    while len(clusters) < k:
        largest = max(range(len(clusters)), key=lambda c: (len(clusters[c]), -c))
        members, seed_ = clusters[largest], seeds[largest]
        points = unit[members]
        everywhere = torch.ones(1, len(points), dtype=torch.bool)
        second = clustering._start(points[None], everywhere, clustering._mix(np.array([seed_])))[0]
        for _ in range(max_iter):
            a, b = points[~second].sum(0), points[second].sum(0)
            moved = points @ (b / b.norm()) > points @ (a / a.norm())
            changed = int((moved != second).sum())
            second = moved
            if changed <= tol * len(points):
                break
        assert 0 < int(second.sum()) < len(points)
        clusters[largest] = members[~second.numpy()]
        clusters.append(members[second.numpy()])
        seeds[largest], child = clustering._mix(np.array([seed_, ~seed_]))
        seeds.append(child)
    labels = np.empty(len(x), int)
    for label, members in enumerate(clusters):
        labels[members] = label
    return labels


@pytest.mark.parametrize("iterations", [0, 300])
def test_a_split_starts_between_two_points_and_turns_across_the_widest_direction(
    iterations, monkeypatch
):
    monkeypatch.setattr(clustering, "_POWER_ITERATIONS", iterations)
    x = correlated(40, 6) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    padded, seeds = torch.zeros(8, 50, 6).double(), np.arange(8, dtype=np.uint64)
    padded[:, :40] = torch.from_numpy(unit)
    found = clustering._start(padded, padded.any(2), seeds).numpy()
    assert not found[:, 40:].any()
    for seed, second in zip(seeds, found[:, :40], strict=True):
        draws = (clustering._mix(np.array([seed, ~seed])) >> np.uint64(11)) * 2.0**-53
        one = unit[int(draws[0] * 40)]
        far = np.cumsum(1 - unit @ one)  # k-means++: half the squares of distances
        direction = unit[np.searchsorted(far, draws[1] * far[-1], side="right")] - one
        widest = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        expected = centred @ (direction if not iterations else widest) > 0
        assert (second == expected).all() or (iterations and (second == ~expected).all())


@pytest.mark.parametrize("chunk", [2000, clustering._CHUNK])
@pytest.mark.parametrize("k", [2, 7, 64, 199])
def test_batches_equal_one_split_at_a_time(k, chunk, monkeypatch):
    x = correlated(400, 16)
    monkeypatch.setattr(clustering, "_CHUNK", chunk)
    model = BisectingSphericalKMeans(k, tol=0, random_state=3).fit(x)
    np.testing.assert_array_equal(model.labels_, one_at_a_time(x, k, 3))


@pytest.mark.parametrize("stop", [{"tol": 0.05}, {"tol": 0.3}, {"tol": 0, "max_iter": 2}])
def test_a_split_stops_by_itself_wherever_it_is_in_a_batch(stop):
    x = correlated(400, 16)
    labels = BisectingSphericalKMeans(64, random_state=3, **stop).fit(x).labels_
    np.testing.assert_array_equal(labels, one_at_a_time(x, 64, 3, **stop))
    assert (labels != one_at_a_time(x, 64, 3)).any()


def test_finds_directions_whatever_the_lengths():
    rng = np.random.default_rng(0)
    directions = np.eye(8)
    truth = rng.integers(8, size=400)
    x = directions[truth] + 0.05 * rng.standard_normal((400, 8))
    x *= rng.lognormal(sigma=2, size=(400, 1))
    # Splitting the largest first may cut one direction before it parts two others.
    model = BisectingSphericalKMeans(16, n_init=5, random_state=0).fit(x)
    purity = sum(np.bincount(truth[model.labels_ == c]).max() for c in range(16)) / 400
    assert purity == 1


def test_two_clusters_by_hand():
    x = np.array([[1.0, 0.1], [5.0, -0.5], [0.1, 2.0], [-0.1, 1.0]])
    model = BisectingSphericalKMeans(2, random_state=0).fit(x)
    assert adjusted_rand_score(model.labels_, [0, 0, 1, 1]) == 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sums = unit[:2].sum(0)
    center = model.cluster_centers_[model.labels_[0]]
    np.testing.assert_allclose(center, sums / np.linalg.norm(sums))


@pytest.mark.parametrize(("k", "n_init"), [(150, 1), (30, 4)])
def test_no_looser_than_scikit_learn(k, n_init):
    # Few more clusters than directions: one start then varies by 0.004 with the seed and is on
    # average 0.003 looser than scikit-learn, which several starts make up for. See n_init.
    x = correlated(1000, 32, seed=1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    ours, theirs = (
        np.mean([mean_cosine(x, make(seed)) for seed in range(4)])
        for make in (
            lambda seed: (
                BisectingSphericalKMeans(k, n_init=n_init, random_state=seed).fit(x).labels_
            ),
            lambda seed: (
                BisectingKMeans(k, bisecting_strategy="largest_cluster", random_state=seed)
                .fit(unit)
                .labels_
            ),
        )
    )
    assert ours > theirs - 0.002


def test_more_starts_are_tighter():
    x = correlated(800, 16)
    one, five = (
        mean_cosine(x, BisectingSphericalKMeans(40, n_init=n, random_state=0).fit(x).labels_)
        for n in (1, 5)
    )
    assert five > one


def test_of_more_starts_the_one_with_the_largest_sum_of_cosines_wins():
    x, better = np.random.default_rng(0).standard_normal((40, 6)), 0
    for seed in range(8):
        fits = (
            BisectingSphericalKMeans(2, n_init=n, random_state=seed).fit(x) for n in range(1, 6)
        )
        gained = np.diff([mean_cosine(x, fit.labels_) for fit in fits])
        assert (gained > -1e-12).all()
        better += (gained > 1e-3).sum()
    assert better > 4


def test_seed_decides():
    x = correlated(300, 8)
    first, again, other = (
        BisectingSphericalKMeans(20, random_state=seed).fit(x).labels_ for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_sizes_are_even_since_the_largest_is_split():
    sizes = np.bincount(
        BisectingSphericalKMeans(50, random_state=0).fit(correlated(500, 8)).labels_
    )
    assert sizes.min() >= 1 and sizes.sum() == 500
    # No cluster was split unless it was the largest, so a parent of any was at least as large.
    assert sizes.max() <= 500 / 50 * 4


def repeated(n, channels):
    """Few directions, each of them many times."""
    return correlated(n // 8, channels)[np.random.default_rng(0).integers(n // 8, size=n)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "x",
    [
        correlated(300, 16),
        correlated(600, 32).astype(np.float32),
        np.random.default_rng(0).choice([-1.0, 1.0], (200, 6)),  # cosines with many ties
        repeated(200, 8).astype(np.float32),
        np.ones((40, 3)),
    ],
    ids=["directions", "float32", "ties", "repeated", "equal"],
)
def test_a_cut_of_the_tree_is_a_fit_with_fewer_clusters(x, monkeypatch):
    monkeypatch.setattr(clustering, "_CHUNK", 8000)
    model = BisectingSphericalKMeans(40, random_state=1).fit(x)
    finer = model.labels_
    np.testing.assert_array_equal(model.labels_at(40), finer)
    for k in range(39, 0, -1):
        labels = model.labels_at(k)
        fit = BisectingSphericalKMeans(k, random_state=1).fit(x)
        np.testing.assert_array_equal(labels, fit.labels_)
        np.testing.assert_array_equal(model.parents_[:k], fit.parents_)
        # Nested: one pair of clusters less, and no other point has another label.
        np.testing.assert_array_equal(labels, np.where(finer == k, model.parents_[k], finer))
        finer = labels


def test_batches_do_not_depend_on_the_number_of_clusters(monkeypatch):
    # Rounding depends on a batch's shape, but seldom so much that a label changes.
    x, shapes = correlated(300, 16), []
    split = BisectingSphericalKMeans._two_means
    monkeypatch.setattr(clustering, "_CHUNK", 8000)
    monkeypatch.setattr(
        BisectingSphericalKMeans,
        "_two_means",
        lambda self, points, *rest: shapes.append(points.shape) or split(self, points, *rest),
    )
    BisectingSphericalKMeans(200, random_state=0).fit(x)
    longest = shapes.copy()
    for k in (2, 20, 90, 150):
        shapes.clear()
        BisectingSphericalKMeans(k, random_state=0).fit(x)
        assert shapes == longest[: len(shapes)]
        assert k < 90 or len(shapes) > 4


def test_tree_by_hand():
    # Three of the four directions lie together, and of them two: each split takes the largest.
    degrees = np.deg2rad([0.0, 1, 2, 3, 20, 21, 22, 120, 121])
    x = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    model = BisectingSphericalKMeans(3, random_state=0).fit(x)
    assert model.parents_.dtype == np.int64
    large = model.labels_at(2)[0]
    assert model.parents_.tolist() == [0, 0, large]
    assert [len(set(part)) for part in np.split(model.labels_at(2), [7])] == [1, 1]
    assert [len(set(part)) for part in np.split(model.labels_, [4, 7])] == [1, 1, 1]
    assert set(model.labels_[:7]) == {large, 2}
    assert model.labels_at(1).tolist() == [0] * 9


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [0] * 6), (2, [0, 1, 1, 0, 1, 1]), (4, [0, 1, 2, 3, 2, 2]), (6, [0, 1, 2, 3, 4, 5])],
)
def test_cut_by_hand(k, expected):
    labels = cut(torch.tensor([0, 0, 1, 0, 2, 4]), k)
    assert labels.dtype == torch.int64 and labels.tolist() == expected


def test_cut_of_one_long_branch():
    parents = torch.arange(1000).sub(1).clamp(min=0)
    for k in (1, 2, 500, 999, 1000):
        assert cut(parents, k).tolist() == [min(label, k - 1) for label in range(1000)]


@pytest.mark.parametrize("k", [-1, 0, 6])
def test_no_cut_where_the_tree_has_no_clusters(k):
    model = BisectingSphericalKMeans(5, random_state=0)
    with pytest.raises(NotFittedError):
        model.labels_at(2)
    model.fit(correlated(20, 4))
    with pytest.raises(ValueError, match=f"from 1 to 5, .* got {k}"):
        model.labels_at(k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scaled", [False, True])
def test_fewer_directions_than_clusters_warn(dtype, scaled):
    x = correlated(5, 16)[np.arange(60) % 5]
    if scaled:  # one direction, but after rounding no longer equal to the last bit
        x = x * np.random.default_rng(0).lognormal(size=(60, 1))
    x = x.astype(dtype)
    for k in (9, 30, 60):
        with pytest.warns(ConvergenceWarning, match=f"^5 distinct .* n_clusters={k}: equal") as w:
            model = BisectingSphericalKMeans(k, random_state=0).fit(x)
        assert len(w) == 1 and w[0].filename == __file__
        assert sorted(set(model.labels_)) == list(range(k))


@pytest.mark.parametrize(
    ("x", "k"),
    [
        (correlated(60, 4), 60),
        (correlated(300, 16).astype(np.float32), 300),
        (correlated(5, 16)[np.arange(60) % 5], 5),
        # One among thousands differs.
        (np.repeat([[1.0, 0, 0], [1, 0.02, 0]], [4999, 1], axis=0).astype(np.float32), 2),
        # Close, but not equal.
        (np.array([1.0, 0, 0]) + 0.01 * np.random.default_rng(0).normal(size=(99, 3)), 50),
        (np.ones((6, 2)), 1),
        (np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 4),
    ],
)
def test_distinct_directions_do_not_warn(x, k):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BisectingSphericalKMeans(k, random_state=0).fit(x)


@pytest.mark.filterwarnings("ignore:1 distinct direction")
@pytest.mark.parametrize("k", [1, 3, 6])
def test_equal_vectors_are_still_parted(k):
    x = np.tile([[1.0, 2.0, 3.0]], (6, 1)) * np.arange(1, 7)[:, None]
    model = BisectingSphericalKMeans(k, random_state=0).fit(x)
    assert sorted(set(model.labels_)) == list(range(k))
    np.testing.assert_allclose(model.cluster_centers_, np.tile(x[0] / np.sqrt(14), (k, 1)))


def test_a_tie_stays_in_the_first_half():
    x = np.array([[1.0, 0.0], [-1.0, 0.0]] * 20 + [[0.0, 1.0], [0.0, -1.0]])
    # Of this seed the first two points are opposite, so that the others are as near to either.
    labels = BisectingSphericalKMeans(2, random_state=1).fit(x).labels_
    assert labels[0] != labels[1] and labels[40:].tolist() == [0, 0]


def test_opposite_vectors():
    x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert set(BisectingSphericalKMeans(2, random_state=0).fit(x).labels_) == {0, 1}


def test_predict_takes_the_nearest_centroid():
    x = correlated(200, 8)
    model = BisectingSphericalKMeans(10, random_state=0).fit(x)
    new = correlated(50, 8, seed=5)
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    expected = (unit @ model.cluster_centers_.T).argmax(1)
    np.testing.assert_array_equal(model.predict(new * 7), expected)
    np.testing.assert_array_equal(model.predict(torch.from_numpy(new)), expected)
    centres = torch.from_numpy(model.cluster_centers_)
    # Centres of any length: cosines alone count.
    scaled = centres * torch.arange(1.0, 11)[:, None]
    assert nearest_centre(torch.from_numpy(new), scaled).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (np.ones((3, 2)), 4, "fewer than n_clusters=4"),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), 1, r"1 of 2 rows are zero .*\[1\]"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), 1, "NaN"),
        (np.ones(4), 1, "2D"),
        (np.ones((3, 2)), 0, "n_clusters must be at least 1"),
    ],
)
def test_bad_input(x, k, message):
    with pytest.raises(ValueError, match=message):
        BisectingSphericalKMeans(k).fit(x)


def test_without_a_copy_the_rows_become_unit_vectors():
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    given, model = x.copy(), BisectingSphericalKMeans(5, random_state=0)
    labels = model.fit(given).labels_
    np.testing.assert_array_equal(given, x)
    np.testing.assert_array_equal(model.set_params(copy_x=False).fit(given).labels_, labels)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(given, unit, rtol=1e-6)  # one rounding of a division, one of a norm


def test_a_pile_of_copies_is_split_last():
    # A digit's background: one direction in two rows of three.
    distinct = correlated(40, 8)
    x = np.concatenate([distinct, np.repeat(correlated(1, 8, seed=9), 80, axis=0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = BisectingSphericalKMeans(41, random_state=0).fit(x).labels_
    assert len(set(labels[40:])) == 1 and len(set(labels[:40])) == 40
    with pytest.warns(ConvergenceWarning, match="^41 distinct .* n_clusters=50"):
        BisectingSphericalKMeans(50, random_state=0).fit(x)
