"""Commands with all files in a bucket: data, runs, prompt files, answers, reports."""

import pytest

from dpt_jax.io import as_path, find_files
from tests.helpers.commands import in_process
from tests.helpers.configs import small_flags
from tests.helpers.golden import SMALL
from tests.helpers.object_store import put_folder

pytestmark = [pytest.mark.compiles, pytest.mark.process]


def test_everything_in_a_bucket(tiny_clip_dir, bucket):
    put_folder(SMALL / "images", f"{bucket}/images")
    there = as_path(bucket)
    data = small_flags(tiny_clip_dir, dataset__root=f"{bucket}/images")
    sizes = ["--config.text_prompt.length=4", "--config.train.batch_size=6"]
    in_process("sweep", "--methods=coop", "--datasets=folder", "--shots=2", "--seeds=1",
               f"--runs={bucket}/runs", *data, *sizes, "--config.train.epochs=1")  # fmt: skip
    (results,) = find_files(there, "results.json")
    run = f"{results.parent}"
    in_process("report", f"{bucket}/runs")
    assert (there / "runs" / "report.md").is_file()
    in_process("convert", "export", run, f"{bucket}/a.safetensors")
    in_process("predict", run, f"{bucket}/images/test", f"--csv={bucket}/answers.csv")
    assert (there / "answers.csv").read_text().count("\n") == 19
    image = next((there / "images" / "test" / "airplane").iterdir())
    in_process("visualize", run, image)
    assert list((results.parent / "pictures").iterdir())
    in_process("main.py", "--config=configs/coop.py:folder", *data, "--mode=eval",
               f"--config.init_from={bucket}/a.safetensors")  # fmt: skip
    assert (there / "a" / "on" / "folder" / "results.json").is_file()
