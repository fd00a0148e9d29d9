"""The tutorial, run from the top."""

import re

import pytest

from tests.helpers.commands import ROOT, command

pytestmark = pytest.mark.process

TRAINING = "--config.dataset.shots=8"  # which is shorter in the test
NOTEBOOK = ROOT / "examples" / "your_own_images.ipynb"


def outputs(notebook):
    """What each code cell prints, and how many pictures it shows."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell) for cell in cells]
    return texts, [sum("image/png" in output.get("data", {}) for output in cell) for cell in cells]


def test_the_tutorial_runs_and_shows_what_it_showed(tmp_path):
    import nbformat

    for name in ("dpt_jax", "configs", "main.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").mkdir()
    copy = tmp_path / "examples" / NOTEBOOK.name
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count(TRAINING) == 1
    copy.write_text(text.replace(TRAINING, f"{TRAINING} --config.train.epochs=2"), encoding="utf-8")
    command("tools/run_notebook.py", str(copy))
    before, after = (outputs(nbformat.read(file, as_version=4)) for file in (NOTEBOOK, copy))
    assert after[1] == before[1]
    assert sum(after[1]) == 2
    # Another processor rounds differently: the numbers may be others, what they are of may not.
    for texts in (before[0], after[0]):
        assert re.search(r"dpt: \d+\.\d % of 322 test images right.*\nzero-shot: \d+", texts[2])
        assert texts[5].startswith(
            "written to runs/tutorial/answers.csv: 322 images\npath,error,class_1"
        )
        assert re.search(r"strawberry\.png  \w+ \d+\.\d %", texts[-1])
