"""Every chapter runs from beginning to end; the pages are then built from these very runs."""

import nbformat
import pytest

from bookbuild import chapters
from bookbuild.execute import EXECUTED, execute


@pytest.mark.slow
@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_chapter_runs(chapter):
    executed = nbformat.read(execute(chapter), as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # stderr is left out of the pages, where it would show progress bars; it must hide no warning.
    stderr = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "warning" not in stderr.lower()


@pytest.mark.slow
def test_a_second_run_does_nothing(capsys):
    chapter = chapters()[0]
    execute(chapter)
    before = (EXECUTED / chapter.name).stat().st_mtime_ns
    capsys.readouterr()
    execute(chapter)
    assert "up to date" in capsys.readouterr().out
    assert (EXECUTED / chapter.name).stat().st_mtime_ns == before


def test_a_failing_notebook_fails_and_leaves_its_copy(tmp_path, monkeypatch):
    import papermill

    from bookbuild import execute as executor

    cells = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", "1 / 0", "2 + 2")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    chapter = tmp_path / "99_failing.ipynb"
    nbformat.write(notebook, chapter)
    monkeypatch.setattr(executor, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(executor, "key", lambda chapter: "any")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        executor.execute(chapter)
    left = nbformat.read(tmp_path / "executed" / chapter.name, as_version=4)
    outputs = [output for cell in left.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.output_type for output in outputs] == ["execute_result", "error"]
    assert executor.stamp(chapter) == {}
