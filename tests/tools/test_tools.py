"""The benchmarks and the notebook run, and the PyTorch baseline computes what the published code
does. The notebook's calls and commands have fast tests of their own.
"""

import json
import re

import jax
import nbclient
import nbformat
import numpy as np
import pytest
import torch
import transformers

from benchmarks import on_gpu
from benchmarks.torch_twin import Twin
from tests.helpers.commands import ROOT, command
from tests.helpers.golden import Golden, assert_close_in_norm
from tests.helpers.published_cases import config_of, prompts_of


@pytest.mark.process
@pytest.mark.slow
def test_the_measurement_on_a_gpu(tmp_path):
    """Its small mode on a CPU, where each command ends well and leaves its output."""
    command("benchmarks/on_gpu.py", f"--out={tmp_path}", "--small")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["name"]: line["code"] for line in lines} == dict.fromkeys(
        dict(on_gpu.commands(small=True)), 0
    )
    assert all((tmp_path / f"{line['name']}.txt").stat().st_size for line in lines)


LOSS, GRADIENTS = 1e-5, 1e-4


def fixed_texts(golden, model, clip):
    """Return Z and t̄ of a golden file, of unit length."""
    names = [f"a photo of a {name}." for name in golden.meta["classnames"]]
    tokens = torch.tensor(
        [[clip.tokenizer.start, *clip.tokenizer.encode(n.replace("_", " ")), clip.tokenizer.end,
          *[0] * 77][:77] for n in names]
    )  # fmt: skip
    pooled = model.text_model(tokens, attention_mask=None).pooler_output
    held = next((golden[k] for k in ("frozen_text_features", "fixed_embeddings")
                 if k in golden.arrays), np.ones((1, 1)))  # fmt: skip
    normalize = torch.nn.functional.normalize
    return normalize(model.text_projection(pooled), dim=-1), normalize(torch.tensor(held), dim=-1)


@pytest.mark.parametrize(
    ("name", "guided", "suffix"),
    [
        ("coop_end", False, "_late"),
        ("dpt_last_layer", True, "_early"),
        ("dpt_last_layer", False, "_late"),
        *(
            (f"family/{x}", False, "")
            for x in ("cocoop", "ivlp", "kgcoop", "maple", "promptsrc_all")
        ),
    ],
)
def test_loss_and_gradient_are_those_of_the_published_code(
    name, guided, suffix, clip, golden_clip_dir
):
    """guided: as in the first epochs of DPT, whose numbers have a suffix in the golden file."""
    golden = Golden(name)
    model = transformers.CLIPModel.from_pretrained(golden_clip_dir(golden.meta)).eval()
    model.requires_grad_(False)
    frozen, held = fixed_texts(golden, model, clip)
    config, alpha = config_of(golden.meta), golden.meta.get("alpha", 0.0)
    tokens = torch.tensor(golden["tokens"]).long()
    twin = Twin(model, config, tokens, frozen, held, alpha, guided)
    prompts = jax.tree.map(
        lambda x: torch.tensor(x, requires_grad=True), prompts_of(golden.tensors("param"))
    )
    loss = twin.loss(prompts, torch.tensor(golden["image"]), torch.tensor(golden["label"]))
    assert loss.item() == pytest.approx(float(golden[f"loss{suffix}"]), rel=LOSS)
    loss.backward()
    gradient = jax.tree.map(lambda x: x.grad.numpy(), prompts)
    assert_close_in_norm(gradient, prompts_of(golden.tensors(f"grad{suffix}")), GRADIENTS)


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
