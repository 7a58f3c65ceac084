"""Generalized Integrated Gradients for concepts in image models, one file per step of the method.

Notation, the same in every file (the paper's section 3):

===========  ===========================================================  ==========
symbol       meaning                                                      shape
===========  ===========================================================  ==========
x, X         PFVs: a block's pre-activation at one or at all positions    (C,), (HW, C)
N, HW, C     pictures; positions of a block's map, row by row; channels
V            concept vectors of a block, as rows                          (k, C)
U            codes: one coefficient per position and concept              (HW, k)
β            net shift of batch normalisation, where a path begins        (C,)
λ, ``lam``   what the Lasso charges for a code                            scalar
X̃            reconstruction UV + β                                        (HW, C)
F_ab         the network from block a to block b, pre-activations both
T            targets: classes, or concepts of a later block
R            contribution of a position to the output (SRD)               (HW,)
===========  ===========================================================  ==========

The order of a run is that of the names below: pictures, network, PFVs, concepts, codes, relevance,
graph. :mod:`gig_helpers.gig` attributes concepts to concepts.
"""

from .codes import picture_codes, reconstruct
from .concepts import Concepts, load_concepts
from .data.pictures import class_names, load_pictures
from .gig import class_relevance
from .graph import concept_graph
from .network import Network, load_network
from .pfv import sample

__all__ = [
    "Concepts",
    "Network",
    "class_names",
    "class_relevance",
    "concept_graph",
    "load_concepts",
    "load_network",
    "load_pictures",
    "picture_codes",
    "reconstruct",
    "sample",
]
