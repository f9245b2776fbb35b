"""Every notebook runs from its text, asserts included, and the pair that is shown has the same cells, all executed."""

import pathlib

import pytest

for needed in ("jupytext", "nbclient", "ipykernel", "matplotlib"):
    pytest.importorskip(needed, reason=f"{needed} of the extra `notebooks` is not installed")
nbformat = pytest.importorskip("nbformat")
execute = pytest.importorskip("notebooks.execute")

MOST_BYTES = 400_000  # of a file with its plots: a code host shows no large ones

notebooks = pytest.mark.parametrize("source", execute.SOURCES, ids=lambda path: path.stem)


def shown(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_there_are_four():
    assert [path.stem[:2] for path in execute.SOURCES] == ["01", "02", "03", "04"]


@notebooks
def test_it_runs(source):
    notebook = execute.read(source)
    execute.run(notebook)
    assert any(output.output_type == "display_data" for cell in notebook.cells for output in cell.get("outputs", ()))


@notebooks
def test_the_pair_agrees(source):
    def cells(notebook):
        return [(cell.cell_type, cell.id, cell.source) for cell in notebook.cells]

    assert cells(shown(source)) == cells(execute.read(source)), "`make notebooks` writes the pair anew"
    assert source.with_suffix(".ipynb").stat().st_size < MOST_BYTES


@notebooks
def test_what_is_shown_was_run_once_from_top_to_bottom(source):
    code = [cell for cell in shown(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 0
    assert str(pathlib.Path.home()) not in source.with_suffix(".ipynb").read_text(encoding="utf-8")
