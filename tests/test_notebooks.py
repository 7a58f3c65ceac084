"""Every chapter runs from beginning to end; the pages are then built from these very runs."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

from bookbuild import ROOT, chapters, execute, kernels, setup_cell
from bookbuild.execute import EXECUTED

LIGHT = ("ipykernel.kernelapp",)
"""For kernels that need no more: what is preloaded is not what these tests are about."""


def save_notebook(path: Path, *cells: str) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def outputs(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where chapters are executed to, from small ones, each of them stamped "old" or "new"."""
    monkeypatch.setattr(execute, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(execute, "key", lambda chapter: os.environ.get("KEY", "old"))
    monkeypatch.setattr(execute, "forward_pass", lambda: 0.5)
    monkeypatch.setattr(kernels, "PRELOAD", LIGHT)
    return tmp_path / "executed"


@pytest.mark.slow
@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_chapter_runs(chapter):
    executed = nbformat.read(execute.execute(chapter), as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # stderr is left out of the pages, where it would show progress bars; it must hide no warning.
    stderr = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "warning" not in stderr.lower()
    # A string that lacks its f; braces of roles, directives and formulas are something else.
    told = "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
    assert not re.search(r"(?<![\\\w:`}^_{])\{\w+\}(?!`)", told)


@pytest.mark.slow
def test_a_second_run_does_nothing(capsys):
    chapter = chapters()[0]
    execute.execute(chapter)
    before = (EXECUTED / chapter.name).stat().st_mtime_ns
    capsys.readouterr()
    execute.execute(chapter)
    assert "up to date" in capsys.readouterr().out
    assert (EXECUTED / chapter.name).stat().st_mtime_ns == before
    assert not (EXECUTED / "unfinished" / chapter.name).exists()


def test_a_failing_chapter_leaves_the_earlier_copy_and_says_where_its_own_is(
    folder, tmp_path, monkeypatch
):
    chapter = save_notebook(tmp_path / "99_failing.ipynb", "1 + 1")
    copy = execute.execute(chapter)
    before = copy.read_bytes(), copy.with_suffix(".json").read_bytes()
    save_notebook(chapter, "1 + 1", "1 / 0", "2 + 2")
    monkeypatch.setenv("KEY", "new")
    left = folder / "unfinished" / chapter.name
    with pytest.raises(RuntimeError, match=re.escape(str(left))) as error:
        execute.execute(chapter)
    assert isinstance(error.value.__cause__, papermill.PapermillExecutionError)
    assert [output.output_type for output in outputs(left)] == ["execute_result", "error"]
    assert (copy.read_bytes(), copy.with_suffix(".json").read_bytes()) == before
    assert execute.stamp(chapter)["key"] == "old"
    save_notebook(chapter, "3 + 3")
    execute.execute(chapter)
    assert [output.data["text/plain"] for output in outputs(copy)] == ["6"]
    assert execute.stamp(chapter)["key"] == "new" and not left.exists()


def test_a_folder_of_pictures_is_where_the_command_was_typed(folder, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    chapter = save_notebook(tmp_path / "99_own.ipynb", "import os; os.environ['GIG_IMAGES']")
    monkeypatch.setenv("HOME", str(tmp_path))
    for n, given in enumerate(("photos", "~/photos")):
        monkeypatch.setenv("KEY", f"{n}")
        monkeypatch.setenv("GIG_IMAGES", given)
        monkeypatch.chdir(tmp_path)
        seen = outputs(execute.execute(chapter))[0].data["text/plain"]
        assert seen == repr(str(tmp_path / "photos"))
    monkeypatch.setenv("GIG_IMAGES", "imagenette")  # no folder: a set of pictures by name
    monkeypatch.setenv("KEY", "named")
    assert outputs(execute.execute(chapter))[0].data["text/plain"] == "'imagenette'"


def test_a_chapter_runs_again_when_a_picture_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_IMAGES", str(tmp_path))
    keys = []
    for colour in ("red", "blue", "red"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "a.bmp")
        keys.append(execute.key(chapters()[0]))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "said"), [(8, "predictions in place"), (7, "8 or more")])
def test_the_set_up_cell_takes_a_flat_folder_or_says_what_is_missing(
    tmp_path, monkeypatch, count, said
):
    monkeypatch.setenv("GIG_IMAGES", str(tmp_path / "flat"))
    (tmp_path / "flat").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    for n, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"flat/{n}.png")
    probe = "assert pictures.stand_in and None not in pictures.labels"
    chapter, copy = save_notebook(tmp_path / "flat.ipynb", setup_cell.cell(), probe), "copy.ipynb"
    refused = pytest.raises(papermill.PapermillExecutionError, match=said)
    with refused if count < 8 else contextlib.nullcontext():
        papermill.execute_notebook(
            chapter, tmp_path / copy, kernel_name="python3", cwd=tmp_path, progress_bar=False
        )
    assert said in (tmp_path / copy).read_text()


