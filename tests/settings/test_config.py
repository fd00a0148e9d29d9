"""Which settings a run goes by: config file, command line, saved run, and another run's prompts."""

import importlib
import json

import pytest

from configs import coop, dpt, ivlp, kgcoop, maple, promptsrc, vlp, vpt, zeroshot
from dpt_jax import settings
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS


def saved_run(workdir, config, **overrides):
    for key, value in overrides.items():
        settings.set_key(config, key.replace("__", "."), value)
    settings.save(config, workdir)
    return workdir


@pytest.mark.parametrize("name", METHODS)
def test_each_config_is_its_method(name):
    config = importlib.import_module(f"configs.{name}").get_config("folder")
    settings.check(config)
    assert config.method == name
    assert str(settings.default_workdir(config)) == f"runs/{name}/folder/16shot/seed1"


def test_runs_on_half_of_the_classes_have_a_workdir_of_their_own():
    config = dpt.get_config("dtd")
    config.dataset.classes = "base"
    assert str(settings.default_workdir(config)) == "runs/dpt/dtd/16shot/seed1/base"


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
    prompts = settings.prompt_config(config, classes=100, layers=12)
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


def test_published_settings_of_relatives():
    """Of two repositories the first, on the CLIP of their tables; tiny-clip has fewer layers."""
    config = ivlp.get_config("dtd")
    prompts = settings.prompt_config(config, classes=100, layers=12, init_tokens=4)
    assert (prompts.text_length, prompts.text_depth) == (2, 12)
    assert (prompts.visual_length, prompts.visual_depth, prompts.ln_pre) == (2, 12, True)
    assert config.clip.weights == "openai/clip-vit-base-patch16"
    assert (config.train.epochs, config.train.batch_size, config.train.text_lr) == (5, 4, 0.0035)
    drawn = ivlp.get_config("emoji")
    assert (drawn.clip.weights, drawn.text_prompt.depth) == ("tiny-clip", 3)
    assert drawn.text_prompt.init == "a drawing of a"


def test_published_settings_by_protocol_and_dataset():
    """As CONFIG:DATASET:PROTOCOL; KgCoOp's own text of a texture is not the catalogue's."""
    config = kgcoop.get_config("dtd")
    assert config.loss.template == "a photo of a {}, a type of texture."
    assert config.dataset.template != config.loss.template
    assert (config.train.epochs, config.train.batch_size, config.dataset.shots) == (100, 128, 16)
    assert kgcoop.get_config("imagenet:cross-dataset").dataset.shots == 4
    config = maple.get_config("imagenet:cross-dataset")
    assert (config.text_prompt.depth, config.visual_prompt.depth) == (3, 3)
    assert (config.train.epochs, config.train.text_lr, config.train.visual_lr) == (
        2,
        0.0026,
        0.0026,
    )
    expected = {
        "eurosat": (9, 50, 45, 5),
        "sun397": (9, 50, 30, 30),
        "eurosat:base-to-new": (9, 20, 15, 1),
        "imagenet:cross-dataset": (3, 20, 6, 10),
        "imagenet:domain-generalization": (3, 20, 6, 10),
    }
    for name, numbers in expected.items():
        config = promptsrc.get_config(name)
        train = config.train
        found = (train.epochs, train.average_mean, train.average_deviation)
        assert (config.text_prompt.depth, *found) == numbers
        assert len(settings.templates(config, "loss.template")) == 60
    assert kgcoop.get_config("imagenet:base-to-new").dataset.shots == 16
    with pytest.raises(UserError, match="no protocol 'few' behind the dataset dtd"):
        kgcoop.get_config("dtd:few")


@pytest.mark.parametrize(
    ("method", "key", "says"),
    [
        (vpt, "text_consistency", "vpt"),
        (zeroshot, "text_consistency", "zeroshot"),
        (coop, "image_consistency", "coop"),
        (zeroshot, "logit_consistency", "zeroshot"),
    ],
)
def test_what_is_held_must_be_prompted(method, key, says):
    config = method.get_config()
    config.loss[key] = 8.0
    with pytest.raises(UserError, match=rf"loss\.{key} .*{says}"):
        settings.check(config)


def test_a_part_of_its_own_is_no_size_that_comes_from_other_prompts(tmp_path):
    """MaPLe that starts from IVLP's context stays MaPLe."""
    saved_run(tmp_path / "ivlp", ivlp.get_config(), text_prompt__depth=2, visual_prompt__depth=2)
    config = maple.get_config()
    config.init_from = str(tmp_path / "ivlp")
    found = settings.settings_for_training(config, {}, tmp_path / "w")
    assert (found.method, found.text_prompt.depth) == ("maple", 2)


