"""Every size and seed that a run uses, by name: quick, workstation, colab, paper, or your own."""

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

CHAIN = ("layer1.2", "layer2.3", "layer3.0", "layer3.2", "layer3.5", "layer4.2")
"""The six blocks of the paper's Figures 1, 3 and 5, from the pixels up."""

ALL_BLOCKS = tuple(f"layer{s}.{n}" for s, of in enumerate((3, 4, 6, 3), 1) for n in range(of))
"""The sixteen residual blocks of a ResNet-50 (the paper's Figure 6 and Table 2)."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes of one run, each with a default: name those that are to differ.

    Attributes
    ----------
    name
        What the provenance line calls it.
    pictures
        What :func:`gig_helpers.data.pictures.load_pictures` is asked for.
    network, weights
        What :func:`gig_helpers.network.load_network` is asked for.
    blocks
        Names of the blocks; none names all that the network has, see :meth:`blocks_of`.
    per_image
        PFVs per picture and block.
    expansion
        The paper's concepts per channel (8, section 4).
    pfvs_per_concept
        A picture set too small for that many clusters gets ``pfvs // pfvs_per_concept`` of them
        instead.
    families
        How many families the concepts of a block are spoken of as: ``"supported"``, as many as the
        pictures support (:mod:`gig_helpers.families`), a number, or ``None``: each atom is a
        concept.
    evaluation_pictures, evaluation_targets
        Pictures of an evaluation, and target concepts of each (section 4.2).
    gap
        Completeness gap that attributions may leave, as a fraction of the target's change.
    bracket
        Within ± how much a curve's area is known.
    batch_size
        Pictures that go through the network together.
    seed
        Of every draw.

    Examples
    --------
    >>> mine = Profile(per_image=8, blocks=("layer3.5",), pfvs_per_concept=3)
    >>> mine.n_concepts(channels=256, pfvs=100_000), mine.n_concepts(channels=256, pfvs=300)
    (2048, 100)
    """

    name: str = "own"
    pictures: str = "sample"
    network: str = "resnet50"
    weights: str = "auto"
    blocks: tuple[str, ...] = ()
    per_image: int = 16
    expansion: int = 8
    pfvs_per_concept: int = 5
    families: int | Literal["supported"] | None = "supported"
    evaluation_pictures: int = 4
    evaluation_targets: int = 2
    gap: float = 0.05
    bracket: float = 0.04
    batch_size: int = 8
    seed: int = 0

    def n_concepts(self, channels: int, pfvs: int) -> int:
        """Number of concepts k of a block with ``channels`` channels and ``pfvs`` sampled PFVs."""
        return max(2, min(self.expansion * channels, pfvs // self.pfvs_per_concept))

    def blocks_of(self, network: Any) -> tuple[str, ...]:
        """The profile's blocks, or where it names none all of a ``Network``'s.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> small = SimpleNamespace(blocks=("stem", "head"))
        >>> Profile().blocks_of(small), Profile(blocks=("head",)).blocks_of(small)
        (('stem', 'head'), ('head',))
        """
        return self.blocks or network.blocks


_ALL = (
    # Methods × pictures × blocks forward passes: chapter 5 must end in two minutes.
    Profile(name="quick", blocks=CHAIN),
    # 16 PFVs of 3,300 photographs, a quarter held out, are enough for 8 concepts per channel. What
    # was recorded speaks of these, not of families.
    Profile(
        name="workstation", pictures="imagenette", blocks=ALL_BLOCKS, pfvs_per_concept=2,
        evaluation_pictures=50, evaluation_targets=5, gap=0.02, bracket=0.02, families=None,
    ),
    # scikit-learn's clusterings on two cores are what takes long: chapters 2 and 5 end in minutes.
    Profile(
        name="colab", pictures="imagenette", blocks=CHAIN, per_image=4, pfvs_per_concept=6,
        evaluation_pictures=50, evaluation_targets=5, gap=0.01, bracket=0.01, batch_size=32,
    ),
    Profile(
        name="paper", pictures="imagenet-val", blocks=ALL_BLOCKS, per_image=1, pfvs_per_concept=3,
        evaluation_pictures=1000, evaluation_targets=5, gap=0.01, bracket=0.01, batch_size=64,
    ),
)  # fmt: skip
PROFILES = {profile.name: profile for profile in _ALL}
"""Profiles by name."""


def get(name: str | None = None) -> Profile:
    """Return a profile by name.

    Parameters
    ----------
    name
        ``"quick"`` (two CPU cores, minutes), ``"workstation"`` (a few thousand pictures on CPU
        cores, hours), ``"colab"`` (one T4) or ``"paper"`` (the paper's sizes). Without a name,
        the environment variable ``GIG_PROFILE`` decides, else ``quick``.

    The environment variable ``GIG_IMAGES`` replaces the profile's pictures by a folder.

    Raises
    ------
    ValueError
        If there is no such profile.

    Examples
    --------
    >>> get("paper").evaluation_pictures, get("paper").n_concepts(channels=2048, pfvs=50_000)
    (1000, 16384)
    """
    name = name or os.environ.get("GIG_PROFILE", "quick")
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return replace(profile, pictures=os.environ.get("GIG_IMAGES") or profile.pictures)
