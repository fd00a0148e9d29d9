"""The one schema of settings: its page, and what the command line makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt_jax import settings
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS
from tests.helpers.commands import ROOT


def read(*arguments):
    return settings.read_config_arguments(arguments)


def test_the_page_lists_every_key():
    """`dpt-jax settings > docs/settings.md` after a change of the schema."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings.page()
    for key in settings.SCHEMA:
        assert f"| `{key.name}` |" in page


@pytest.mark.parametrize("method", METHODS)
def test_a_file_and_a_name_give_the_same_settings(method, monkeypatch):
    monkeypatch.chdir(ROOT)
    by_file, _ = read(f"--config=configs/{method}.py:eurosat")
    by_name, _ = read(f"--config={method}:eurosat")
    assert by_file.config.to_dict() == by_name.config.to_dict()
    assert by_file.config.method == method
    assert by_file.dataset_named


def test_other_arguments_are_left_alone():
    given, rest = read("predict", "--top=3", "--config.seed", "7", "--", "--config.seed=8")
    assert given.overrides == {"seed": 7}
    assert rest == ["predict", "--top=3", "--", "--config.seed=8"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--config.train.augment=False", False),
        ("--config.train.augment", True),
        ("--noconfig.train.augment", False),
        ("-config.train.augment=t", True),
    ],
)
def test_switches(argument, value):
    assert read(argument)[0].overrides == {"train.augment": value}


def test_a_number_may_be_none_where_the_default_is():
    assert read("--config.train.schedule_epochs=None")[0].config.train.schedule_epochs is None
    with pytest.raises(UserError, match=r"train\.epochs=None: give a whole number"):
        read("--config.train.epochs=None")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.seed"], "has no value"),
        (["--config=nowhere.py"], "there is no file nowhere.py"),
        (["--config=dpt:imagnet"], "no dataset 'imagnet'"),
        (["--noconfig.seed"], "only a key that is true or false"),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        read(*arguments)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(): return {}", "makes no ConfigDict"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): return ConfigDict({'train': {'epoch': 3}})",
            "train.epoch = 3 is no setting; did you mean train.epochs",
        ),
    ],
)
def test_a_config_file_of_ones_own_is_checked(tmp_path, content, says):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(UserError, match=says):
        read(f"--config={file}")


@given(st.sampled_from(settings.SCHEMA), st.integers(0, 2**31 - 1))
def test_a_number_within_the_range_is_taken_as_it_was_given(key, number):
    if key.kind is not int or number < (key.least or 0):
        return
    if key.name in ("dataset.shots", "visual_prompt.depth") and not number:
        return
    config = read(f"--config.{key.name}={number}")[0].config
    settings.check(config)
    assert settings.flat(config.to_dict())[key.name] == number
