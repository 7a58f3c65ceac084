"""Every size and seed that a run uses, by name: quick, workstation, colab, paper."""

import os
from dataclasses import dataclass, replace

CHAIN = ("layer1.2", "layer2.3", "layer3.0", "layer3.2", "layer3.5", "layer4.2")
"""The six blocks of the paper's Figures 1, 3 and 5, from the pixels up."""

ALL_BLOCKS = tuple(
    f"layer{stage}.{index}"
    for stage, count in enumerate((3, 4, 6, 3), start=1)
    for index in range(count)
)
"""The sixteen residual blocks of a ResNet-50 (the paper's Figure 6 and Table 2)."""


@dataclass(frozen=True)
class Profile:
    """Sizes of one run; counts unless a unit is named.

    ``expansion`` is the paper's concepts per channel (8, section 4). A picture set too small for
    that many clusters gets ``pfvs // pfvs_per_concept`` of them instead.

    Examples
    --------
    >>> mine = Profile("mine", 4, 8, 50, 12, pfvs_per_concept=3)
    >>> mine.n_concepts(channels=256, pfvs=100_000), mine.n_concepts(channels=256, pfvs=300)
    (2048, 100)
    """

    name: str
    per_image: int
    batch_size: int
    evaluation_pictures: int
    pictures: str = "imagenette"
    blocks: tuple[str, ...] = CHAIN
    evaluation_targets: int = 5
    gap: float = 0.01
    bracket: float = 0.01
    expansion: int = 8
    pfvs_per_concept: int = 3
    network: str = "resnet50"
    weights: str = "auto"
    seed: int = 0

    def n_concepts(self, channels: int, pfvs: int) -> int:
        """Number of concepts k of a block with ``channels`` channels and ``pfvs`` sampled PFVs."""
        return max(2, min(self.expansion * channels, pfvs // self.pfvs_per_concept))


_ALL = (
    # Methods × pictures × blocks forward passes: chapter 5 must end in two minutes.
    Profile(
        "quick",
        16,
        8,
        4,
        "sample",
        evaluation_targets=2,
        gap=0.05,
        bracket=0.04,
        pfvs_per_concept=5,
    ),  # fmt: skip
    # 16 PFVs of 3,300 photographs, a quarter held out, are enough for 8 concepts per channel.
    Profile(
        "workstation", 16, 8, 50, blocks=ALL_BLOCKS, gap=0.02, bracket=0.02, pfvs_per_concept=2
    ),  # fmt: skip
    # scikit-learn's clusterings on two cores are what takes long: chapters 2 and 5 end in minutes.
    Profile("colab", per_image=4, batch_size=32, evaluation_pictures=50, pfvs_per_concept=6),
    Profile("paper", 1, 64, 1000, pictures="imagenet-val", blocks=ALL_BLOCKS),
)
PROFILES = {profile.name: profile for profile in _ALL}
"""Profiles by name. Numbers: PFVs per picture, batch size, evaluated pictures."""


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
