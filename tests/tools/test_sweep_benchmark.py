"""The benchmark of a sweep: its clock, its model of the whole table, and that it runs."""

import time

import pytest

from benchmarks import whole_table
from benchmarks.chips import H100
from benchmarks.stages import COMPILE, OTHER, Clock
from benchmarks.whole_table import MACHINES, Measured, Table, hours
from tests.helpers.commands import command


def test_a_stage_inside_another_one_counts_for_itself():
    clock = Clock()
    with clock.stage("outer"):
        time.sleep(0.02)
        with clock.stage("inner"):
            time.sleep(0.05)
            # Of a program that was traced inside another one, JAX tells the inner one first.
            clock.compiled(0.01)
            clock.compiled(0.04)
    seconds = clock.read()
    assert seconds[COMPILE] == pytest.approx(0.04)
    assert seconds["outer"] >= 0.02
    assert 0.01 <= seconds["inner"] < 0.05
    assert sum(seconds.values()) == pytest.approx(sum(clock.read().values()), abs=0.01)
    assert seconds[OTHER] >= 0


def test_hours_are_those_of_the_formula():
    table = Table(runs=100, firsts=10, trained=1000, looked=600, training=6e15, testing=3e15)
    measured = Measured(run=3.6, programs=4, program=0.9, train_image=12, test_image=6, rate=1e12)
    here, _, eight, h100 = MACHINES
    found = hours(table, measured, here, 0.4)
    # Two cores train for 6,000 s, in which they also read images, which takes as long.
    assert found == pytest.approx((0.1, 0.01, 0.5, 6000 / 3600, 3000 / 3600))
    assert found.together == pytest.approx(sum(found))
    assert hours(table, measured, eight, 0.4)[:2] == pytest.approx((0.1 / 8, 0.01 / 8))
    far = hours(table, measured, h100, 0.5)
    assert far.testing == pytest.approx(3e15 / (0.5 * H100.flops) / 3600)
    assert far.training == pytest.approx(1000 * 12 / h100.cores / 3600)  # it waits for images


def test_the_whole_table_is_counted_once():
    table = whole_table.whole_table()
    assert (table.runs, table.firsts) == (671, 55)
    # Each test image once: 50,000 of ImageNet's, and those of ten datasets.
    assert table.looked == 133_696
    assert table.training > 5 * table.testing


def test_the_benchmark_runs():
    """As its page says, but on the embedded images and without training."""
    done = command("benchmarks/sweep.py", "--data=digits", "--methods=zeroshot", "--seeds=1")
    assert "## digits: 1 runs" in done.stdout
    for stage in ("import", "weights", "compile", "plain CLIP", "writing"):
        assert f"\n| {stage} | " in done.stdout
    assert "Extrapolated: other machines reach 40 % of their peak" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("| one H100 | ")
    wrong = command("benchmarks/sweep.py", "--data=emoji", check=False)
    assert wrong.returncode == 2
    assert "'emoji' is neither digits nor jpeg" in wrong.stderr