def test_words_that_stay_fixed_leave_the_length_alone():
    config = ivlp.get_config()
    assert settings.prompt_config(config, 3, 4, init_tokens=4).text_length == 2
    config.text_prompt.length = 5
    assert settings.prompt_config(config, 3, 4).text_length == 5  # without words, or not yet known
    with pytest.raises(UserError, match=r"length is 5, but .* the first 4 tokens can be learned"):
        settings.prompt_config(config, 3, 4, init_tokens=4)


def test_initial_words_set_the_length():
    config = dpt.get_config()
    config.text_prompt.init = "a_photo of a"
    assert settings.prompt_config(config, 3, 4, init_tokens=4).text_length == 4
    config.method = "vpt"  # which has no context, whatever the words
    assert settings.prompt_config(config, 3, 4, init_tokens=4).text_length == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [(key.name, key.least - 1) for key in settings.SCHEMA if key.least is not None]
    + [("visual_prompt.depth", 0), ("visual_prompt.depth", -2)]
    + [("dtype", "float16"), ("dataset.template", "a photo")]
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
        settings.check(config)


def test_saved_and_loaded(tmp_path):
    config = dpt.get_config()
    config.train.schedule_epochs = 7
    settings.save(config, tmp_path)
    assert settings.load(tmp_path, dpt.get_config()).to_dict() == config.to_dict()


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
        settings.load(tmp_path, dpt.get_config())


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
    found = settings.settings_for_evaluation(config, overrides, False, tmp_path)
    assert found.method == "vlp"
    assert (found.text_prompt.length, found.train.epochs) == (4, 3)
    assert (found.dataset.root, found.eval.save_logits) == ("/here", True)


def test_evaluation_on_a_dataset_named_in_the_config_argument(tmp_path):
    saved_run(tmp_path, dpt.get_config("folder"), dataset__root="/there", dataset__shots=4)
    found = settings.settings_for_evaluation(dpt.get_config("emoji"), {}, True, tmp_path)
    assert (found.dataset.name, found.dataset.root) == ("emoji", "")
    assert found.clip.weights == "openai/clip-vit-base-patch32"  # the prompts belong to it
    found = settings.settings_for_evaluation(dpt.get_config("folder"), {}, True, tmp_path)
    assert (found.dataset.root, found.dataset.shots) == ("/there", 4)


def test_evaluation_of_another_workdir(tmp_path):
    other = saved_run(tmp_path / "other", coop.get_config(), seed=5)
    config = dpt.get_config()
    config.init_from = str(other)
    found = settings.settings_for_evaluation(
        config, {"init_from": str(other)}, False, tmp_path / "new"
    )
    assert (found.method, found.seed) == ("coop", 5)
    with pytest.raises(UserError, match="missing is no workdir"):
        settings.settings_for_evaluation(
            config, {"init_from": str(tmp_path / "missing")}, False, tmp_path / "new"
        )


def test_training_from_other_prompts_takes_their_sizes_but_not_their_parts(tmp_path):
    other = saved_run(
        tmp_path, vpt.get_config(), visual_prompt__length=3, clip__weights="mine", train__epochs=2
    )
    config = dpt.get_config()
    config.init_from = str(other)
    found = settings.settings_for_training(config, {"init_from": str(other)}, tmp_path / "new")
    assert found.method == "dpt"
    assert (found.visual_prompt.length, found.text_prompt.length, found.clip.weights) == (
        3,
        16,
        "mine",
    )
    assert found.train.epochs == dpt.get_config().train.epochs
    config = coop.get_config()
    config.init_from = str(other)
    assert settings.settings_for_training(config, {}, tmp_path / "new").method == "coop"


def test_started_run_goes_on_with_its_own_settings_only(tmp_path):
    saved_run(tmp_path, dpt.get_config("emoji"))
    config = dpt.get_config("emoji")
    config.dataset.workers, config.checkpoint.keep = 3, 9  # do not change the result
    changed = "dataset.workers (0 there, 3 now), checkpoint.keep (2 there, 9 now)"
    free = settings.keys_that_may_change()
    told = settings.check_same_run(config, tmp_path, free)
    assert set(told.split(", ")) >= set(changed.split(", "))
    config.train.epochs = 61
    with pytest.raises(UserError, match=r"train\.epochs \(60 there, 61 now\)"):
        settings.check_same_run(config, tmp_path, free)


def test_config_json_is_plain_json(tmp_path):
    settings.save(zeroshot.get_config(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["method"] == "zeroshot"
