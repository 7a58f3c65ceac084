"""From notebooks to pages: runs the chapters, builds the book. The method is in gig_helpers."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
BUILD = ROOT / "_build"
MODULE = ROOT / "gig_helpers"


def contents() -> list[str]:
    """The pages of _toc.yml in reading order, as paths from the root without an ending."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    top = [page for part in toc["parts"] for page in part["chapters"]]
    pages = [page["file"] for first in top for page in (first, *first.get("sections", ()))]
    return [toc["root"], *pages]


def chapters() -> list[Path]:
    """The notebooks among the pages, in reading order."""
    notebooks = [ROOT / f"{page}.ipynb" for page in contents()]
    return [notebook for notebook in notebooks if notebook.exists()]
