"""Which settings a run goes by: config file, command line, saved run, and another run's prompts."""

import importlib
import json

import pytest

from configs import coop, dpt, vlp, vpt, zeroshot
from dpt_jax.errors import UserError
from dpt_jax.settings import config as configs


def saved_run(workdir, config, **overrides):
    for key, value in overrides.items():
        configs.set_key(config, key.replace("__", "."), value)
    configs.save(config, workdir)
    return workdir


@pytest.mark.parametrize("name", ["zeroshot", "coop", "vpt", "vlp", "dpt"])
def test_each_config_is_its_method(name):
    config = importlib.import_module(f"configs.{name}").get_config("folder")
    configs.check(config)
    assert configs.method(config) == name
    assert str(configs.default_workdir(config)) == f"runs/{name}/folder/16shot/seed1"


def test_runs_on_half_of_the_classes_have_a_workdir_of_their_own():
    config = dpt.get_config("dtd")
    config.dataset.classes = "base"
    assert str(configs.default_workdir(config)) == "runs/dpt/dtd/16shot/seed1/base"


def test_published_settings_of_imagenet():
    """One epoch of warm-up, where the other datasets have ten."""
    config = dpt.get_config("imagenet")
    assert (config.train.warmup_epochs, config.train.epochs, config.loss.guidance_epochs) == (
        1,
        60,
        30,
    )
    assert config.dataset.template == "a photo of a {}."


def test_published_settings():
    config = dpt.get_config("folder")
    prompts = configs.prompt_config(config, classes=100, layers=12)
    assert (prompts.text_length, prompts.visual_length, prompts.top_k, prompts.first_layer) == (
        16,
        10,
        10,
        12,
    )
    assert (config.loss.alpha, config.loss.guidance_epochs) == (0.3, 30)
    train = config.train
    assert (train.epochs, train.batch_size, train.visual_lr, train.text_lr) == (60, 32, 0.01, 0.002)
    assert train.warmup_epochs == 10


def test_initial_words_set_the_length():
    config = dpt.get_config()
    config.text_prompt.init = "a_photo of a"
    assert configs.prompt_config(config, 3, 4).text_length == 4
    config.text_prompt.length = 0  # the part is off, whatever the words
    assert configs.prompt_config(config, 3, 4).text_length == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, minimum - 1) for key, minimum in configs.MINIMA.items()]
    + [("train.schedule_epochs", 0), ("dtype", "float16"), ("dataset.template", "a photo")]
    + [
        ("dataset.shots", 0),
        ("dataset.shots", -2),
        ("dataset.classes", "old"),
        ("dataset.source", "tape"),
    ]
    + [("dataset.on_error", "ignore")]
    + [("train.visual_lr", float("nan"))],
)
def test_impossible_value_is_named(key, value):
    config = dpt.get_config()
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=key):
        configs.check(config)


def test_saved_and_loaded(tmp_path):
    config = dpt.get_config()
    config.train.schedule_epochs = 7
    configs.save(config, tmp_path)
    assert configs.load(tmp_path, dpt.get_config()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no workdir of a run"),
        ("{", "not valid JSON"),
        ('{"train": {"speed": 1}}', "key train.speed"),
        ('{"seed": "one"}', "seed cannot be 'one'"),
        ('{"cavpt": 3}', "cavpt cannot be 3"),
        ("[]", "does not hold settings"),
    ],
)
def test_damaged_saved_config_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=says):
        configs.load(tmp_path, dpt.get_config())


def test_evaluation_goes_by_the_saved_run_and_the_command_line_wins(tmp_path):
    saved_run(
        tmp_path,
        vlp.get_config("folder"),
        train__epochs=3,
        dataset__root="/there",
        text_prompt__length=4,
    )
    config = dpt.get_config("folder")
    overrides = {"dataset.root": "/here", "eval.save_logits": True}
    found = configs.resolve(config, overrides, False, tmp_path, evaluate=True)
    assert configs.method(found) == "vlp"
    assert (found.text_prompt.length, found.train.epochs) == (4, 3)
    assert (found.dataset.root, found.eval.save_logits) == ("/here", True)


def test_evaluation_on_a_dataset_named_in_the_config_argument(tmp_path):
    saved_run(tmp_path, dpt.get_config("folder"), dataset__root="/there", dataset__shots=4)
    found = configs.resolve(dpt.get_config("emoji"), {}, True, tmp_path, evaluate=True)
    assert (found.dataset.name, found.dataset.root) == ("emoji", "")
    assert found.clip.weights == "openai/clip-vit-base-patch32"  # the prompts belong to it
    found = configs.resolve(dpt.get_config("folder"), {}, True, tmp_path, evaluate=True)
    assert (found.dataset.root, found.dataset.shots) == ("/there", 4)


def test_evaluation_of_another_workdir(tmp_path):
    other = saved_run(tmp_path / "other", coop.get_config(), seed=5)
    config = dpt.get_config()
    config.init_from = str(other)
    found = configs.resolve(
        config, {"init_from": str(other)}, False, tmp_path / "new", evaluate=True
    )
    assert (configs.method(found), found.seed) == ("coop", 5)
    with pytest.raises(UserError, match="missing is no workdir"):
        configs.resolve(
            config, {"init_from": str(tmp_path / "missing")}, False, tmp_path / "new", evaluate=True
        )


def test_training_from_other_prompts_takes_their_sizes_but_not_their_parts(tmp_path):
    other = saved_run(
        tmp_path, vpt.get_config(), visual_prompt__length=3, clip__weights="mine", train__epochs=2
    )
    config = dpt.get_config()
    config.init_from = str(other)
    found = configs.resolve(
        config, {"init_from": str(other)}, False, tmp_path / "new", evaluate=False
    )
    assert configs.method(found) == "dpt"
    assert (found.visual_prompt.length, found.text_prompt.length, found.clip.weights) == (
        3,
        16,
        "mine",
    )
    assert found.train.epochs == 60
    config = coop.get_config()
    config.init_from = str(other)
    assert (
        configs.method(configs.resolve(config, {}, False, tmp_path / "new", evaluate=False))
        == "coop"
    )


def test_started_run_goes_on_with_its_own_settings_only(tmp_path):
    saved_run(tmp_path, dpt.get_config())
    config = dpt.get_config()
    config.dataset.workers, config.checkpoint.keep = 3, 9  # do not change the result
    changed = "dataset.workers (0 there, 3 now), checkpoint.keep (2 there, 9 now)"
    assert set(configs.check_workdir(config, tmp_path).split(", ")) >= set(changed.split(", "))
    config.train.epochs = 61
    with pytest.raises(UserError, match=r"train\.epochs \(60 there, 61 now\)"):
        configs.check_workdir(config, tmp_path)


def test_config_json_is_plain_json(tmp_path):
    configs.save(zeroshot.get_config(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["cavpt"]["top_k"] == 0
