"""Configurations: published ones, the command line's, those of runs, and invalid ones."""

import importlib
import json
import re

import numpy as np
import pytest

from configs import coop, dpt, ivlp, kgcoop, maple, promptsrc, vlp, vpt
from dpt_jax import config as configs
from dpt_jax.config import from_command_line
from dpt_jax.io import as_path
from dpt_jax.methods import METHODS
from dpt_jax.training import workdir as workdirs
from dpt_jax.training.checkpoints import Checkpoints
from dpt_jax.training.saved import check_same_run
from tests.helpers.commands import ROOT, command_refused, in_process, refused

KEYS = configs.KEYS


def read(*arguments):
    return from_command_line(arguments)


def saved_run(workdir, config, **overrides):
    own = {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(own)
    workdirs.save_config(config, workdir)
    return workdir


def test_settings_prints_every_key_with_a_comment():
    printed = in_process("settings").stdout
    for key in KEYS:
        assert re.search(rf"^# .*\n--config\.{re.escape(key)}=", printed, re.MULTILINE), key


@pytest.mark.parametrize("method", METHODS)
def test_each_file_is_its_method_and_valid(method, monkeypatch):
    monkeypatch.chdir(ROOT)
    by_file, _ = read(f"--config=configs/{method}.py:eurosat:base-to-new")
    by_name, _ = read(f"-config={method}:eurosat:base-to-new")  # absl takes one dash too
    assert by_file.config.to_dict() == by_name.config.to_dict()
    assert by_file.dataset_named
    config = importlib.import_module(f"configs.{method}").get_config("folder")
    configs.validate(config)
    assert config.method == configs.prompt_config(config, 3, 12).method == method
    assert str(workdirs.run_dir(as_path("runs"), config)) == f"runs/{method}/folder/16shot/seed1"


def test_settings_by_dataset_and_protocol():
    """As published; tiny-clip has fewer layers than the CLIP of the papers' tables."""
    assert dpt.get_config("imagenet").train.warmup_epochs == 1
    assert vpt.get_config("imagenet").train.warmup_epochs == 10
    prompts = configs.prompt_config(ivlp.get_config("dtd"), 100, layers=12, init_tokens=4)
    assert (prompts.text_length, prompts.text_depth) == (2, 12)
    drawn = ivlp.get_config("emoji")
    assert (drawn.clip.weights, drawn.text_prompt.depth) == ("tiny-clip", 3)
    assert kgcoop.get_config("dtd").loss.template == "a photo of a {}, a type of texture."
    assert kgcoop.get_config("imagenet:cross-dataset").dataset.shots == 4
    for arg, numbers in {
        "sun397": (9, 50, 30, 30),
        "eurosat": (9, 50, 45, 5),
        "eurosat:base-to-new": (9, 20, 15, 1),
        "imagenet:cross-dataset": (3, 20, 6, 10),
        "imagenet:domain-generalization": (3, 20, 6, 10),
    }.items():
        config = promptsrc.get_config(arg)
        train = config.train
        found = (train.epochs, train.average_mean, train.average_deviation)
        assert (config.text_prompt.depth, *found) == numbers
    assert len(configs.templates(config, "loss.template")) == 60


def test_other_arguments_are_left_alone():
    given, rest = read("predict", "--top=3", "--config.seed", "7", "--", "--config.seed=8")
    assert given.overrides == {"seed": 7}
    assert rest == ["predict", "--top=3", "--", "--config.seed=8"]
    assert read("--config.seed=3", "--config=coop")[0].config.method == "coop"  # in any order


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("--config.train.epoch=3", "did you mean train.epochs?"),
        ("--config.train.epochs=many", "--config.train.epochs=many"),
        ("--config.seed", "--config.seed"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config=dpt:imagnet", "'imagnet'"),
        ("--config.text_prompt.length=0", "text_prompt.length"),
        ("--config.dataset.classes=old", "dataset.classes"),
        ("--config.dataset.template={0.__class__}", "dataset.template"),
        ("--config.text_prompt.init=a\u202eb", "text_prompt.init"),
        ("--config=dpt:digits --config.dataset.root=x", "dataset.root"),
        ("--config=vpt --config.loss.text_consistency=8", "loss.text_consistency"),
        ("--config=ivlp --config.text_prompt.class_position=front", "fixed_words"),
        ("--config.visual_prompt.depth=4", "visual_prompt.depth"),  # of a CLIP of three layers
        # What is not there.
        ("--config=dpt:folder --config.dataset.root=/nowhere", "/nowhere"),
        (
            "--config=dpt:folder --config.dataset.root=tests --config.dataset.source=coop",
            "'folder'",
        ),
        ("--config.clip.weights=/nowhere", "/nowhere"),
        ("--workdir=main.py", "main.py"),
        ("--mode=eval", "run"),
    ],
)
def test_wrong_settings_are_one_sentence_and_write_nothing(argument, names, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = command_refused(names, "main.py", workdir, *argument.split(" "))
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_config_file_of_ones_own_is_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1")
    refused("mine.py.*get_config", read, f"--config={file}")
    mistyped = "def get_config(): return ConfigDict({'train': {'epoch': 3}})"
    file.write_text(f"from ml_collections import ConfigDict\n{mistyped}")
    refused("mine.py.*train.epoch .* did you mean train.epochs", read, f"--config={file}")


def test_a_key_newer_than_a_run_has_its_default(tmp_path):
    saved_run(tmp_path, dpt.get_config(), train__schedule_epochs=7)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["seed"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = workdirs.load_config(tmp_path)
    assert (found.seed, found.train.schedule_epochs) == (1, 7)


def test_evaluation_uses_the_saved_run_and_the_command_line_takes_precedence(tmp_path):
    """Also the dataset that it names."""
    saved_run(tmp_path, vlp.get_config("folder"), dataset__root="/there", dataset__shots=4)
    overrides = {"dataset.root": "/here", "eval.save_logits": True}
    found = workdirs.evaluation_config(dpt.get_config("folder"), overrides, False, tmp_path)
    assert (found.method, found.dataset.shots) == ("vlp", 4)
    assert (found.dataset.root, found.eval.save_logits) == ("/here", True)
    found = workdirs.evaluation_config(dpt.get_config("emoji"), {}, True, tmp_path)
    assert (found.dataset.name, found.dataset.root, found.dataset.shots) == ("emoji", "", 4)
    assert found.clip.weights == "openai/clip-vit-base-patch32"  # of the prompts
    found = workdirs.evaluation_config(dpt.get_config("folder"), {}, True, tmp_path)
    assert (found.dataset.root, found.dataset.shots) == ("/there", 4)


def test_training_from_other_prompts_takes_their_sizes_but_not_their_parts(tmp_path):
    own = {"visual_prompt__length": 3, "clip__weights": "mine"}
    other = saved_run(tmp_path / "vpt", vpt.get_config(), **own)
    config = dpt.get_config()
    config.init_from = str(other)
    found = workdirs.training_config(config, {}, tmp_path / "new")
    assert (found.method, found.clip.weights) == ("dpt", "mine")
    assert (found.visual_prompt.length, found.text_prompt.length) == (3, 16)
    config = maple.get_config()
    config.init_from = str(saved_run(tmp_path / "ivlp", ivlp.get_config(), text_prompt__depth=2))
    found = workdirs.training_config(config, {}, tmp_path / "new")
    assert (found.text_prompt.depth, found.visual_prompt.coupled) == (2, True)


def test_a_resumed_run_may_change_what_its_result_does_not_depend_on(tmp_path):
    saved_run(tmp_path, dpt.get_config("emoji"))
    config = dpt.get_config("emoji")
    config.dataset.workers, config.checkpoint.keep = 3, 9
    changed = check_same_run(config, tmp_path, configs.FREE)
    assert "dataset.workers (0 there, 3 now)" in changed
    config.train.epochs = 61
    check = check_same_run
    refused(r"train\.epochs .*--allow_changes", check, config, tmp_path, configs.FREE)
    assert "train.epochs" in check(config, tmp_path, configs.UNBOUND)
    config.text_prompt.length = 4
    refused(r"text_prompt\.length", check, config, tmp_path, configs.UNBOUND)


def test_an_evaluation_has_the_settings_of_the_newest_prompts(tmp_path):
    """A run was resumed with another seed, and then lost the checkpoints of that training."""
    saved_run(tmp_path, coop.get_config("folder"), seed=2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"text": np.zeros(2)}, {"settings": {"seed": 1}})
        checkpoints.wait()
    found = workdirs.evaluation_config(coop.get_config("folder"), {}, False, tmp_path)
    assert found.seed == 1
    found = workdirs.evaluation_config(coop.get_config("folder"), {"seed": 2}, False, tmp_path)
    assert found.seed == 2  # which is refused with these prompts
