"""A linear network, on which importance and every curve can be worked out by hand."""

import torch
from torch import Tensor

from gig_helpers import Concepts, Decomposition


class Segment:
    """From block a to block b, or to the logits; counts the states that pass."""

    target_channels = 2

    def __init__(self, network: "Linear", later: str | None):
        self.network, self.later = network, later

    def __call__(self, x: Tensor) -> Tensor:
        self.network.seen += len(x)
        return x @ self.network.A.T if self.later else x.sum(dim=1) @ self.network.M.T


class Linear:
    """Blocks a → b → two logits, all linear: maps A (a to b) and M (a to logits) of channels.

    A picture (HW, 3) is its own pre-activation at block a.
    """

    blocks = ("a", "b")
    device, dtype = torch.device("cpu"), torch.float64
    A = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=torch.float64)
    M = torch.tensor([[1.0, 2, -4], [0, 0, 0]], dtype=torch.float64)
    n_classes, classes = 2, ("class 0", "class 1")
    seen = 0

    def channels(self, block: str) -> int:
        return {"a": 3, "b": 2}[block]

    def index(self, block: str) -> int:
        return self.blocks.index(block)

    def bn_shift(self, block: str) -> Tensor:
        return torch.tensor({"a": [-0.25, 0, 0], "b": [1.0, 0]}[block], dtype=torch.float64)

    def segment(self, source: str, target: str | None = None) -> Segment:
        return Segment(self, target)

    def preactivations(self, images: Tensor, blocks: list[str]) -> dict[str, Tensor]:
        return {block: images if block == "a" else images @ self.A.T for block in blocks}

    def positions(self, x: Tensor, block: str) -> Tensor:
        return x


def concepts_of(vectors: Tensor, beta: Tensor | None = None, block: str = "a") -> Concepts:
    """Concepts of a block, with the block's β where no other is given."""
    beta = Linear().bn_shift(block) if beta is None else beta
    return Concepts(vectors, beta, torch.arange(len(vectors)), block)


def linear(
    codes: Tensor, concepts: Concepts, later: Tensor | None = None, residual: Tensor | None = None
) -> Decomposition:
    """Pictures of the linear network with these codes of block a, and perhaps concepts of b."""
    images = concepts.decode(codes.to(concepts.vectors))
    images = images if residual is None else images + residual
    every, u = {"a": concepts}, {"a": codes}
    if later is not None:
        every["b"] = concepts_of(later, block="b")
        u["b"] = torch.ones(len(codes), 4, len(later))
    return Decomposition(Linear(), images, every, u)


# One picture of 2 × 2 positions, of which the lower two have no codes; concepts are the channels
# and a fourth that is never used.
U = torch.zeros(1, 4, 4, dtype=torch.float64)
U[0, :2] = torch.tensor([[1.0, 1, 0, 0], [2, 0, 1, 0]])
V = concepts_of(torch.cat([torch.eye(3), torch.ones(1, 3)]).double())
# β brings −0.25 to logit 0 at each position, −1 in all; the concepts Σ_p u_pq · M_0q:
GAMMA = torch.tensor([[[3.0, 2.0, -4.0, 0.0]]], dtype=torch.float64)