KILLED = """
import sys
from pathlib import Path
from bookbuild import execute, kernels
execute.EXECUTED, kernels.PRELOAD = Path(sys.argv[2]), ("ipykernel.kernelapp",)
execute.key, execute.forward_pass = (lambda chapter: "new"), (lambda: 0.5)
execute.execute(Path(sys.argv[1]))
"""


def test_a_killed_run_leaves_the_earlier_copy_and_no_kernel(folder, tmp_path):
    chapter = save_notebook(tmp_path / "99_killed.ipynb", "1 + 1")
    copy = execute.execute(chapter)
    before = copy.read_bytes(), copy.with_suffix(".json").read_bytes()
    told = tmp_path / "pid"
    tell = f"import os; open({str(told)!r} + '_', 'w').write(str(os.getpid()))"
    wait = f"os.rename({str(told)!r} + '_', {str(told)!r}); import time; time.sleep(600)"
    save_notebook(chapter, tell, wait)
    command = [sys.executable, "-c", KILLED, str(chapter), str(folder)]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    _until(told.exists)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert (copy.read_bytes(), copy.with_suffix(".json").read_bytes()) == before
    assert (folder / "unfinished" / chapter.name).exists()
    kernel = kernels.Forked(int(told.read_text()))
    _until(lambda: kernel.poll() is not None)
    # The lock has died with the run that held it.
    save_notebook(chapter, "1 + 1")
    os.utime(chapter)
    assert execute.execute(chapter) == copy


def _until(done, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> dict[str, list[str]]:
    """What is imported after the set-up cell, and where from, in a warm kernel and a plain one."""
    probe = "import os, sys; print(os.getcwd(), sys.path, sys.argv[:2], *sorted(sys.modules))"
    folder = tmp_path_factory.mktemp("modules")
    notebook = save_notebook(folder / "probe.ipynb", setup_cell.cell(), probe)
    found = {}
    for name, options in (("plain", {}), ("warm", {"kernel_manager_class": kernels.WarmKernels})):
        copy = folder / f"{name}.ipynb"
        papermill.execute_notebook(
            notebook, copy, kernel_name="python3", cwd=folder, progress_bar=False, **options
        )
        # A busy machine hands a long line on in pieces.
        told = [output.text for output in outputs(copy) if output.get("name") == "stdout"]
        found[name] = "".join(told).split()
    return found


@pytest.mark.slow
def test_a_warm_kernel_is_a_readers_kernel(modules):
    assert modules["warm"] == modules["plain"]
    assert "torch" in modules["plain"]


def test_a_chapter_starts_in_a_plain_kernel_where_the_server_fails(folder, tmp_path, monkeypatch):
    parents = []
    for name, preload in (("98_warm", LIGHT), ("99_plain", ("there.is.no.such.module",))):
        chapter = save_notebook(tmp_path / f"{name}.ipynb", "import os; os.getppid()")
        monkeypatch.setattr(kernels, "PRELOAD", preload)
        parents.append(int(outputs(execute.execute(chapter))[0].data["text/plain"]))
    assert parents[0] != os.getpid() == parents[1]


def test_a_pass_is_timed_before_a_chapter_and_after_it(folder, tmp_path, monkeypatch):
    """What was measured behind one is what the next begins with, unless that is long ago."""
    timed = iter((0.1, 0.4, 0.2, 0.8, 0.6))
    monkeypatch.setattr(execute, "forward_pass", lambda: next(timed))
    made = []
    for number, recent in enumerate((0, 600, 0)):
        monkeypatch.setattr(execute, "RECENT", recent)
        chapter = save_notebook(tmp_path / f"{number}_timed.ipynb", "1")
        execute.execute(chapter)
        made.append(execute.stamp(chapter)["pass"])
    assert made == pytest.approx([0.25, 0.3, 0.7])


def test_costs_are_ratios_to_the_forward_pass(folder, tmp_path, monkeypatch):
    made = [save_notebook(tmp_path / f"{number}.ipynb", "1") for number in (1, 2)]
    monkeypatch.setattr(execute, "chapters", lambda: made)
    assert execute.costs() == {"all chapters": (0, 0, 0)}
    for number, chapter in enumerate(made, start=1):
        execute.execute(chapter)
        stamped = folder / f"{chapter.stem}.json"
        stamped.write_text(f'{{"seconds": {number * 10}, "pass": 0.{number}}}')
    assert execute.costs() == {
        "1": (10, 0.1, 100),
        "2": (20, 0.2, 100),
        "all chapters": (30, 0.15, 200),
    }
    total = execute.table().splitlines()[-1]
    assert "≤ 7500" in total and total.endswith(" 0.3 min"), "200 passes at 100 ms are 20 s"
