"""Builds the pages from the executed chapters: ``python -m bookbuild.pages``.

Jupyter Book reads ``_build/source``: the pages of ``book/``, the executed copies in place of the
notebooks, the first page's figures out of the chapters, a provenance page, tables of costs and
verdicts, and in ``_web`` the JavaScript that would otherwise come from a CDN. Beside its pages
stands the atlas.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image, ImageOps

from gig_helpers.data import artifacts

from . import BOOK, BUILD, MODULE, ROOT, chapters, verdicts
from .execute import ALL, EXECUTED, costs, digest, execute

SOURCE = BUILD / "source"
HTML = BUILD / "html"
STAMP = BUILD / "html.key"

VENDOR = {
    "sphinx-mathjax-offline": (
        "sphinx-mathjax-offline/static",
        ["mathjax/tex-chtml.js"]
        + [f"mathjax/{part}" for part in ("a11y", "input/tex", "output/chtml", "sre", "ui")],
    ),
    "plotly": ("plotly/package_data", ["plotly.min.js"]),
}
"""Installed package → a folder in it, and what is taken from there into the book's ``vendor/``."""

FIRST_PAGE = [
    ("suspects", "10_shortcut", "fig-shortcut-suspects"),
    ("carton", "10_shortcut", "fig-shortcut-graph"),
    ("shortcut", "10_shortcut", "fig-shortcut-cut"),
    ("graph", "07_concept_graph", "fig-graph-picture"),
]
"""Figures that the first page shows, some with an answer: its own name, chapter, the figure's."""

MOVING = ("moving", "10_shortcut", "fig-shortcut-moving")
"""A slider's frames, which the first page shows one after another, and its answer."""
FRAME_MS, ROUNDS = 1500, 5
"""How long a frame stays, the last one twice as long, and how often they come round."""
ATLAS = BUILD / "atlas"
"""The quick run's, whatever the chapters' profile: those of others would outweigh the book."""

SCRIPTS = [ROOT / "bookbuild" / "plotly_figure.js", MODULE / "report" / "explore_graph.js"]
"""Our own scripts, which draw the interactive figures."""


def build() -> Path:
    """Build the pages unless they are up to date; return ``index.html``.

    Raises
    ------
    subprocess.CalledProcessError
        If Jupyter Book warns of anything: a broken reference, an unknown output, a page missing; or
        if the atlas fails.
    """
    executed = [execute(chapter) for chapter in chapters()]
    module = [
        *MODULE.rglob("*.py"),
        *MODULE.glob("report/atlas*.[cj]s*"),
        *(BOOK / "results").glob("*.json"),
        *(ROOT / "bookbuild").glob("*.py"),
        *SCRIPTS,
    ]
    config = [ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "requirements.txt"]
    wanted = digest([*executed, *module, *config, *_book_files()])
    with FileLock(BUILD / ".lock"):
        _build(executed, wanted)
    return HTML / "index.html"


def _build(executed: list[Path], wanted: str) -> None:
    if HTML.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        print("pages: up to date", flush=True)
        return
    # From clean: over an earlier build, -W passes what it failed before.
    for leftover in (SOURCE, HTML, BUILD / ".doctrees", BUILD / "jupyter_execute"):
        shutil.rmtree(leftover, ignore_errors=True)
    STAMP.unlink(missing_ok=True)
    _stage(executed)
    _vendor(SOURCE / "_web" / "vendor")
    shutil.rmtree(ATLAS, ignore_errors=True)
    quick = os.environ | {"GIG_PROFILE": "quick"}
    command = [sys.executable, "-m", "gig_helpers.report", str(ATLAS)]
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--path-output", str(ROOT), "-W", "-n", "--keep-going", "-q"]
    # The atlas beside the pages, which take one core.
    with subprocess.Popen(command, cwd=BOOK, env=quick) as atlas:
        subprocess.run([*jupyter_book, "build", str(SOURCE), *options], check=True)
    if atlas.returncode:
        raise subprocess.CalledProcessError(atlas.returncode, command)
    shutil.copytree(ATLAS, HTML / "atlas")
    STAMP.write_text(wanted)


