"""Sparse autoencoder, the paper's second rival (section 4, appendix F, eq. 11)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Concepts, extractor
from .simple import centre

PATIENCE = 10
"""Epochs in which the loss of held-out PFVs must fall by 1 % for training to go on."""
_BATCH = 256
"""PFVs of a training step."""


@dataclass(frozen=True)
class Encoded(Concepts):
    """Concepts whose codes come from an encoder of their own and not from eq. 2.

    Examples
    --------
    >>> concepts = Encoded(torch.eye(2), torch.zeros(2), torch.arange(2))
    >>> concepts.needs_lam, concepts.dictionary().needs_lam
    (False, True)
    """

    needs_lam: ClassVar[bool] = False

    def dictionary(self) -> Concepts:
        """The same directions as concepts without an encoder, and without a λ yet."""
        return Concepts(self.vectors, self.beta, self.labels, self.block)


@dataclass(frozen=True)
class SparseAutoencoder(Encoded):
    """Concepts of a sparse autoencoder (eq. 11): decoder columns W_d, and b_d in the place of β.

    Its codes come from the encoder and are never negative. For codes by the Lasso, as any concepts
    have them, take its :meth:`dictionary` and :func:`gig_helpers.concepts.tune` it. An autoencoder
    with another activation is a subclass with an ``encode`` of its own.

    Attributes
    ----------
    encoder, encoder_bias
        W_e (k, C) and b_e (k,).
    losses
        Mean loss of held-out PFVs after each epoch, in the unit of training; its last values show
        whether training had converged.

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


def unused(concepts: Concepts, x: Tensor) -> int:
    """Number of concepts that no PFV of x (N, C) uses: dead units, not in the paper.

    Examples
    --------
    >>> parts = {"encoder": torch.eye(2), "encoder_bias": torch.tensor([0.0, -9.0])}
    >>> sae = SparseAutoencoder(torch.eye(2), torch.zeros(2), torch.zeros(1), **parts)
    >>> unused(sae, torch.tensor([[1.0, 1.0], [2.0, 3.0]]))
    1
    """
    used = [(concepts.encode(part) != 0).any(dim=0) for part in x.split(1024)]
    return int((~torch.stack(used).any(dim=0)).sum())


@extractor("sae", "SAE, converged")
def sparse_autoencoder(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, sparsity: float = 5.0,
    epochs: int | None = None, learning_rate: float = 1e-3, block: str = "",
) -> SparseAutoencoder:  # fmt: skip
    """Sparse autoencoder with the loss of eq. 11, set up as in Templeton et al. (2024).

    ‖x − x̂‖² + λ Σ_i f_i(x) ‖W_d,i‖, for PFVs less their mean, scaled to a mean squared length of
    C: one λ suits all blocks, and in the PFVs' own units it is λ times the root mean square of a
    channel's deviation. Adam, λ growing over the first twentieth, gradients clipped to norm 1,
    W_e starting as W_dᵀ. Written out here because the autoencoders of ``overcomplete`` 0.3 have no
    decoder bias b_d (their encoder may be a plain ReLU), and that package wants a Python below
    3.13.

    Parameters
    ----------
    x, beta, k
        (N, C), (C,) and k, as in :func:`random_pfvs`, with its errors. b_d starts at the mean of x
        and not at β: far from the mean, units die before the bias gets there.
    sparsity
        λ of eq. 11.
    epochs
        ``None`` trains until it is flat: until the loss of PFVs held out, a tenth, has not fallen
        by 1 % in :data:`PATIENCE` epochs, 500 epochs at most. A small number gives a weak one; the
        paper's has a Rel-ℓ2 above 1 in most blocks (Table 1).

    Examples
    --------
    >>> x = torch.randn(500, 4)
    >>> sae = sparse_autoencoder(x, x.mean(0), 8, epochs=3)
    >>> sae.encode(x).shape, len(sae.losses), sae.losses[2] < sae.losses[0]
    (torch.Size([500, 8]), 3, True)
    """
    centre(x, beta, k)
    # A private generator leaves the caller's random state alone.
    generator = torch.Generator().manual_seed(seed)
    scaled, mean, unit_length = standardized(x)
    start = 0.1 * F.normalize(torch.randn(k, x.shape[1], generator=generator), dim=1).to(x)
    parameters = [start, torch.zeros_like(mean), start.clone(), x.new_zeros(k)]
    decoder, decoder_bias, encoder, encoder_bias = (p.requires_grad_() for p in parameters)

    def loss(target: Tensor, share: float) -> Tensor:
        codes = F.relu(target @ encoder.T + encoder_bias)
        error = target - codes @ decoder - decoder_bias
        penalty = codes @ decoder.norm(dim=1)
        return (error.square().sum(1) + share * sparsity * penalty).mean()

    losses = train(parameters, loss, scaled, generator, epochs=epochs, learning_rate=learning_rate)
    # The codes stay in the scaled unit; the decoder carries x's.
    vectors = decoder.detach() * unit_length
    encoder = encoder.detach() / unit_length
    shift = mean + decoder_bias.detach() * unit_length
    return SparseAutoencoder(
        vectors, shift, nearest_centre(x - shift, vectors), block,
        encoder=encoder, encoder_bias=encoder_bias.detach() - encoder @ mean, losses=losses,
    )  # fmt: skip


