"""``python -m experiments [PART …]``: the parts that are named, else all but ``scale``."""

import sys

from . import (
    classes,
    controls,
    extractors,
    families,
    graphs,
    interlayer,
    paths,
    readings,
    sampling,
    scale,
    shared,
    shortcut,
)
from .run import start

PARTS = {
    "classes": classes.make,
    "interlayer": interlayer.make,
    "extractors": extractors.make,
    "controls": controls.make,
    "families": families.make,
    "readings": readings.make,
    "shared": shared.make,
    "graphs": graphs.make,
    "paths": paths.make,
    "sampling": sampling.make,
    "shortcut": shortcut.make,
    "scale": scale.make,
}


def main() -> None:
    """Make the parts that the command line names."""
    names = sys.argv[1:] or [name for name in PARTS if name != "scale"]
    if unknown := set(names) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    run = start()
    for name in names:
        PARTS[name](run)


if __name__ == "__main__":
    main()
