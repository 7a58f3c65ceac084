"""``python -m experiments [PART …]``: the parts that are named, else all that are not timed."""

import sys
from importlib import import_module

from .run import start

NAMES = (
    "classes", "interlayer", "extractors", "rivals", "early", "fewer", "controls", "families",
    "readings", "shared", "graphs", "paths", "edges", "transfer", "circuits", "sampling",
    "shortcut", "watermarks", "planted", "growth", "scale",
)  # fmt: skip
PARTS = {name: import_module(f"{__package__}.{name}").make for name in NAMES}


def main() -> None:
    """Make the parts that the command line names."""
    names = sys.argv[1:] or [name for name in PARTS if name not in {"growth", "scale"}]
    if unknown := set(names) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    run = start()
    for name in names:
        PARTS[name](run)


if __name__ == "__main__":
    main()
