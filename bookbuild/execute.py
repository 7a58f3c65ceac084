"""Runs the chapters with papermill, each once: ``python -m bookbuild.execute [NAME …]``.

That run is the test, and its outputs are what the pages show. The executed copies lie in
``_build/executed``. Beside each, a stamp says what it was made from: a chapter runs again only when
its notebook, the module, the profile, the pictures or the packages have changed. A run that fails
or is killed leaves what it has made in ``unfinished/``, and the earlier copy and stamp alone.
``--table`` prints what the chapters cost.
"""

import hashlib
import json
import math
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import papermill
from filelock import FileLock
from packaging.requirements import Requirement

from . import BOOK, BUILD, MODULE, ROOT, chapters
from .kernels import WarmKernels, run

EXECUTED = BUILD / "executed"
SETTINGS = ("GIG_PROFILE", "GIG_IMAGES")
CELL_TIMEOUT = {"quick": 1800}
"""Seconds a cell may take, by profile; the larger ones run for hours and have no limit."""
ALL, PASSES, PASSES_EACH = "all chapters", 7500, 1000
"""What the quick run may cost in forward passes of one picture, whatever the machine."""


RECENT = 10
"""Seconds after which a machine's speed is measured again."""

_latest = SimpleNamespace(seconds=math.nan, at=-math.inf)


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


def _settle_images() -> None:
    """GIG_IMAGES is a folder as seen from where the command was typed; chapters run elsewhere."""
    if folder := _own_folder():
        os.environ["GIG_IMAGES"] = str(folder)


def _own_folder() -> Path | None:
    given = os.environ.get("GIG_IMAGES")
    folder = Path(given).expanduser().absolute() if given else None
    return folder if folder and folder.is_dir() else None


def _own_pictures() -> list[str]:
    """Hashes of the pictures in the reader's folder, if there is one."""
    if not (folder := _own_folder()):
        return []
    from gig_helpers.data.images import content, found  # with torch: seconds of importing

    return [f"{file}: {content(file)[0]}" for file in found(folder)[0]]


def key(chapter: Path) -> str:
    """Hash of everything that a chapter's outputs depend on."""
    module = [path for kind in ("py", "js", "json") for path in MODULE.rglob(f"*.{kind}")]
    sources = [chapter, *module, *(BOOK / "results").glob("*.json")]
    settings = {name: os.environ.get(name, "") for name in SETTINGS} | {"GIG_PROFILE": profile()}
    versions = {requirement.name: version(requirement.name) for requirement in requirements()}
    given = {"settings": settings, "versions": versions, "pictures": _own_pictures()}
    return digest(sources, python=sys.version, **given)


def stamp(chapter: Path) -> dict[str, str | float]:
    """What an executed copy was made from and how long it took; empty before the first run."""
    path = EXECUTED / f"{chapter.stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def forward_pass() -> float:
    """Seconds of one forward pass of one picture, measured now, in a process of its own.

    Raises
    ------
    RuntimeError
        If that process fails; it has printed why.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds"
        run(["bookbuild.forward_pass", str(result)], os.environ, str(ROOT))
        if not result.exists():
            raise RuntimeError("no forward pass could be measured; its error stands above")
        return float(result.read_text())


def _is_made_from(chapter: Path, wanted: str) -> bool:
    same = (EXECUTED / chapter.name).exists() and stamp(chapter).get("key") == wanted
    if same:
        print(f"{chapter.stem}: up to date", flush=True)
    return same


def execute(chapter: Path) -> Path:
    """Run a chapter unless its executed copy is up to date; return the executed copy.

    One chapter runs at a time, whoever asks, so that each has the machine that its pass was
    measured on: before it and after it, since that machine's speed may change.

    Raises
    ------
    RuntimeError
        If a cell fails or the kernel dies. The unfinished copy that the error names ends there.
    """
    copy, unfinished = EXECUTED / chapter.name, EXECUTED / "unfinished" / chapter.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    _settle_images()
    wanted = key(chapter)
    if _is_made_from(chapter, wanted):
        return copy
    with FileLock(EXECUTED / ".lock"):
        if _is_made_from(chapter, wanted):  # while this one waited
            return copy
        print(f"{chapter.stem}: running (profile {profile()})", flush=True)
        # Measured just now behind the chapter before this one, if there was one.
        before = _latest.seconds if time.monotonic() - _latest.at < RECENT else forward_pass()
        start = time.monotonic()
        try:
            papermill.execute_notebook(
                chapter,
                unfinished,
                cwd=BOOK,
                kernel_name="python3",  # this environment's: it is found before any other
                kernel_manager_class=WarmKernels,
                execution_timeout=CELL_TIMEOUT.get(profile()),
            )
        except Exception as error:
            raise RuntimeError(f"{chapter.stem} failed: {unfinished} ends where it did") from error
        seconds = round(time.monotonic() - start, 1)
        _latest.seconds, _latest.at = forward_pass(), time.monotonic()
        one_pass = (before + _latest.seconds) / 2
        made = {"key": wanted, "profile": profile(), "seconds": seconds, "pass": one_pass}
        stamped = unfinished.with_suffix(".json")
        stamped.write_text(json.dumps(made))
        # The stamp last: a copy whose stamp is an older one is made again.
        os.replace(unfinished, copy)
        os.replace(stamped, copy.with_suffix(".json"))
        print(
            f"{chapter.stem}: {seconds:.0f} s, {seconds / one_pass:.0f} forward passes", flush=True
        )
        return copy


def costs() -> dict[str, tuple[float, float, float]]:
    """Seconds, seconds of a forward pass, and their ratio, of every executed chapter and of all."""
    made = {chapter.stem: stamp(chapter) for chapter in chapters()}
    pairs = {name: (float(s["seconds"]), float(s["pass"])) for name, s in made.items() if s}
    found = {name: (taken, one, taken / one) for name, (taken, one) in pairs.items()}
    taken, passes = (sum(row[i] for row in found.values()) for i in (0, 2))
    return {**found, ALL: (taken, taken / passes if passes else 0.0, passes)}


def table() -> str:
    """What the chapters cost, beside what they may, and that at 100 ms a pass."""
    lines = [f"{'':24}{'seconds':>9}{'ms a pass':>11}{'passes':>8}{'target':>9}{'at 100 ms':>11}"]
    for name, (taken, one, passes) in costs().items():
        target = PASSES if name == ALL else PASSES_EACH
        row = f"{name:24}{taken:9.0f}{1000 * one:11.0f}{passes:8.0f}{f'≤ {target}':>9}"
        lines.append(f"{row}{passes * 0.1 / 60:7.1f} min")
    return "\n".join(lines)


def main() -> None:
    """Run the chapters named on the command line, else all of them."""
    names = sys.argv[1:]
    if names == ["--table"]:
        print(table())
        return
    unknown = set(names) - {chapter.stem for chapter in chapters()}
    if unknown:
        sys.exit(f"no such chapter: {', '.join(sorted(unknown))}")
    for chapter in chapters():
        if not names or chapter.stem in names:
            execute(chapter)


if __name__ == "__main__":
    main()
