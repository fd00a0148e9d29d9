"""The benchmarks: what they count, and that their documented commands run."""

import json

import pytest

from benchmarks import on_gpu
from tests.helpers.commands import command


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
