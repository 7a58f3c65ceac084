"""The one set-up cell and the repository's address, carried from here into every chapter.

``make address`` (``python -m bookbuild.setup_cell``) replaces the address that _config.yml still
has by pyproject.toml's in every tracked file, and writes the set-up cell into every chapter.
"""

import re
import subprocess

import nbformat
import yaml

from . import ROOT, chapters

TAG = "setup"
CELL = """\
# Set-up, alike in every chapter: installs what is missing on Colab, else nothing.
import os
from importlib.util import find_spec

on_colab = find_spec("google") and find_spec("google.colab")
if on_colab and not find_spec("gig_helpers"):
    repository = "{address}"
    repository = os.environ.get("GIG_REPOSITORY", repository)
    %pip install --quiet "git+{{repository}}"

from gig_helpers import load_network, load_pictures
from gig_helpers.data import profiles
from gig_helpers.report import figures
from gig_helpers.report.provenance import provenance

profile = profiles.get()  # "quick"; "colab" suits a T4, "paper" needs ImageNet
network = load_network(profile.network, profile.weights)  # on the GPU, if any
pictures = load_pictures(profile.pictures, network).labelled(network)
figures.style()
print(provenance(profile, network, pictures))"""


def address() -> str:
    """The repository's public address, which stands in pyproject.toml.

    Raises
    ------
    ValueError
        If pyproject.toml has no such line.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = re.search(r'^Repository = "(https://.+)"$', text, re.MULTILINE)
    if line is None:
        raise ValueError("pyproject.toml: [project.urls] has no line 'Repository = \"https://…\"'")
    return line.group(1)


def carried_address() -> str:
    """The address that _config.yml gives to the launch buttons."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"]


def cell() -> str:
    """Source of the set-up cell."""
    return CELL.format(address=address())


def carry() -> None:
    """Write the address into every file that shows it, and the cell into every chapter."""
    old, new = carried_address(), address()
    files = subprocess.run(
        ["git", "grep", "-lzF", "--untracked", old, "--", ":!pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    for chapter in chapters():
        notebook = nbformat.read(chapter, as_version=4)
        tagged = [part for part in notebook.cells if TAG in part.metadata.get("tags", [])]
        if tagged:
            tagged[0].source = cell()
        else:  # a new chapter: after the opening
            metadata = {"tags": [TAG, "hide-input"]}
            notebook.cells.insert(1, nbformat.v4.new_code_cell(cell(), metadata=metadata))
        nbformat.write(notebook, chapter)


if __name__ == "__main__":
    carry()
