"""Runs a notebook from the top and keeps what it prints and draws.

python tools/run_notebook.py NOTEBOOK [TARGET]
"""

import pathlib
import sys

import nbclient
import nbformat

SECONDS_A_CELL = 600


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    """Run `source` in its own folder and write it with its outputs to `target`.

    Raises what a cell raises.
    """
    notebook = nbformat.read(source, as_version=4)
    where = {"metadata": {"path": str(source.parent)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS_A_CELL, resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the time of day
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    nbformat.write(notebook, target)


def joined(outputs: list) -> list:
    """Return the outputs of a cell, with text that came in pieces joined."""
    result: list = []
    for output in outputs:
        if (
            result
            and output.output_type == result[-1].output_type == "stream"
            and output.name == result[-1].name
        ):
            result[-1].text += output.text
        else:
            result.append(output)
    return result


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[-1]))
