"""Whole tables under one name."""

import argparse
import itertools

import pytest

from dpt_jax.cli import sweep
from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.training.grid import Run, run_config


def planned(*arguments):
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    return sweep._plan(parser.parse_args(arguments), {})


def test_the_paper_is_its_five_methods_on_its_eleven_datasets():
    runs = planned("--preset=paper")
    table = {(one.method, one.dataset, one.shots, one.seed) for one in runs if one.learns}
    trained = ("coop", "vpt", "vlp", "dpt")
    assert table == {*itertools.product(trained, PAPER_DATASETS, (1, 2, 4, 8, 16), (1, 2, 3))}
    # Zero-shot once a dataset, though the table has it for each number of shots and each seed.
    assert [one.dataset for one in runs if not one.learns] == list(PAPER_DATASETS)
    assert len(runs) == 671
    config = run_config(Run("dpt", "imagenet", 16, 1, "all", ()), {})
    assert (config.clip.weights, config.train.epochs, config.train.warmup_epochs) == (
        "openai/clip-vit-base-patch32", 60, 1)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "runs"),
    [
        (["--datasets=dtd,eurosat"], 2 * (1 + 4 * 15)),
        (["--methods=dpt", "--shots=16"], 11 * 3),
        (["--seeds=1", "--protocol=few-shot"], 11 * (1 + 4 * 5)),
    ],
)
def test_a_flag_wins_over_the_preset(flags, runs):
    assert len(planned("--preset=paper", *flags)) == runs


def test_without_a_preset_the_embedded_dataset_is_run():
    assert {(one.dataset, one.protocol) for one in planned()} == {("digits", "few-shot")}
    assert {one.dataset for one in planned("--protocol=cross-dataset")} == {"imagenet"}
