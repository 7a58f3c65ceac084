"""Rivals of the bisecting clustering (section 4, appendix F), registered by being imported.

A new one is a function decorated with :func:`gig_helpers.concepts.extractor`, in any file.
"""

from ..concepts import EXTRACTORS as EXTRACTORS
from .dictionary import dictionary_learning as dictionary_learning
from .sae import SparseAutoencoder as SparseAutoencoder
from .simple import random_pfvs as random_pfvs
