"""Every method end to end: train, predict, export, serve."""

import json
import runpy

import numpy as np
import onnxruntime
import pytest

from dpt_jax.config import method_config
from dpt_jax.methods import METHODS, ZERO_SHOT
from tests.helpers.commands import assert_refused, in_process
from tests.helpers.configs import IMAGES, small_flags
from tests.helpers.runs import results_of

pytestmark = pytest.mark.compiles

SHORT = {"train__epochs": 1, "train__batch_size": 12, "eval__batch_size": 18}
SHORT |= {"train__steps_per_shot": 0, "classifier__steps_per_shot": 0}

# These cover all parts and losses; the mathematics of others is tested elsewhere.
QUICK = {"dptsrc", "cocoop", "maple", "cliplora", "tip_adapter_f"}
OTHERS = [pytest.param(x, marks=pytest.mark.slow) for x in METHODS if x not in {*QUICK, ZERO_SHOT}]


@pytest.mark.parametrize("method", [*sorted(QUICK), *OTHERS])
def test_train_predict_export_and_serve(method, tiny_clip_dir, tmp_path):
    """The answers are the same by the exported file and by the served programs of the run."""
    run = tmp_path / "run"
    # Published depths are for twelve layers, and the tiny CLIP has two.
    config = method_config(method, "folder")
    deep = [x for x in ("text_prompt", "visual_prompt") if config[x].depth > 1]
    flags = small_flags(tiny_clip_dir, **SHORT, **{f"{x}__depth": 2 for x in deep})
    flags.append(f"--workdir={run}")
    in_process("train", f"--config={method}:folder", *flags)
    trained = results_of(run)
    assert (trained["method"], trained["n"]) == (method, 18)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    images = sorted((IMAGES / "test").rglob("*.png"))[:3]
    in_process("convert", "export", run, tmp_path / "a.safetensors")
    said = in_process("predict", tmp_path / "a.safetensors", *images, "--json", "--top=6").stdout
    answers = {
        (one["path"], each["class"]): each["probability"]
        for one in json.loads(said)
        for each in one["predictions"]
    }
    assert len(answers) == 18

    in_process("convert", "serve", run, tmp_path / "served")
    served = runpy.run_path(str(tmp_path / "served" / "classify.py"))
    pixels = np.stack([served["load_image"](one) for one in images])
    found = served["load_classifier"]()(pixels)
    names = served["ABOUT"]["classnames"]
    expected = [[answers[str(image), name] for name in names] for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    if method in QUICK - {"cocoop"}:  # the conversion takes long
        return
    file = tmp_path / "a.onnx"
    done = in_process("convert", "onnx", run, file, check=method != "cocoop")
    if method == "cocoop":  # its texts depend on the image
        assert_refused(done, "cocoop")
        return
    session = onnxruntime.InferenceSession(file)
    for n in (1, 3):
        (found,) = session.run(None, {"images": pixels[:n]})
        np.testing.assert_allclose(found, expected[:n], atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert (json.loads(about["classnames"]), about["image_size"]) == (names, "16")
