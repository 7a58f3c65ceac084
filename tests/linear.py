"""A linear network, on which importance and every curve can be worked out by hand."""

import torch
from torch import Tensor

from gig_helpers import Concepts


class Linear:
    """Blocks a → b → two logits, all linear: channel maps A (a to b) and M (a to logits)."""

    blocks = ("a", "b")
    device = torch.device("cpu")
    A = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=torch.float64)
    M = torch.tensor([[1.0, 2, -4], [0, 0, 0]], dtype=torch.float64)
    class_vectors = M
    seen = 0

    def channels(self, block: str) -> int:
        return {"a": 3, "b": 2}[block]

    def bn_shift(self, block: str) -> Tensor:
        return torch.tensor({"a": [-0.25, 0, 0], "b": [1.0, 0]}[block], dtype=torch.float64)

    def arranged(self, flat: Tensor, block: str) -> Tensor:
        if flat.shape[1] not in (1, 4):
            raise ValueError(f"{flat.shape[1]} positions are no map")
        return flat.mT[..., None]

    def positions(self, x: Tensor, block: str) -> Tensor:
        return x[..., 0].mT

    def span(self, source: str, target: str) -> tuple[int, int]:
        return 0, 1

    def propagate(self, x: Tensor, source: str, target: str | None = None) -> Tensor:
        self.seen += len(x)
        if target is None:
            return x.sum(dim=(2, 3)) @ self.M.T
        return torch.einsum("dc,nchw->ndhw", self.A, x)


def concepts_of(vectors: Tensor, beta: Tensor | None = None) -> Concepts:
    """Concepts of block a, with the block's β where no other is given."""
    beta = Linear().bn_shift("a") if beta is None else beta
    return Concepts(vectors, beta, torch.arange(len(vectors)), "a")


# One picture of 2 × 2 positions, of which the lower two have no codes; concepts are the channels
# and a fourth that is never used.
U = torch.zeros(1, 4, 4, dtype=torch.float64)
U[0, :2] = torch.tensor([[1.0, 1, 0, 0], [2, 0, 1, 0]])
V = concepts_of(torch.cat([torch.eye(3), torch.ones(1, 3)]).double())
# β brings −0.25 to logit 0 at each position, −1 in all; the concepts Σ_p u_pq · M_0q:
GAMMA = torch.tensor([[3.0, 2.0, -4.0, 0.0]], dtype=torch.float64)