extractor("sae_short", "SAE, 5 epochs")(partial(sparse_autoencoder, epochs=5))


def standardized(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """x (N, C) less its mean, scaled to a mean squared length of C; the mean; the scale.

    As in Templeton et al. (Anthropic, 2024), but for the mean.

    Examples
    --------
    >>> scaled, mean, unit = standardized(torch.tensor([[1.0, 0.0], [5.0, 0.0]]))
    >>> mean.tolist(), round(unit, 4), scaled.square().sum(1).mean().round(decimals=4).item()
    ([3.0, 0.0], 1.4142, 2.0)
    """
    mean = x.mean(dim=0)
    unit_length = float((x - mean).square().mean()) ** 0.5 or 1.0
    return (x - mean) / unit_length, mean, unit_length


def train(
    parameters: list[Tensor], loss: Callable[[Tensor, float], Tensor], x: Tensor,
    generator: torch.Generator, *, epochs: int | None = None, learning_rate: float = 1e-3,
) -> tuple[float, ...]:  # fmt: skip
    """Lower an autoencoder's loss in place, by Adam; the loss of PFVs held out after each epoch.

    How that of the paper is trained is not in the paper.

    Parameters
    ----------
    x
        (N, C), as :func:`standardized` makes them; a tenth is held out.
    loss
        Of a batch, and of the share of the warm-up that is over, from 0 to 1.
    epochs
        As in :func:`sparse_autoencoder`.

    Examples
    --------
    >>> offset = torch.zeros(1, requires_grad=True)
    >>> x = torch.full((100, 1), 0.2)
    >>> off = lambda target, share: (target - offset).square().mean()
    >>> losses = train([offset], off, x, torch.Generator(), learning_rate=0.01)
    >>> len(losses) < 500, losses[-1] < 1e-3
    (True, True)
    """
    optimizer = torch.optim.Adam(parameters, learning_rate)
    held_out, rest = torch.randperm(len(x), generator=generator).tensor_split([-(-len(x) // 10)])
    total, step = epochs or 500, 0
    warm_up = max(1, total * -(-len(rest) // _BATCH) // 20)
    losses: list[float] = []
    while len(losses) < total and (epochs is not None or not _flat(losses[total // 20 :])):
        for order in torch.randperm(len(rest), generator=generator).split(_BATCH):
            step += 1
            optimizer.zero_grad()
            loss(x[rest[order]], min(1.0, step / warm_up)).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        with torch.no_grad():
            losses.append(float(loss(x[held_out], 1.0)))
    return tuple(losses)


def _flat(losses: list[float]) -> bool:
    """Did the last epochs bring the loss down by less than 1 %?"""
    before, after = losses[:-PATIENCE], losses[-PATIENCE:]
    return bool(before) and min(after) > 0.99 * min(before)
