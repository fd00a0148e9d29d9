"""Runs of other data, backbones or settings are not one row or column."""

import re

import pytest

from dpt_jax.evaluation.results import read_result
from dpt_jax.report import runs as report
from dpt_jax.report.one_run import in_words
from tests.helpers.run_results import origin, rows_of, write


def of(data="a" * 64, trained="", **more):
    """The origin of results on a folder of images; `more` has settings, or replaces entries."""
    settings = {key: more.pop(key) for key in ("train.epochs", "dtype") if key in more}
    return {
        **origin("flowers", "flowers", test_list=data, epoch=2, epochs=2),
        "data": {"name": "flowers", "digest": data},
        "trained_on": {"name": "flowers", "digest": trained or data},
        "settings": {"train.epochs": 2, "dtype": "float32", **settings},
        **more,
    }


def write_folder(folder, accuracy, *, seed=1, n=50, **more):
    write(folder, "dpt", accuracy, dataset="folder", seed=seed, n=n, of=of(**more))


def test_a_folder_is_called_by_its_name(tmp_path):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 80, seed=2, train_list="u")
    text = report.report_folder(tmp_path)[0]
    assert "### flowers\n" in text
    assert rows_of(text)[2:] == [["DPT", "85.0 ± 5.0"]]
    assert "Note:" not in text


@pytest.mark.parametrize(
    ("other", "headings"),
    [
        ({"data": "c" * 64, "n": 700}, ("flowers (aaaaaa)", "flowers (cccccc)")),
        ({"backbone": "d" * 16}, ("flowers (CLIP bbbbbb)", "flowers (CLIP dddddd)")),
        # Prompts of one folder tested on another.
        ({"data": "c" * 64, "trained": "a" * 64}, ("From flowers (aaaaaa) to other datasets",)),
    ],
)
def test_other_data_and_backbones_have_tables_of_their_own(tmp_path, other, headings):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, **other)
    text = report.report_folder(tmp_path)[0]
    assert all(f"### {heading}\n" in text for heading in headings)
    assert ["DPT", "60.0 ± 30.0"] not in rows_of(text)


def test_a_training_that_had_not_ended_is_no_seed_of_a_result(tmp_path):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, seed=2, train_list="u", epoch=1)
    text = report.report_folder(tmp_path)[0]
    assert rows_of(text)[2:] == [["DPT", "90.0"]]
    assert "b is from epoch 1 of 2: left out" in text
    found = read_result(tmp_path / "b" / "results.json")
    assert "seed 2, to epoch 1 of 2: 30.0 %" in in_words(found)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"train.epochs": 3}, r"differ in train.epochs \([23] and [23]\)"),
        ({"dtype": "bfloat16"}, "differ in dtype"),
        ({"init_from": True}, "differ in init_from"),
        ({"n": 51}, "differ in the number of test images"),
        ({"seed": 1, "train_list": "u"}, "of one seed differ in their training images"),
        ({"seed": 1, "prompts": "q"}, "of one seed differ in their prompts"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_left_out_by_name(tmp_path, other, says):
    """Also if neither is the first run of its cell."""
    write_folder(tmp_path / "0", 80, seed=3)
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, **{"seed": 2, **other})
    write(tmp_path / "c", "coop", 50)
    text = report.report_folder(tmp_path)[0]
    assert re.search(f"[0a] and .*b {says}.*left out", text)
    assert rows_of(text)[2:] == [["CoOp", "50.0"]]


def test_kinds_of_selection_are_not_mixed_and_versions_are_named(tmp_path):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 80, seed=2, train_list="u")
    for seed, by in ((1, "support"), (2, "none")):
        own = {"selection": by, "task": "flowers@12345678", "of": of(train_list=str(seed))}
        write(tmp_path / by, "zslp", 70, dataset="folder", seed=seed, **own)
    text = report.report_folder(tmp_path)[0]
    assert [row[0] for row in rows_of(text)[2:]] == ["DPT"]
    assert "(none and support)" in text
    (tmp_path / "none" / "results.json").unlink()
    text = report.report_folder(tmp_path)[0]
    assert "chosen by support: ZS-LP" in text
