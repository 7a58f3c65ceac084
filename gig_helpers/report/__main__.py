"""``python -m gig_helpers.report FOLDER``: an atlas of the profile's pictures."""

import sys

from ..concepts import fit_concepts
from ..data import profiles
from ..data.pictures import load_pictures
from ..network import load_network
from ..pfv import sample
from .atlas import atlas
from .examples import named

if __name__ == "__main__":
    profile = profiles.get()
    network = load_network(profile.network, profile.weights)
    pictures = load_pictures(profile.pictures, network).labelled(network)
    pfvs = sample(network, pictures, profile)
    concepts = fit_concepts(pfvs, profile)
    print(atlas(pfvs, concepts, sys.argv[1], names=named(pfvs, concepts)))
