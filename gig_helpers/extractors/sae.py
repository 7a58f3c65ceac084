"""Sparse autoencoder, the paper's second rival (section 4, appendix F, eq. 11)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Concepts, extractor
from .simple import centre


@dataclass(frozen=True)
class SparseAutoencoder(Concepts):
    """Concepts of a sparse autoencoder (eq. 11): decoder columns W_d, and b_d in the place of β.

    Its codes come from the encoder and are never negative. For codes by the Lasso, as any concepts
    have them, take its :meth:`dictionary` and :func:`gig_helpers.concepts.tune` it. An autoencoder
    with another activation is a subclass with an ``encode`` of its own.

    Attributes
    ----------
    encoder, encoder_bias
        W_e (k, C) and b_e (k,).
    losses
        Mean loss (eq. 11) of each epoch; its last values show whether training had converged.

    Examples
    --------
    >>> parts = {"encoder": torch.eye(2), "encoder_bias": torch.tensor([-1.0, -1.0])}
    >>> sae = SparseAutoencoder(2 * torch.eye(2), torch.zeros(2), torch.zeros(1), **parts)
    >>> sae.encode(torch.tensor([4.0, 0.5])).tolist()
    [3.0, 0.0]
    >>> type(sae.dictionary()).__name__
    'Concepts'
    """

    encoder: Tensor = torch.empty(0)
    encoder_bias: Tensor = torch.empty(0)
    losses: tuple[float, ...] = ()

    needs_lam: ClassVar[bool] = False

    def encode(self, x: Tensor, *, tol: float = 0.0) -> Tensor:
        """f(x) = ReLU(W_e x + b_e), exactly, whatever ``tol``; x (..., C), not centred → (..., k).

        Examples
        --------
        >>> parts = {"encoder": torch.eye(2), "encoder_bias": torch.zeros(2)}
        >>> sae = SparseAutoencoder(torch.eye(2), torch.zeros(2), torch.zeros(1), **parts)
        >>> sae.encode(torch.tensor([[1.0, -1.0]])).tolist()
        [[1.0, 0.0]]
        """
        return F.relu(x @ self.encoder.T + self.encoder_bias)

    def dictionary(self) -> Concepts:
        """The same directions as concepts without an encoder, and without a λ yet."""
        return Concepts(self.vectors, self.beta, self.labels, self.block)


@extractor("sae", "SAE, converged")
def sparse_autoencoder(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, sparsity: float = 5.0,
    epochs: int | None = None, learning_rate: float = 1e-3, batch_size: int = 256, block: str = "",
) -> SparseAutoencoder:  # fmt: skip
    """Sparse autoencoder with the loss of eq. 11, set up as in Templeton et al. (2024).

    ‖x − x̂‖² + λ Σ_i f_i(x) ‖W_d,i‖, for PFVs scaled to a mean squared length of C. Adam, λ
    growing over the first twentieth, gradients clipped to norm 1, W_e starting as W_dᵀ. Written
    out here because the autoencoders of ``overcomplete`` 0.3 have no decoder bias b_d (their
    encoder may be a plain ReLU), and that package wants a Python below 3.13.

    Parameters
    ----------
    x, k
        (N, C) and k, as in :func:`random_pfvs`, with its errors.
    beta
        (C,), where b_d starts.
    sparsity
        λ of eq. 11.
    epochs
        ``None`` trains to convergence: until a mean loss over five epochs is no more than 0.5 %
        below that of the five before, 500 epochs at most. A small number gives a weak
        one; the paper's has a Rel-ℓ2 above 1 in most blocks (Table 1).

    Examples
    --------
    >>> x = torch.randn(500, 4)
    >>> sae = sparse_autoencoder(x, x.mean(0), 8, epochs=3)
    >>> sae.encode(x).shape, len(sae.losses), sae.losses[2] < sae.losses[0]
    (torch.Size([500, 8]), 3, True)
    """
    centred = centre(x, beta, k)
    # A private generator leaves the caller's random state alone.
    generator = torch.Generator().manual_seed(seed)
    channels = x.shape[1]
    unit_length = float(centred.square().sum(1).mean() / channels) ** 0.5
    scaled = centred / unit_length
    start = 0.1 * F.normalize(torch.randn(k, channels, generator=generator), dim=1).to(x)
    parameters = [start, x.new_zeros(channels), start.clone(), x.new_zeros(k)]
    decoder, decoder_bias, encoder, encoder_bias = (p.requires_grad_() for p in parameters)
    optimizer = torch.optim.Adam(parameters, learning_rate)
    total = epochs or 500
    warm_up = max(1, total * -(-len(x) // batch_size) // 20)
    losses: list[float] = []
    step = 0
    while len(losses) < total and (epochs is not None or not _flat(losses, total // 20)):
        summed = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            step += 1
            target = scaled[batch]
            codes = F.relu(target @ encoder.T + encoder_bias)
            error = target - codes @ decoder - decoder_bias
            penalty = codes @ decoder.norm(dim=1)
            weight = sparsity * min(1.0, step / warm_up)
            loss = (error.square().sum(1) + weight * penalty).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            summed += float(loss.detach()) * len(batch)
        losses.append(summed / len(x))
    # The codes stay in the scaled unit; the decoder carries x's.
    vectors = decoder.detach() * unit_length
    encoder = encoder.detach() / unit_length
    return SparseAutoencoder(
        vectors,
        beta + decoder_bias.detach() * unit_length,
        nearest_centre(centred, vectors),
        block,
        encoder=encoder,
        encoder_bias=encoder_bias.detach() - encoder @ beta,
        losses=tuple(losses),
    )


extractor("sae_short", "SAE, 5 epochs")(partial(sparse_autoencoder, epochs=5))


def _flat(losses: list[float], start: int) -> bool:
    """Have the losses after the warm-up stopped falling?"""
    before, after = losses[-10:-5], losses[-5:]
    return len(losses) >= start + 10 and sum(after) > 0.995 * sum(before)
