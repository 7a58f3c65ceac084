"""Bisecting spherical k-means, a scikit-learn estimator (section 3.2, appendix B)."""

import heapq
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 2**21
"""Floats that one batch of splits gathers: 8 MB, so that its iterations stay in the cache."""
_POWER_ITERATIONS = 8


class BisectingSphericalKMeans(ClusterMixin, BaseEstimator):
    """Bisecting spherical k-means: split the largest cluster in two until there are enough.

    A point belongs to the centroid with the larger cosine; a centroid is the normalised sum of
    its points (appendix B). "Largest" is the number of points, ties go to the lowest label;
    points of one direction are parted only when no others are left.

    A split depends on nothing but its cluster's points and a seed that the cluster inherits from
    its parent. So the largest clusters are split many at a time, and the result is that of
    splitting one after the other. The splits form a tree, which :func:`cut` cuts at any smaller k.

    Parameters
    ----------
    n_clusters
        Number of clusters k, at most the number of points.
    max_iter
        Iterations of one split, at most.
    n_init
        Starts a split; the one with the largest sum of cosines wins. One is enough for PFVs and
        many clusters; take more for few clusters that are well apart.
    tol
        A split has converged when no more than this share of its points changes sides.
    random_state
        Seed, NumPy ``RandomState`` or ``None``.
    device
        Where torch computes; ``None``: CUDA where there is a GPU, else the CPU.
    copy_x
        ``False`` spares a copy of X, whose rows then become unit vectors in place.

    Attributes
    ----------
    labels_ : ndarray of shape (N,)
    cluster_centers_ : ndarray of shape (k, C)
        Unit centroids. Concept vectors are averages instead:
        :func:`gig_helpers.concepts.concept_vectors`.
    parents_ : ndarray of shape (k,)
        The tree: split t cut the cluster ``parents_[t]`` < t in two, which are called that and t
        from then on; ``parents_[0]`` is 0.
    n_features_in_ : int

    Examples
    --------
    >>> x = [[1.0, 0.1], [5.0, -0.5], [0.1, 2.0], [-0.1, 1.0]]
    >>> model = BisectingSphericalKMeans(2, random_state=0).fit(x)
    >>> labels = model.labels_
    >>> bool(labels[0] == labels[1]), bool(labels[2] == labels[3]), bool(labels[0] == labels[2])
    (True, True, False)
    >>> bool(model.predict([[9.0, 0.0]])[0] == labels[0])
    True
    """

    def __init__(
        self, n_clusters: int = 8, *, max_iter: int = 100, n_init: int = 1, tol: float = 1e-3,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None, copy_x: bool = True,
    ):  # fmt: skip
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.n_init = n_init
        self.tol = tol
        self.random_state = random_state
        self.device = device
        self.copy_x = copy_x

    def fit(self, X: ArrayLike | Tensor, y: None = None) -> "BisectingSphericalKMeans":
        """Cluster the rows of X by direction.

        Parameters
        ----------
        X
            (N, C), centred by the caller (x − β); rows are normalised here.
        y
            Ignored.

        Raises
        ------
        ValueError
            If X is not finite, has a row of zeros, which points nowhere, or fewer rows than
            ``n_clusters``.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If points of equal direction had to be split, as where there are fewer directions than
            ``n_clusters``.
        """
        for name, least in (("n_clusters", 1), ("max_iter", 1), ("n_init", 1), ("tol", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        unit = self._unit(X, reset=True)
        if self.n_clusters > len(unit):
            raise ValueError(
                f"n_samples={len(unit)} is fewer than n_clusters={self.n_clusters}: "
                "ask for fewer clusters or give more PFVs"
            )
        root = check_random_state(self.random_state).randint(2**31 - 1)
        labels, parents, arbitrary = self._grow(unit, np.uint64(root))
        if arbitrary:
            warnings.warn(
                f"{self.n_clusters - arbitrary} distinct directions found, which is fewer than "
                f"n_clusters={self.n_clusters}: equal points were split, and clusters share a "
                "centre; ask for fewer clusters or leave out repeated points",
                ConvergenceWarning,
                stacklevel=2,
            )
        sums = torch.zeros(self.n_clusters, unit.shape[1], dtype=unit.dtype, device=unit.device)
        sums.index_add_(0, torch.from_numpy(labels).to(unit.device), unit)
        self.labels_, self.parents_ = labels, parents
        self.cluster_centers_ = F.normalize(sums, dim=1).cpu().numpy()
        return self

    def labels_at(self, n_clusters: int) -> NDArray[np.int64]:
        """Label each point as a fit with fewer clusters would: the tree, cut higher up.

        Parameters
        ----------
        n_clusters
            From 1 to k.

        Returns
        -------
        ndarray of shape (N,)
            ``labels_`` of a fit of the same rows and seed with ``n_clusters``, to the last label.

        Raises
        ------
        ValueError
            If ``n_clusters`` is not from 1 to k.

        Examples
        --------
        >>> x = np.random.default_rng(0).normal(size=(50, 4))
        >>> model = BisectingSphericalKMeans(20, random_state=0).fit(x)
        >>> fewer = BisectingSphericalKMeans(7, random_state=0).fit(x)
        >>> bool((model.labels_at(7) == fewer.labels_).all())
        True
        """
        check_is_fitted(self)
        return cut(torch.from_numpy(self.parents_), n_clusters).numpy()[self.labels_]

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Label (N,) of the centroid with the largest cosine to each row of X (N, C).

        A point may lie nearer to a centroid of another branch of the tree than to its own, so
        on the training data this can differ from ``labels_``.
        """
        check_is_fitted(self)
        unit = self._unit(X, reset=False)
        centers = torch.from_numpy(self.cluster_centers_).to(unit)
        return nearest_centre(unit, centers).cpu().numpy()

    def _unit(self, X: ArrayLike | Tensor, reset: bool) -> Tensor:
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        X = validate_data(self, X, reset=reset, dtype=[np.float32, np.float64])
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        own = torch.tensor(X) if self.copy_x or not reset else torch.from_numpy(X)
        unit = own.to(device)
        norms = unit.norm(dim=1, keepdim=True)
        if len(unit) == 1 and not norms.any():
            raise ValueError("one PFV cannot be clustered, for it is its own mean: sample more")
        if len(zero := torch.nonzero(norms[:, 0] == 0)[:, 0]):
            raise ValueError(
                f"{len(zero)} of {len(unit)} rows are zero after centring and point nowhere "
                f"(first: {zero[:5].tolist()}): leave them out"
            )
        # In place: all PFVs of a block are the most that this module holds.
        return unit.div_(norms)

    def _grow(
        self, unit: Tensor, root: np.uint64
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Labels, the tree, and how many splits parted points of one direction."""
        # The heap orders clusters as the one-at-a-time method would take them, by size and label.
        # When the first one has not been split yet, the next ones in line are split with it: as
        # many as fit, even past the last split, since rounding depends on a batch's shape and the
        # first splits must not depend on how many follow.
        heap = [(False, -len(unit), 0, np.arange(len(unit)), root)]
        ready: dict[int, tuple[NDArray[np.bool_], bool]] = {}
        parents = np.zeros(self.n_clusters, np.int64)
        arbitrary = 0
        while (new := len(heap)) < self.n_clusters:
            if heap[0][2] not in ready:
                room = max(1, _CHUNK // (-heap[0][1] * unit.shape[1]))
                first = heapq.nsmallest(room + len(ready), heap)
                waiting = [cluster for cluster in first if cluster[2] not in ready][:room]
                _, _, batch, members, seeds = zip(*waiting, strict=True)
                ready.update(zip(batch, self._bisect(unit, members, np.array(seeds)), strict=True))
            last, size, label, rows, seed = heapq.heappop(heap)
            if ready[label][1] and not last:
                # Nothing in it to tell apart: split only when all others are split.
                heapq.heappush(heap, (True, size, label, rows, seed))
                continue
            second, equal = ready.pop(label)
            parents[new] = label
            arbitrary += equal
            halves = (label, rows[~second]), (new, rows[second])
            for (child, part), own in zip(halves, _mix(np.stack([seed, ~seed])), strict=True):
                heapq.heappush(heap, (False, -len(part), child, part, own))
        labels = np.empty(len(unit), np.int64)
        for *_, label, rows, _ in heap:
            labels[rows] = label
        return labels, parents, arbitrary

    def _bisect(
        self, unit: Tensor, clusters: Sequence[NDArray[np.int64]], seeds: NDArray[np.uint64]
    ) -> list[tuple[NDArray[np.bool_], bool]]:
        """Split each cluster: is a point of it in the second half, have all one direction?

        The largest come first; all are padded to its shape and share their matrix products.
        """
        sizes = np.array([len(members) for members in clusters])
        real = np.arange(sizes[0]) < sizes[:, None]
        index = np.zeros(real.shape, np.int64)
        index[real] = np.concatenate(clusters)
        mask = torch.from_numpy(real).to(unit.device)
        if sizes[0] == len(unit):
            points = unit[None]  # the first split, of all points: no copy
        else:
            points = unit[torch.from_numpy(index)]
            points *= mask[..., None]
        second, equal = (part.cpu().numpy() for part in self._two_means(points, mask, seeds))
        return [(row[:size], same) for row, size, same in zip(second, sizes, equal, strict=True)]

    def _two_means(
        self, points: Tensor, mask: Tensor, seeds: NDArray[np.uint64]
    ) -> tuple[Tensor, Tensor]:
        """Spherical 2-means of padded clusters (B, S, C), mask (B, S) → second half (B, S).

        Also (B,): have all points of the cluster one direction, so that any two halves are equal?
        """
        total = points.sum(1)
        size = mask.sum(1)
        best = torch.zeros_like(mask)
        best_score = torch.full_like(total[:, 0], -torch.inf)
        for attempt in range(self.n_init):
            second = _start(points, mask, _mix(seeds + np.uint64(attempt)))
            running = torch.ones_like(mask[:, 0])
            for _ in range(self.max_iter):
                sums = (second[:, None].to(points) @ points)[:, 0]
                difference = F.normalize(sums, dim=1) - F.normalize(total - sums, dim=1)
                moved = ((points @ difference[..., None])[..., 0] > 0) & mask
                changed = (moved != second).sum(1)
                # What has converged stays as it is: its neighbours in the batch must not count.
                second = torch.where(running[:, None], moved, second)
                running &= changed > self.tol * size
                if not running.any():
                    break
            sums = (second[:, None].to(points) @ points)[:, 0]
            score = sums.norm(dim=1) + (total - sums).norm(dim=1)
            better = score > best_score
            best[better], best_score = second[better], torch.maximum(score, best_score)
        # Points that all have one direction stay together: put the last of the least alike aside.
        count = best.sum(1)
        stuck = (count == 0) | (count == size)
        if stuck.any():
            cosine = (points[stuck] @ total[stuck][..., None])[..., 0]
            cosine = cosine.masked_fill(~mask[stuck], torch.inf)
            best[stuck] = F.one_hot(cosine.argmin(1), mask.shape[1]).bool()
        return best, _of_one_direction(points, mask, total)


def cut(parents: Tensor, n_clusters: int) -> Tensor:
    """Cut the tree of splits where there were ``n_clusters``; not in the paper.

    Parameters
    ----------
    parents
        (k,), ``parents_`` of a :class:`BisectingSphericalKMeans`.
    n_clusters
        From 1 to k.

    Returns
    -------
    Tensor
        (k,), for each of the k clusters the label of the cluster that it came from.

    Raises
    ------
    ValueError
        If ``n_clusters`` is not from 1 to k.

    Examples
    --------
    >>> parents = torch.tensor([0, 0, 1, 0, 2])
    >>> cut(parents, 3).tolist()
    [0, 1, 2, 0, 2]
    """
    if not 1 <= n_clusters <= len(parents):
        raise ValueError(
            f"n_clusters must be from 1 to {len(parents)}, the clusters of the tree, got "
            f"{n_clusters}: fit with more clusters to cut lower down"
        )
    labels = torch.arange(len(parents), device=parents.device)
    ancestors = torch.where(labels < n_clusters, labels, parents)
    # Doubles the steps up the tree, so that even a tree that is one long branch costs log₂ k.
    for _ in range(len(parents).bit_length()):
        ancestors = ancestors[ancestors]
    return ancestors


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """Row (N,) of the centres (k, C) with the largest cosine to each of x (N, C) (appendix B).

    Examples
    --------
    >>> centres = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    >>> nearest_centre(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), centres).tolist()
    [1, 0]
    """
    unit = F.normalize(centres, dim=1)
    return torch.cat([(part @ unit.T).argmax(1) for part in x.split(rows_of(len(centres)))])


def _start(points: Tensor, mask: Tensor, seeds: NDArray[np.uint64]) -> Tensor:
    """First sides: either side of the plane through the mean, across the widest direction.

    Power iterations find the direction, from the line between two points that k-means++ draws.
    They cost as much as iterations of 2-means and led to tighter clusters than those two points.
    """
    size = mask.sum(1)
    draws = np.stack([_mix(seeds), _mix(~seeds)]) >> np.uint64(11)
    uniform = torch.from_numpy(draws * 2.0**-53).to(points.device)  # two in [0, 1) a cluster
    rows = torch.arange(len(points))
    first = points[rows, (uniform[0] * size).long()]
    cosine = (points @ first[..., None])[..., 0]
    far = ((1 - cosine).clamp(min=0) * mask).double().cumsum(1)
    pick = torch.searchsorted(far, (uniform[1] * far[:, -1])[:, None], right=True)[:, 0]
    direction = points[rows, pick.clamp(max=mask.shape[1] - 1)] - first
    mean = points.sum(1) / size[:, None]
    for _ in range(_POWER_ITERATIONS + 1):
        along = (points @ direction[..., None])[..., 0] - (mean * direction).sum(1, keepdim=True)
        along = along * mask
        moment = (along[:, None] @ points)[:, 0] - along.sum(1, keepdim=True) * mean
        direction = F.normalize(moment, dim=1)
    return along > 0


def _of_one_direction(points: Tensor, mask: Tensor, total: Tensor) -> Tensor:
    """Do cosines, all that a split sees, tell no two points of a cluster apart? (B,)."""
    # The length of the mean spares most clusters the look at every point. It alone would miss the
    # one point among thousands that differs.
    tight = total.norm(dim=1) > 0.999 * mask.sum(1)
    close = points[tight]
    distance = (close - close[:, :1]).square().sum(2) * mask[tight]
    tight[tight.clone()] = distance.amax(1) < torch.finfo(points.dtype).eps
    return tight


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al., 2014): from a seed to the next, well-mixed one."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rows_of(width: int) -> int:
    """Rows of so many floats that make a block of 64 MB; not in the paper.

    Examples
    --------
    >>> rows_of(1024) * 1024 * 4 == 64 * 2**20
    True
    """
    return max(1, 8 * _CHUNK // width)
