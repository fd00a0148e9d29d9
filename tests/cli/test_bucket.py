"""Commands whose files are all in a bucket: data, runs, prompt files, answers, reports."""

import pytest

from dpt_jax.io import as_path, find_files
from tests.helpers.commands import in_process
from tests.helpers.golden import SMALL
from tests.helpers.object_store import put_folder

pytestmark = [pytest.mark.compiles, pytest.mark.process]


def test_everything_in_a_bucket(clip_dir, bucket):
    put_folder(SMALL / "images", f"{bucket}/images")
    there = as_path(bucket)
    data = [f"--config.dataset.root={bucket}/images", f"--config.clip.weights={clip_dir}",
            "--config.train.epochs=1"]  # fmt: skip
    in_process("-m", "dpt_jax", "sweep", "--methods=zeroshot,coop", "--datasets=folder",
               "--shots=1", "--seeds=1", f"--runs={bucket}/runs", *data)  # fmt: skip
    assert len(find_files(there, "results.json")) == 2
    in_process("-m", "dpt_jax", "report", f"{bucket}/runs")
    assert (there / "runs" / "report.md").is_file()
    run = find_files(there, "metrics.jsonl")[0].parent
    in_process("-m", "dpt_jax", "report", str(run), "--html")
    assert "data:image/png" in (run / "report.html").read_text()
    in_process("-m", "dpt_jax", "convert", "export", str(run), f"{bucket}/a.safetensors")
    config = "--config=configs/coop.py:folder"
    in_process("main.py", config, *data, "--config.dataset.workers=2", "--config.dataset.shots=2",
               f"--config.init_from={bucket}/a.safetensors",
               f"--workdir={bucket}/second")  # fmt: skip
    in_process("-m", "dpt_jax", "predict", f"{bucket}/second", f"{bucket}/images/test",
               f"--csv={bucket}/answers.csv")  # fmt: skip
    assert (there / "answers.csv").read_text().count("\n") == 19
    image = find_files(there / "images", "*.png") or sorted((there / "images/test").glob("*/*"))
    in_process("-m", "dpt_jax", "visualize", f"{bucket}/second", str(image[0]))
    assert list((there / "second" / "pictures").iterdir())
    in_process("main.py", config, *data, "--mode=eval",
               f"--config.init_from={bucket}/a.safetensors")  # fmt: skip
    assert (there / "a" / "on" / "folder" / "results.json").is_file()
