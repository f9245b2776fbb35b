"""Runs notebooks from their text and writes the pair with the outputs: `python notebooks/execute.py [01_...py ...]`.

The `.py` is what is edited; an `.ipynb` is made from it, so that a reader of the repository sees numbers and plots.
Without arguments all of them run. `make notebooks` does it.
"""

import pathlib
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
SECONDS = 600  # a cell that takes longer has failed


def read(source: pathlib.Path) -> nbformat.NotebookNode:
    """The cells of a notebook's text, without outputs. Their ids are their numbers, so that none changes by itself."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def run(notebook: nbformat.NotebookNode) -> None:
    """Fills in the outputs, in a kernel of its own that sees this checkout. Raises CellExecutionError."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,  # lines printed by a cell are one output, however they arrived
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata.pop("language_info", None)  # which Python it was


if __name__ == "__main__":
    for path in [pathlib.Path(name).resolve() for name in sys.argv[1:]] or SOURCES:
        made = read(path)
        run(made)
        nbformat.write(made, path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb").name)
