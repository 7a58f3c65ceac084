"""Ways to make concepts from PFVs, by name: ours and its rivals (section 4, appendix F).

Each takes ``(x, beta, k, seed)``, and ``block=`` for captions: PFVs (N, C), not centred, β (C,),
the number of concepts, a seed. A new one is a function and a line of :data:`EXTRACTORS`.
"""

from collections.abc import Callable
from functools import partial

from ..concepts import Concepts, extract
from .sae import SparseAutoencoder as SparseAutoencoder
from .sae import sparse_autoencoder
from .simple import dictionary_learning, kmeans, random_pfvs

EXTRACTORS: dict[str, Callable[..., Concepts]] = {
    "bisecting": extract,
    "random PFVs": random_pfvs,
    "SAE, 5 epochs": partial(sparse_autoencoder, epochs=5),
    "k-means": kmeans,
    "SAE, converged": sparse_autoencoder,
    "dictionary learning": partial(dictionary_learning, max_iter=3),
}
"""Extractors, the cheapest first. Three passes are what dictionary learning can have in minutes."""
