"""Every method end to end: train, predict, export, serve."""

import json
import runpy

import numpy as np
import pytest

from configs import common
from dpt_jax.config import method_config
from dpt_jax.methods import METHODS, OF_THE_PAPER, TRAINED
from tests.helpers.commands import in_process
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

SHORT = ["--config.train.epochs=1", "--config.train.batch_size=12", "--config.eval.batch_size=18"]
SHORT += ["--config.train.steps_per_shot=0", "--config.classifier.steps_per_shot=0"]


def dpt_jax(*arguments):
    return in_process("-m", "dpt_jax", *map(str, arguments)).stdout


def depths(method):
    """Published depths are for twelve layers, and the tiny CLIP has two."""
    config = method_config(method, "folder")
    for section in ("text_prompt", "visual_prompt"):
        if config[section].depth > 1:
            yield f"--config.{section}.depth=2"


def test_the_table_and_the_files():
    """A method is a row of the table and a file of configs/."""
    files = {file.stem for file in (SMALL.parents[2] / "configs").glob("*.py")}
    assert files == {*METHODS, "common", "__init__"}
    assert {*OF_THE_PAPER} <= {*METHODS}
    assert len({method.marker for method in METHODS.values()}) == len(METHODS)
    assert common.get_config().method in METHODS


# These cover all parts and losses; the mathematics of others is tested elsewhere.
QUICK = {"dptsrc", "cocoop", "maple", "cliplora", "tip_adapter_f"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in TRAINED],
)
def test_train_predict_export_and_serve(method, tiny_clip_dir, tmp_path):
    """The answers are the same by the exported file and by the served program of the run."""
    run = tmp_path / "run"
    flags = [f"--config.clip.weights={tiny_clip_dir}", f"--config.dataset.root={SMALL / 'images'}"]
    flags += [*SHORT, *depths(method), f"--workdir={run}"]
    dpt_jax("train", f"--config={method}:folder", *flags)
    trained = json.loads((run / "results.json").read_text())
    assert (trained["method"], trained["n"]) == (method, 18)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    images = sorted((SMALL / "images" / "test").rglob("*.png"))[:3]
    dpt_jax("convert", "export", run, tmp_path / "prompts.safetensors")
    answers = {
        (one["path"], each["class"]): each["probability"]
        for one in json.loads(
            dpt_jax("predict", tmp_path / "prompts.safetensors", *images, "--json", "--top=6")
        )
        for each in one["predictions"]
    }
    assert len(answers) == 18

    dpt_jax("convert", "serve", run, tmp_path / "served")
    served = runpy.run_path(str(tmp_path / "served" / "classify.py"))
    found = served["load_classifier"]()(np.stack([served["load_image"](one) for one in images]))
    names = served["ABOUT"]["classnames"]
    expected = [[answers[str(image), name] for name in names] for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-5)
