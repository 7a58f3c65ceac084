"""Rivals of the bisecting clustering: PFVs to concepts by other means (section 4, appendix F).

Each takes ``(x, beta, n_concepts, random_state)``: PFVs (N, C), not centred, and μ_BN (C,).
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor, nn
from torch.nn import functional as F

from .clustering import Concepts, Members, concept_vectors, nearest_concept


@dataclass(frozen=True)
class SparseAutoencoder(Concepts):
    """Concepts of a sparse autoencoder (eq. 11): decoder columns W_d, and b_d in the place of β.

    Its own codes come from the encoder and are never negative. For codes as sparse as another
    method's, solve eq. 2 with its ``vectors`` and ``beta``: ``decomposition.lasso_codes``.

    Attributes
    ----------
    encoder, encoder_bias
        W_e (k, C) and b_e (k,).
    losses
        Mean loss (eq. 11) of each epoch; its last values show whether training had converged.
    """

    encoder: Tensor = torch.empty(0)
    encoder_bias: Tensor = torch.empty(0)
    losses: tuple[float, ...] = ()

    def codes(self, x: Tensor) -> Tensor:
        """f(x) = ReLU(W_e x + b_e); x (..., C), not centred → (..., k)."""
        return F.relu(x @ self.encoder.T + self.encoder_bias)


def random_pfvs(
    x: Tensor, beta: Tensor, n_concepts: int, random_state: int = 0, *, block: str = ""
) -> Concepts:
    """Some of the PFVs, drawn without repetition: what every method must beat; not in the paper.

    Parameters
    ----------
    x
        PFVs (N, C), not centred.
    beta
        μ_BN (C,).
    n_concepts
        k, at most N.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite, or there are more concepts than PFVs.
    """
    _check(x, beta, n_concepts)
    chosen = np.random.default_rng(random_state).choice(len(x), n_concepts, replace=False)
    return _nearest(x, beta, (x - beta)[torch.from_numpy(chosen).to(x.device)], block)


def kmeans(
    x: Tensor,
    beta: Tensor,
    n_concepts: int,
    random_state: int = 0,
    *,
    members: Members = "unit",
    block: str = "",
) -> Concepts:
    """Averages of the clusters of k-means, without bisecting, among unit vectors (section 1).

    The parameters and errors are those of :func:`random_pfvs`: x (N, C), beta (C,); ``members`` as
    in :func:`gig_helpers.clustering.concept_vectors`.
    """
    _check(x, beta, n_concepts)
    unit = F.normalize(x - beta, dim=1).cpu().numpy()
    found = KMeans(n_concepts, n_init=1, random_state=random_state).fit(unit).labels_
    # Where vectors repeat, KMeans returns fewer clusters than asked for.
    labels = torch.from_numpy(np.unique(found, return_inverse=True)[1]).to(x.device)
    return Concepts(concept_vectors(x, labels, beta, members), beta, labels, block)


def dictionary_learning(
    x: Tensor,
    beta: Tensor,
    n_concepts: int,
    random_state: int = 0,
    *,
    alpha: float | None = None,
    max_iter: int = 20,
    block: str = "",
) -> Concepts:
    """Dictionary learning with LARS (Mairal et al., 2009), by scikit-learn, in small batches.

    Parameters
    ----------
    x, beta, n_concepts
        (N, C), (C,) and k, as in :func:`random_pfvs`, with its errors.
    alpha
        λ of eq. 2 in training, where atoms have unit length. ``None``: a tenth of the mean
        ‖x − β‖.
    max_iter
        Passes over the data, at most. The time grows with k² and more.
    """
    _check(x, beta, n_concepts)
    centred = x - beta
    model = MiniBatchDictionaryLearning(
        n_concepts,
        alpha=float(centred.norm(dim=1).mean()) / 10 if alpha is None else alpha,
        max_iter=max_iter,
        fit_algorithm="lars",
        batch_size=256,
        random_state=random_state,
    ).fit(centred.cpu().numpy())
    return _nearest(x, beta, torch.from_numpy(model.components_).to(x), block)


def sparse_autoencoder(
    x: Tensor,
    beta: Tensor,
    n_concepts: int,
    random_state: int = 0,
    *,
    sparsity: float = 5.0,
    epochs: int | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    block: str = "",
) -> SparseAutoencoder:
    """Sparse autoencoder with the loss of eq. 11, set up as in Templeton et al. (2024).

    ‖x − x̂‖² + λ Σ_i f_i(x) ‖W_d,i‖, for PFVs scaled to a mean squared length of C. Adam, λ
    growing over the first twentieth, gradients clipped to norm 1, W_e starting as W_dᵀ. Written
    out here because ``overcomplete`` 0.3 has neither b_d nor a plain ReLU encoder.

    Parameters
    ----------
    x, n_concepts
        (N, C) and k, as in :func:`random_pfvs`, with its errors.
    beta
        (C,), where b_d starts.
    sparsity
        λ of eq. 11.
    epochs
        ``None`` trains to convergence: until a mean loss over five epochs is no more than 0.5 %
        below that of the five before, 500 epochs at most. A small number gives a weak
        one; the paper's has a Rel-ℓ2 above 1 in most blocks (Table 1).
    """
    _check(x, beta, n_concepts)
    # A private generator leaves the caller's random state alone.
    generator = torch.Generator().manual_seed(random_state)
    channels = x.shape[1]
    centred = x - beta
    unit_length = float(centred.square().sum(1).mean() / channels) ** 0.5
    scaled = centred / unit_length
    decoder = F.normalize(torch.randn(n_concepts, channels, generator=generator), dim=1).to(x)
    model = nn.ParameterDict(
        {
            "decoder": 0.1 * decoder,
            "encoder": 0.1 * decoder,
            "encoder_bias": x.new_zeros(n_concepts),
            "decoder_bias": x.new_zeros(channels),
        }
    )
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    total = epochs or _MOST_EPOCHS
    warm_up = max(1, total * -(-len(x) // batch_size) // 20)
    losses: list[float] = []
    step = 0
    while len(losses) < total and (epochs is not None or not _flat(losses, total // 20)):
        summed = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            step += 1
            target = scaled[batch.to(x.device)]
            codes = F.relu(target @ model["encoder"].T + model["encoder_bias"])
            error = target - codes @ model["decoder"] - model["decoder_bias"]
            penalty = codes @ model["decoder"].norm(dim=1)
            weight = sparsity * min(1.0, step / warm_up)
            loss = (error.square().sum(1) + weight * penalty).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            summed += float(loss.detach()) * len(batch)
        losses.append(summed / len(x))
    learnt = {name: parameter.detach() for name, parameter in model.items()}
    encoder = learnt["encoder"] / unit_length
    # The codes stay in the scaled unit; the decoder carries x's.
    vectors = learnt["decoder"] * unit_length
    return SparseAutoencoder(
        vectors,
        beta + learnt["decoder_bias"] * unit_length,
        nearest_concept(centred, vectors),
        block,
        encoder,
        learnt["encoder_bias"] - encoder @ beta,
        tuple(losses),
    )


_MOST_EPOCHS = 500


def _flat(losses: list[float], start: int) -> bool:
    """Have the losses after the warm-up stopped falling?"""
    before, after = losses[-10:-5], losses[-5:]
    return len(losses) >= start + 10 and sum(after) > 0.995 * sum(before)


def _nearest(x: Tensor, beta: Tensor, vectors: Tensor, block: str) -> Concepts:
    return Concepts(vectors, beta, nearest_concept(x - beta, vectors), block)


def _check(x: Tensor, beta: Tensor, n_concepts: int) -> None:
    if x.ndim != 2 or beta.shape != x.shape[1:]:
        raise ValueError(
            f"expected x (N, C) and beta (C,), got {tuple(x.shape)} and {tuple(beta.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")
    if not 1 <= n_concepts <= len(x):
        raise ValueError(f"n_concepts must lie between 1 and the {len(x)} PFVs, got {n_concepts}")
