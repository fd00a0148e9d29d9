"""`dpt-jax check` finds what is wrong with a machine, and exits with code 1."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dpt_jax import check as report
from dpt_jax.check import Row, table
from dpt_jax.io import as_path
from dpt_jax.training import workdir as workdirs
from tests.helpers.commands import command, in_process, start
from tests.helpers.golden import Golden
from tests.helpers.object_store import free_port
from tests.helpers.runs import finish


def not_ok(rows):
    return {row.name for row in rows if row.ok is False}


def test_the_table_names_what_is_not_ok():
    rows = [Row("machine", "hosts", "1"), Row("numbers", "loss", "2e-05", "<= 1e-05", False)]
    rows += [Row("numbers", "logits", "2e-05", "<= 1e-04", True)]
    with report.timed(rows, "storage", "write", "no error"):
        raise PermissionError("not here")
    assert not_ok(rows) == {"loss", "write"}
    text = table(rows)
    assert text.splitlines()[-1] == "2 not ok: numbers: loss; storage: write"
    assert "PermissionError: not here" in text
    assert table(rows[:1]).endswith("all ok")


def test_the_golden_case_is_the_published_codes():
    tests, shipped = Golden("dpt_last_layer"), report.golden_arrays()
    np.testing.assert_array_equal(shipped["logits"], tests["logits"])
    assert shipped["loss"] == tests["loss_early"]


def rounded(params):
    """Matrices as a GPU rounds them to TF32, to ten bits of mantissa."""

    def round_one(x):
        bits = np.asarray(x, np.float32).view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32) if x.ndim > 1 else x

    return jax.tree.map(round_one, params)


def with_a_wrong_weight(params):
    """Change one number of a layer norm."""
    changed = jax.tree.map(np.array, params)
    changed["text"]["ln_final"]["scale"][3] *= 1.05
    return changed


@pytest.mark.compiles
@pytest.mark.parametrize("change", [None, rounded, with_a_wrong_weight])
def test_wrong_numbers_are_found(change, monkeypatch):
    if change:
        params = change(report.golden_params())
        monkeypatch.setattr(report, "golden_params", lambda: params)
    monkeypatch.delitem(report.BOUNDS, "bfloat16")
    rows = [*report.numbers()]
    assert sum(row.name.startswith("gradient") for row in rows) == 13
    assert not_ok(rows) >= {row.name for row in rows[:2]} if change else not not_ok(rows)


def test_storage_that_works(tmp_path, bucket):
    for workdir in (tmp_path / "new", as_path(f"{bucket}/run")):
        rows = report.storage(workdir)
        assert [row.ok for row in rows] == [True] * 5, table(rows)
    assert not list((tmp_path / "new").iterdir())


def test_storage_that_refuses(tmp_path, store, monkeypatch):
    """No folder can be made below a file, nor in a bucket that does not exist."""
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", as_path("gs://no-such-bucket/run")):
        assert not_ok(report.storage(workdir)) == {"write and read 1 MB"}
    # A file system on which two processes can lock the same file.
    monkeypatch.setattr(workdirs.fcntl, "flock", lambda *_: None)
    assert not_ok(report.storage(tmp_path / "new")) == {"lock"}


@pytest.mark.parametrize("ok", [True, False, None])
def test_exit_code_and_json(ok, monkeypatch, tmp_path):
    row = Row("numbers", "loss", "1e-3", "<= 1e-5", ok)
    monkeypatch.setattr(report, "check", lambda *arguments: [row])
    done = in_process("check", "--json", f"--workdir={tmp_path}", check=False)
    assert done.returncode == (1 if ok is False else 0)
    assert json.loads(done.stdout) == [dataclasses.asdict(row)]


@pytest.mark.slow
@pytest.mark.process
def test_the_whole_command(tmp_path):
    """Also what --quick leaves out, and on several devices."""
    done = command("-m", "dpt_jax", "check", "--clip=small", f"--workdir={tmp_path}", devices=2)
    assert done.stdout.splitlines()[-1] == "all ok"
    for name in ("logits, float32, 2 devices", "resumed", "memory, by", "later epochs"):
        assert name in done.stdout
    assert not list(tmp_path.iterdir())


HOSTS = """
import sys
from dpt_jax import distributed
from dpt_jax.check import hosts, storage, table
from dpt_jax.io import as_path

port, number, folder = sys.argv[1:]
distributed.connect(f"localhost:{port}", 2, int(number))
rows = [*hosts({"--clip": "small"}), *storage(as_path(f"{folder}/shared"))]
rows += storage(as_path(f"{folder}/{number}"))
rows += hosts({"--clip": "small" if number == "0" else "vit-b-16"})
print(table(rows))
"""


@pytest.mark.slow
@pytest.mark.process
def test_two_hosts(tmp_path):
    """With equal and different settings, in a folder that they share and in two that differ."""
    port = str(free_port())
    for printed in finish([start("-c", HOSTS, port, i, str(tmp_path), devices=2) for i in "01"]):
        last = printed.splitlines()[-1]
        assert "2 not ok: storage: list; hosts: " in last
        assert "host 1 has a different --clip" in printed
    assert not list(tmp_path.glob("*/*"))