def _book_files() -> list[Path]:
    """Everything in ``book/`` that a page may show, but for the notebooks."""
    kinds = ("*.md", "api/*.md", "*.bib", "_static/*", "images/*")
    return [path for kind in kinds for path in BOOK.glob(kind)]


def _stage(executed: list[Path]) -> None:
    for path in _book_files():
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for path in executed:
        text = path.read_text(encoding="utf-8")
        # The class by which the theme knows a pandas table; styled ones come without it.
        text = text.replace('<table id=\\"T_', '<table class=\\"dataframe\\" id=\\"T_')
        (SOURCE / "book" / path.name).write_text(text, encoding="utf-8")
    (SOURCE / "book" / "provenance.md").write_text(_provenance(), encoding="utf-8")
    (SOURCE / "book" / "costs.md").write_text(_takes(), encoding="utf-8")
    (SOURCE / "book" / "cut.md").write_text(_cut(), encoding="utf-8")
    counted, listed = verdicts.page()
    (SOURCE / "book" / "verdict_counts.md").write_text(counted, encoding="utf-8")
    (SOURCE / "book" / "verdicts.md").write_text(listed, encoding="utf-8")
    for name, chapter, figure in (*FIRST_PAGE, MOVING):
        shown, answer = _shown(SOURCE / "book" / f"{chapter}.ipynb", figure)
        answer = answer.replace(f"`{figure}`", f"`fig-intro-{name}`")
        (SOURCE / "book" / f"{name}.md").write_text(answer, encoding="utf-8")
        if "image/png" in shown:
            picture = base64.b64decode("".join(shown["image/png"]))
            (SOURCE / "book" / "images" / f"{name}.png").write_bytes(picture)
        else:
            _move("".join(shown["text/html"]), SOURCE / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", SOURCE)
    shutil.copy(ROOT / "_toc.yml", SOURCE)
    if (BOOK / "_static").exists():  # Sphinx reads it beside the configuration
        shutil.move(SOURCE / "book" / "_static", SOURCE / "_static")


def _shown(chapter: Path, figure: str) -> tuple[dict[str, Any], str]:
    """A figure of an executed chapter, and the first answer after it: the first page shows them."""
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    names = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells]
    after = [out for cell in cells[names.index(figure) :] for out in cell.get("outputs", [])]
    shown, *others = (out["data"] for out in after if "data" in out)
    answer = next(other["text/markdown"] for other in others if "text/markdown" in other)
    return shown, "".join(answer)


def _move(slider: str, folder: Path) -> None:
    """A slider's frames as a moving picture; the first and the last one for who wants none."""
    sources = re.findall(r'src="data:image/webp;base64,([^"]+)"', slider)
    read = [Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB") for source in sources]
    first, *others = (ImageOps.pad(frame, read[0].size, color="white") for frame in read)
    lasts = [FRAME_MS] * len(others) + [2 * FRAME_MS]
    options: dict[str, Any] = {"append_images": others, "duration": lasts, "loop": ROUNDS}
    first.save(folder / "moving.webp", save_all=True, **options)
    still = Image.new("RGB", (2 * first.width, first.height))
    still.paste(first)
    still.paste(others[-1], (first.width, 0))
    still.save(folder / "still.webp")


def _vendor(folder: Path) -> None:
    for package, (root, parts) in VENDOR.items():
        for part in parts:
            source = Path(str(distribution(package).locate_file(f"{root}/{part}")))
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, folder / part)
            else:
                shutil.copy(source, folder / part)
    for script in SCRIPTS:
        shutil.copy(script, folder)


