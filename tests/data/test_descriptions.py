"""Several texts of each class, from a JSON file."""

import json

import numpy as np
import pytest

import dpt_jax
from dpt_jax.clip.model import normalize
from dpt_jax.config import keyword_config, method_config, validate
from dpt_jax.data.folder import read_folder
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.setup import consistency_target, prepare
from dpt_jax.training.workdir import load_config
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import small_flags
from tests.helpers.golden import IMAGES

pytestmark = pytest.mark.compiles
TEMPLATE = "a photo of a {}."


@pytest.fixture(scope="module")
def names():
    return read_folder(IMAGES).classnames


def experiment(clip, method="zeroshot", **dataset):
    config = method_config(method, "folder")
    config.dataset.update(root=str(IMAGES), shots=-1, **dataset)
    config.text_prompt.update(length=4, depth=1)
    config.visual_prompt.update(length=3, depth=1)
    validate(config)
    return prepare(config, clip)


def test_templates_as_descriptions_have_the_same_bits(clip, names):
    for templates in ([TEMPLATE], [TEMPLATE, "{}", "art of {}."]):
        own = json.dumps({name: [text.format(name) for text in templates] for name in names})
        given = experiment(clip, descriptions=own).texts
        expected = experiment(clip, template="|".join(templates)).texts
        np.testing.assert_array_equal(given.frozen, expected.frozen)
        if len(templates) > 1:
            np.testing.assert_array_equal(given.mean, expected.mean)


def test_normalised_features_are_averaged_over_the_texts_of_each_class(clip, names):
    """However many texts other classes have. KgCoOp's target is this mean, not its own template."""
    several = ["a cat.", "a dog.", "a small thing."]
    own = {name: [TEMPLATE.format(name)] for name in names} | {names[1]: several}
    given = experiment(clip, "kgcoop", descriptions=json.dumps(own))
    alone = dict(zip(names, several, strict=False))
    alone = {name: [alone.get(name, name)] for name in names}
    parts = experiment(clip, descriptions=json.dumps(alone)).texts.frozen[0, : len(several)]
    expected = normalize(experiment(clip, template=TEMPLATE).texts.frozen[0])
    expected = expected.at[1].set(normalize(parts).mean(0))
    np.testing.assert_allclose(given.texts.frozen[0], expected, atol=1e-6)
    np.testing.assert_array_equal(consistency_target(given), given.texts.frozen)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda own, name: {f"{key}s": own[key] for key in own}, "airplane"),
        (lambda own, name: own | {name: []}, "no list of texts"),
        (lambda own, name: own | {name: [" "]}, "no list of texts"),
        (lambda own, name: [own], "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused(clip_dir, names, tmp_path, change, named):
    own = {name: [name] for name in names}
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(change(own, names[0])))
    flags = [*small_flags(clip_dir, dataset__descriptions=file), f"--workdir={tmp_path / 'run'}"]
    command_refused(named, "main.py", "--config=zeroshot:folder", *flags)
    assert not (tmp_path / "run").exists()


def test_a_learned_text_tower_takes_one_text_a_class(names):
    config = method_config("cliplora", "folder")
    config.dataset.descriptions = json.dumps({name: ["a", "b"] for name in names})
    refused(r"dataset\.descriptions", validate, config)


def test_a_run_keeps_the_texts_and_needs_no_file(clip_dir, names, files, tmp_path):
    """Resumed with a changed file it is refused; predict and a prompt file answer without one."""
    file, run, prompts = (tmp_path / name for name in ("t.json", "run", "p.safetensors"))
    own = {name: [name, f"a {name} with a hat"] for name in names}
    values = {"dataset__shots": -1, "dataset__descriptions": file, "train__epochs": 1}
    values |= {"visual_prompt__depth": 1, "visual_prompt__length": 3}
    train = ["main.py", "--config=vpt:folder", *small_flags(clip_dir, **values)]
    train.append(f"--workdir={run}")
    file.write_text(json.dumps(own))
    in_process(*train)
    assert json.loads(load_config(run).dataset.descriptions) == own
    assert json.loads(load_newest(run).meta["settings"]["dataset.descriptions"]) == own
    file.write_text(json.dumps(own, indent=1))  # the same texts
    _, values = keyword_config("dpt", {"descriptions": file})
    assert values["dataset.descriptions"] == load_config(run).dataset.descriptions
    file.write_text(json.dumps(own | {names[0]: ["other"]}))
    command_refused("dataset.descriptions", *train)
    file.unlink()
    expected = dpt_jax.load(run)
    expected.save(prompts)
    loaded = dpt_jax.load(prompts)
    np.testing.assert_array_equal(loaded.predict_proba(files), expected.predict_proba(files))
    np.testing.assert_array_equal(loaded.texts.frozen, expected.texts.frozen)
    evaluate = ["main.py", "--mode=eval", f"--workdir={run}"]
    before = json.loads((run / "results.json").read_text())
    in_process(*evaluate)
    assert json.loads((run / "results.json").read_text()) == before
    refused("'unseen'", dpt_jax.load, prompts, classnames=[*names, "unseen"])
