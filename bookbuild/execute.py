"""Runs the chapters with papermill, each once: ``python -m bookbuild.execute [NAME …]``.

That run is the test, and its outputs are what the pages show. The executed copies lie in
``_build/executed``. Beside each, a stamp says what it was made from: a chapter runs again only when
its notebook, the module, the profile, the pictures or the packages have changed.
"""

import hashlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import papermill
from packaging.requirements import Requirement

from . import BOOK, BUILD, MODULE, ROOT, chapters

EXECUTED = BUILD / "executed"
SETTINGS = ("GIG_PROFILE", "GIG_IMAGES", "GIG_IMAGENET_VAL")
CELL_TIMEOUT = {"quick": 1800}
"""Seconds a cell may take, by profile; the larger ones run for hours and have no limit."""


def profile() -> str:
    """Name of the profile that the chapters run in."""
    return os.environ.get("GIG_PROFILE", "quick")


def requirements() -> list[Requirement]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def digest(paths: list[Path], **settings: object) -> str:
    """Hash of the contents of files and of settings."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(paths):
        total.update(path.relative_to(ROOT).as_posix().encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def key(chapter: Path) -> str:
    """Hash of everything that a chapter's outputs depend on."""
    module = [path for kind in ("py", "js", "json") for path in MODULE.rglob(f"*.{kind}")]
    sources = [chapter, *module, *(BOOK / "results").glob("*.json")]
    settings = {name: os.environ.get(name, "") for name in SETTINGS} | {"GIG_PROFILE": profile()}
    versions = {requirement.name: version(requirement.name) for requirement in requirements()}
    return digest(sources, python=sys.version, settings=settings, versions=versions)


def stamp(chapter: Path) -> dict[str, str | float]:
    """What an executed copy was made from and how long it took; empty before the first run."""
    path = EXECUTED / f"{chapter.stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def execute(chapter: Path) -> Path:
    """Run a chapter unless its executed copy is up to date; return the executed copy.

    Raises
    ------
    papermill.PapermillExecutionError
        If a cell fails. The executed copy then ends with the failing cell and its traceback.
    """
    copy = EXECUTED / chapter.name
    wanted = key(chapter)
    if copy.exists() and stamp(chapter).get("key") == wanted:
        print(f"{chapter.stem}: up to date", flush=True)
        return copy
    print(f"{chapter.stem}: running (profile {profile()})", flush=True)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    stamp_path = copy.with_suffix(".json")
    stamp_path.unlink(missing_ok=True)
    start = time.monotonic()
    papermill.execute_notebook(
        chapter,
        copy,
        cwd=BOOK,
        kernel_name="python3",  # this environment's: jupyter_client finds it before any other
        execution_timeout=CELL_TIMEOUT.get(profile()),
    )
    seconds = round(time.monotonic() - start, 1)
    stamp_path.write_text(json.dumps({"key": wanted, "profile": profile(), "seconds": seconds}))
    print(f"{chapter.stem}: {seconds:.0f} s", flush=True)
    return copy


def main() -> None:
    """Run the chapters named on the command line, else all of them."""
    names = sys.argv[1:]
    unknown = set(names) - {chapter.stem for chapter in chapters()}
    if unknown:
        sys.exit(f"no such chapter: {', '.join(sorted(unknown))}")
    for chapter in chapters():
        if not names or chapter.stem in names:
            execute(chapter)


if __name__ == "__main__":
    main()
