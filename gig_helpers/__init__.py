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

The order of a run: :func:`load_network`, :func:`load_pictures`, :func:`sample` (PFVs),
:func:`fit_concepts`, :func:`decompose`. Of a decomposition one asks :func:`attribute`,
:func:`deletion_insertion`, :func:`concept_graph`, and of a whole data set :func:`class_concepts`,
:func:`contrast`, :func:`suspects` and :func:`matches`, or :func:`atlas`, pages to browse it all.

Examples
--------
One's own model and pictures, to a graph that opens in a browser:

>>> from gig_helpers import *
>>> def explain(model, folder, path):
...     network = Network(model)
...     pictures = load_pictures(folder, network)
...     pfvs = sample(network, pictures)
...     concepts = fit_concepts(pfvs)
...     d = decompose(network, pictures[[0]], concepts)
...     save_html(illustrate(concept_graph(d), d, pfvs), path)
"""

from .codes import Decomposition, decompose
from .concepts import EXTRACTORS, Concepts, extractor, fit_concepts
from .curves import deletion_insertion
from .data.pictures import class_names, load_pictures
from .data.profiles import Profile
from .extractors import SparseAutoencoder
from .graph import concept_graph
from .importance import METHODS, attribute, method
from .network import Network, load_network
from .pfv import PFVDataset, sample
from .report.atlas import atlas
from .report.examples import illustrate
from .report.graph_page import save_html
from .report.questions import class_concepts, contrast, matches, suspects

__all__ = [
    "EXTRACTORS", "METHODS", "Concepts", "Decomposition", "Network", "PFVDataset", "Profile",
    "SparseAutoencoder", "atlas", "attribute", "class_concepts", "class_names", "concept_graph",
    "contrast", "decompose", "deletion_insertion", "extractor", "fit_concepts", "illustrate",
    "load_network", "load_pictures", "matches", "method", "sample", "save_html", "suspects",
]  # fmt: skip