def _cut() -> str:
    """What the cut brings on many photographs, and where it fails: the first page's sentence."""

    def span(result: str, kind: str, side: str = "right") -> tuple[float, float]:
        rows = artifacts.recorded(result)["rows"]
        found = [row["outcomes"][kind][side]["mean"] for row in rows]
        return min(found), max(found)

    def said(ends: tuple[float, float]) -> str:
        return " to ".join(dict.fromkeys(f"{end:.0%}" for end in ends))

    count = artifacts.recorded("shortcut")["settings"]["evaluated"]
    of = {kind: span("shortcut", kind) for kind in ("nothing", "suspects, 3")}
    rival, there = span("shortcut", "a direction from pairs"), "other_shortcut"
    least, nothing = span(there, "suspects, 3"), span(there, "nothing")
    return (
        f"A larger run, of {count} photographs that made no concept: the network gets "
        f"{said(span('shortcut', 'nothing', 'clean'))} of them right, with the watermark "
        f"{said(of['nothing'])}, and with three concepts out {said(of['suspects, 3'])}, depending "
        "on the layer. **Its limits:** a rival that is told which "
        f"photographs have the watermark, one direction learnt from pairs, gets {said(rival)}; and "
        f"in another network, EfficientNet-Lite0, the same cut turns {said(nothing)} into "
        f"{said(least)}{': at some layers it does harm' * (least[0] < nothing[0])}.\n"
    )


def _takes() -> str:
    """What takes how long, as a table: these chapters, and the stages of a larger run."""
    scale = artifacts.recorded("scale")
    rows = [row for row in scale["rows"] if row["pictures"] == scale["pictures"]]
    blocks = len({row["block"] for row in rows if row["stage"] == "clustering"})
    stages = {
        "sampling": f"to draw vectors from {scale['pictures']:,} photographs, {blocks} blocks",
        "clustering": "to cluster them",
        "penalty": "to choose how sparse codes are",
        "graph of a picture": "the graph of one more picture, with all of these concepts",
    }
    took = {name: sum(r["seconds"] for r in rows if r["stage"] == name) for name in stages}
    each = costs()
    whole, slowest = each.pop(ALL), max(each, key=lambda name: each[name][0])
    lines = [
        "| what | takes |",
        "|---|---:|",
        f"| all {len(each)} notebooks of these pages | {_time(whole[0])} |",
        f"| the longest of them, {{doc}}`{slowest}` | {_time(each[slowest][0])} |",
    ]
    lines += [f"| {words} | {_time(took[stage])} |" for stage, words in stages.items()]
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _provenance() -> str:
    """The provenance page: what each chapter printed of what it ran on, and its cost."""
    lines = [
        "# Provenance",
        "",
        "Written by the build: what the chapters of these pages ran on, and for how long. A "
        "forward pass is one of one picture through the profile's network, in a batch of eight, "
        "measured just before the chapter ran and just after it.",
        "",
        "| Chapter | Seconds | Milliseconds of a forward pass | Forward passes |",
        "|---|---:|---:|---:|",
    ]
    cost = {
        name: f"{taken:.0f} | {1000 * one:.0f} | {passes:,.0f}"
        for name, (taken, one, passes) in costs().items()
    }
    ran_on: dict[str, list[str]] = {}
    for chapter in chapters():
        notebook = json.loads((EXECUTED / chapter.name).read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        printed = [
            "".join(output["text"])
            for output in code[0]["outputs"]
            if output.get("name") == "stdout"
        ]
        last = "".join(printed).strip().splitlines()[-1:]
        lines.append(f"| {{doc}}`{chapter.stem}` | {cost[chapter.stem]} |")
        ran_on.setdefault("".join(last), []).append(f"{{doc}}`{chapter.stem}`")
    lines += [f"| {ALL} | {cost[ALL]} |", "", "## Network, pictures, profile, machine, versions"]
    for line, names in ran_on.items():
        lines += ["", f"{line}: {', '.join(names) if len(ran_on) > 1 else ALL}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = build()
    print(f"The book: {page}\nOpen it in a browser; it needs no internet.")
