"""Colab without Colab: torch is there, this package is not, and `google.colab` can be imported."""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import papermill
import pytest

from bookbuild import BOOK, ROOT, chapters

pytestmark = pytest.mark.slow

ABSENT = ("gig_helpers", "gig-helpers", "__editable__", "captum", "foolbox", "bookbuild")
"""What a fresh Colab machine has not, by the beginnings of the names in site-packages."""

WHERE = """import captum, gig_helpers, json, torch
print(json.dumps({m.__name__: m.__file__ for m in (torch, captum, gig_helpers)}))"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Path:
    """A virtual environment that sees this one's packages but for ABSENT, as a kernel "colab"."""
    root = tmp_path_factory.mktemp("colab")
    # Beside the environment, not in it: pip may then not change what it finds there.
    packages = root / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(ABSENT) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    venv.create(root / "venv", symlinks=True, with_pip=False)
    own = next((root / "venv").glob("lib/python*/site-packages"))
    (own / "packages.pth").write_text(f"{packages}\n")
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").touch()
    kernel = root / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    arguments = [
        str(root / "venv/bin/python"),
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    spec = {"argv": arguments, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> str:
    """Address of a local git repository with the tracked files as they are now."""
    copy = tmp_path_factory.mktemp("repository")

    def git(*arguments: str, folder: Path = copy) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    for name in git("ls-files", "-z", folder=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    git("init", "--quiet")
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", "the tracked files")
    return copy.as_uri()


def _python(machine: Path, code: str) -> str:
    found = subprocess.run(
        [machine / "venv/bin/python", "-c", code], cwd=machine, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("number", range(len(chapters())))
def test_chapter_runs_on_colab(machine, repository, monkeypatch, number):
    chapter = chapters()[number]
    every = os.environ.get("GIG_COLAB") == "all"
    if chapter.stem != "08_trust" and not every:
        pytest.skip("a short chapter stands for all; GIG_COLAB=all runs each")
    torch = "import torch; print(torch.__version__, torch.__file__)"
    before = _python(machine, torch)
    monkeypatch.setenv("GIG_REPOSITORY", repository)
    # One alone finds what the chapters before it have made here; all of them make it anew.
    monkeypatch.setenv("GIG_ARTIFACTS", str(machine / "artifacts" if every else BOOK / "artifacts"))
    monkeypatch.setenv("JUPYTER_PATH", str(machine / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # Colab's pip knows nothing of this machine's settings, which may hold other versions of torch.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    done = machine / chapter.name
    papermill.execute_notebook(
        chapter, done, kernel_name="colab", cwd=machine, progress_bar=False, execution_timeout=1800
    )
    cells = nbformat.read(done, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert _python(machine, torch) == before
    where = json.loads(_python(machine, WHERE))
    for name, inside in {"torch": "packages", "gig_helpers": "venv", "captum": "venv"}.items():
        assert Path(where[name]).is_relative_to(machine / inside), where
