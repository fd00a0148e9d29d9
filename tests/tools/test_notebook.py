"""The tutorial, run from the top. Its calls and commands have fast tests of their own."""

import re

import nbclient
import nbformat
import pytest

from tests.helpers.commands import ROOT

NOTEBOOK = ROOT / "examples" / "your_own_images.ipynb"
SHOWN = "0512.png"
DIGITS = "dpt_jax/assets/digits"
# Fewer images and a shorter training in the tests.
SHORTER = {DIGITS: "digits", "epochs=100": "epochs=1", "%pip install --quiet .": "pass"}


def shortened(tmp_path):
    """The notebook, shortened, in a folder that has what it needs."""
    for name in ("dpt_jax", "configs", "main.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for digit in (ROOT / DIGITS).glob("t*/*"):  # train and test
        few = tmp_path / "digits" / digit.relative_to(ROOT / DIGITS)
        few.mkdir(parents=True)
        # The one that the notebook shows is among them.
        for image in sorted(digit.iterdir(), key=lambda file: file.name != SHOWN)[:4]:
            (few / image.name).symlink_to(image)
    file = tmp_path / "examples" / NOTEBOOK.name
    file.parent.mkdir()
    text = NOTEBOOK.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    file.write_text(text, encoding="utf-8")
    return file


def outputs(notebook):
    """What each code cell prints, and whether it shows a picture."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell) for cell in cells]
    return texts, [any("image/png" in output.get("data", {}) for output in cell) for cell in cells]


@pytest.mark.process
@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_showed(tmp_path):
    """Another processor rounds differently, so numbers may differ, but not the text around them."""
    file = shortened(tmp_path)
    notebook, place = nbformat.read(file, as_version=4), {"metadata": {"path": str(file.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    found, shown = outputs(notebook)
    saved, shown_before = outputs(nbformat.read(NOTEBOOK, as_version=4))
    assert shown == shown_before
    assert sum(shown) == 2
    for images, texts in ((797, saved), (40, found)):
        trained, answers, served = (texts[i] for i in (3, 7, -1))
        assert re.search(rf"\d+\.\d % of {images} test images right\nzero-shot: \d+", trained)
        assert f"written to runs/tutorial/answers.csv: {images} images" in answers
        assert "path,error,class_1" in answers
        assert re.search(rf"{SHOWN}  \w+ \d+\.\d %", served)
