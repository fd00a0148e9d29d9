"""The page and the figures of one run."""

import json
import re
import shutil

import pytest

import dpt_jax
from dpt_jax.report import one_run as run_report
from tests.helpers.commands import in_process
from tests.helpers.golden import IMAGES

pytestmark = pytest.mark.compiles


def test_one_page_a_run(trained, tmp_path):
    """Self-contained, with class names that are markup shown as text."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    results = json.loads((workdir / "results.json").read_text())
    results["of"]["settings"]["dataset.template"] = "this evaluation's {}"
    old, evil = next(iter(results["per_class"])), "<script>x</script>"
    text = json.dumps(results).replace(json.dumps(old), json.dumps(evil))
    (workdir / "results.json").write_text(text)
    done = in_process("report", "--html", workdir)
    assert f"written: {workdir / 'report.html'}" in done.stdout
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    asked = re.findall(r'(?:src|href)="(.{22})', page)
    assert {*asked} == {"data:image/png;base64,"}
    assert len(asked) >= 5
    parts = ["Training", "Correct where zero-shot CLIP is wrong", "Wrong, most confident first"]
    for part in (*parts, "Words near the context", "Calibration", "Settings", "train.visual_lr"):
        assert part in page
    assert "this evaluation&#39;s {}" in page


def test_a_page_of_an_evaluation_elsewhere(trained, tmp_path):
    """WORKDIR/on/DATASET has no prompts of its own, and no training."""
    workdir = tmp_path / "on"
    flags = [f"--config.init_from={trained}", f"--config.dataset.root={IMAGES}"]
    in_process("main.py", "--config=dpt:folder", "--mode=eval", *flags, f"--workdir={workdir}")
    done = in_process("report", "--html", workdir)
    assert "report.html" in done.stdout
    assert "Training" not in (workdir / "report.html").read_text(encoding="utf-8")
    assert dpt_jax.load(workdir).classnames == dpt_jax.load(trained).classnames


def test_report_of_a_run_draws_training_and_reliability(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    text, written = run_report.report_run(tmp_path / "run")
    assert written == ["report.md", "report.csv", "report.png", "training.png", "reliability.png"]
    assert all((tmp_path / "run" / name).is_file() for name in written)
    assert "expected calibration error" in text
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "training.png" not in run_report.report_run(tmp_path / "run")[1]
