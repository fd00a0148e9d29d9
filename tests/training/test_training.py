"""What an experiment starts from, what a run records, and the second stage of training."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpt_jax
from configs import coop, dpt, vlp, vpt, zslp
from dpt_jax.clip.model import normalize
from dpt_jax.config import keyword_config, method_config, validate
from dpt_jax.data import records
from dpt_jax.data.folder import read_folder
from dpt_jax.logging import Progress
from dpt_jax.prompts.classifiers import CLASSIFIERS, ClassTexts, Support, for_classes
from dpt_jax.training import saved as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.classifier import fit
from dpt_jax.training.loop import train
from dpt_jax.training.metrics import TIMES, read_metrics
from dpt_jax.training.setup import consistency_target
from dpt_jax.training.state import EXIT_CODE
from dpt_jax.training.workdir import evaluation_config, load_config
from tests.helpers.commands import assert_refused, command_refused, in_process, refused
from tests.helpers.configs import IMAGES, small_config, small_flags, small_splits
from tests.helpers.runs import results_of, save_run

pytestmark = pytest.mark.compiles


OWN = {"text_prompt__length": 4, "visual_prompt__length": 3, "cavpt__top_k": 3}
OWN |= {"train__epochs": 2, "dataset__shots": -1}


@pytest.fixture(scope="module")
def prepare(clip_dir, clip):
    """Prepare the shared run, with another method or other settings."""

    def prepared(method=dpt, **overrides):
        return experiments.prepare(small_config(clip_dir, method, **{**OWN, **overrides}), clip)

    return prepared


@pytest.mark.parametrize("words", ["a xylophonists", "A PHOTO,_of a", "X X X X"])
def test_initial_words_set_the_length_by_their_tokens(words, prepare, clip):
    experiment = prepare(text_prompt__init=words, text_prompt__length=2)
    ids = clip.tokenizer.encode(words.replace("_", " "))
    context = adoption.initial_prompts(experiment)["text"]["context"]
    np.testing.assert_array_equal(context[0], clip.params["text"]["token_embedding"][ids])


def test_impossible_initial_words_are_refused(prepare):
    for words, says in {"{}.": "brace", "<|startoftext|>": "special", "a " * 80: "77"}.items():
        refused(says, prepare, text_prompt__init=f"a photo {words}")


def test_the_cache_of_one_run_does_not_bind_later_ones(prepare):
    for gigabytes, limit in ((0.5, 500_000_000), (-1.0, records.cache.default)):
        prepare(dataset__cache_gb=gigabytes)
        assert records.cache.limit == limit


def test_every_prompt_is_trained_from_values_of_the_seed(trained, prepare):
    before, other = (adoption.initial_prompts(prepare(seed=seed)) for seed in (1, 2))
    assert (other["text"]["context"] != before["text"]["context"]).any()
    after = load_newest(trained).prompts
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed)), changed


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The small images, with the test images also for validation."""
    root = tmp_path_factory.mktemp("validated")
    return small_splits(root, train="train", val="test", test="test")


def test_the_best_epoch_is_kept(clip_dir, validated, tmp_path):
    """Also if the run was stopped; its accuracy is that of a run that ends at that epoch."""
    own = {"dataset__root": validated, "dataset__shots": -1, "dataset__strict": False}
    own |= {"train__text_lr": 3.0, "train__augment": False, "train__schedule_epochs": 8}
    own |= {"checkpoint__every_steps": 1, "checkpoint__keep": 9}

    def run(name, epochs, *flags):
        flags = [*flags, *small_flags(clip_dir, **own, train__epochs=epochs)]
        flags.append(f"--workdir={tmp_path / name}")
        done = in_process("main.py", "--config=coop:folder", *flags, check=False)
        assert done.returncode in (0, 2), done.stderr
        return done

    run("last", 3)
    accuracies = [record["val_accuracy"] for record in read_metrics(tmp_path / "last")]
    results = results_of(tmp_path / "last")
    assert len(accuracies) == 3
    assert accuracies[-1] == pytest.approx(results["accuracy"])
    assert max(accuracies) > accuracies[-1]

    best = "--config.train.keep=best"
    run("best", 3, best)
    kept = load_newest(tmp_path / "best")
    results = results_of(tmp_path / "best")
    assert results["accuracy"] == max(accuracies)
    assert kept.meta["best"]["epoch"] == 1 + int(np.argmax(accuracies))
    assert [one["val_accuracy"] for one in read_metrics(tmp_path / "best")] == accuracies
    assert run("best", 3, best).returncode == 0
    assert_refused(run("best", 4, best, "--allow_changes"), "train.keep=best")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "best" / "checkpoints" / str(step))
    run("best", 3, best)
    assert load_newest(tmp_path / "best").digest == kept.digest


def test_keeping_the_best_needs_validation_images(clip_dir, tmp_path):
    config = small_config(clip_dir, coop, train__keep="best")
    refused(r"train\.keep=best", train, experiments.prepare(config), tmp_path)


def test_files_of_a_run(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2]
    assert {"loss", "accuracy", "visual_lr", "text_lr", "epoch"} <= set(records[0])
    assert records[1].keys() & {*TIMES} == {*TIMES} - {"peak_share"}  # of a CPU none is published
    assert list(trained.glob("events.out.tfevents.*"))
    lines = (trained / "train_files.txt").read_text().splitlines()
    assert all((IMAGES / line).is_file() for line in lines)
    (row,) = dpt_jax.results(trained).itertuples()
    saved = load_newest(trained)
    assert row.parameters == sum(x.size for x in jax.tree.leaves(saved.prompts))
    assert row.seconds == saved.meta["seconds"] > 0


def test_bfloat16_trains_to_nearly_the_same(trained, prepare, tmp_path):
    found = train(prepare(dtype="bfloat16"), tmp_path)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    expected = load_newest(trained).prompts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), found, expected)


@pytest.fixture
def three_classes(tmp_path):
    """A dataset of half of the classes."""
    root = small_splits(tmp_path / "three", train="train", test="test")
    for split in ("train", "test"):
        for name in ("dollar_bill", "grand_piano", "water_lilly"):
            shutil.rmtree(root / split / name)
    return root


def test_training_on_other_classes_resets_the_auxiliary_classifier(
    trained, prepare, three_classes, capsys
):
    experiment = prepare(dataset__root=str(three_classes), init_from=str(trained))
    prompts, saved = adoption.initial_prompts(experiment), load_newest(trained).prompts
    assert prompts["cavpt"]["classifier"]["kernel"].shape[-1] == 3
    assert "auxiliary classifier starts fresh" in capsys.readouterr().out
    for part in ("text", "visual"):
        jax.tree.map(np.testing.assert_array_equal, prompts[part], saved[part])
    queries = (tree["cavpt"]["query"]["kernel"] for tree in (prompts, saved))
    np.testing.assert_array_equal(*queries)


def test_class_specific_context_is_refused_for_other_classes(
    prepare, clip, three_classes, tmp_path
):
    workdir = save_run(prepare(coop, text_prompt__class_specific=True), tmp_path / "coop")
    other = {"dataset.root": str(three_classes)}
    config = evaluation_config(coop.get_config(), other, False, workdir)
    refused("class_specific", adoption.saved_prompts, experiments.prepare(config, clip), workdir)


def test_a_part_can_be_added_to_a_trained_one(prepare, tmp_path):
    first = save_run(prepare(coop), tmp_path / "coop")
    prompts = adoption.initial_prompts(prepare(vlp, init_from=str(first)))
    saved = load_newest(first)
    np.testing.assert_array_equal(prompts["text"]["context"], saved.prompts["text"]["context"])
    assert "visual" in prompts
    refused("coop.* method", adoption.saved_prompts, prepare(vlp), first)
    for other in (vpt, zslp):  # which share no part with it
        refused("init_from", adoption.initial_prompts, prepare(other, init_from=str(first)))


def test_prompts_of_other_sizes_are_refused_by_name(trained, prepare):
    experiment = prepare(visual_prompt__length=7)
    refused(r"visual_prompt\.length", adoption.saved_prompts, experiment, trained)


def test_class_without_training_images_is_named(prepare, three_classes, tmp_path):
    shutil.rmtree(three_classes / "train" / "sea_horse")
    experiment = prepare(dataset__root=str(three_classes))
    refused("no training images of class 'sea horse'", train, experiment, tmp_path / "run")


TEMPLATE = "a photo of a {}."


@pytest.fixture(scope="module")
def names():
    return read_folder(IMAGES).classnames


def described(clip, method="zeroshot", **dataset):
    config = method_config(method, "folder")
    config.dataset.update(root=str(IMAGES), shots=-1, **dataset)
    config.text_prompt.update(length=4, depth=1)
    config.visual_prompt.update(length=3, depth=1)
    if method == "kgcoop":
        config.loss.template = TEMPLATE
    validate(config)
    return experiments.prepare(config, clip)


def test_templates_as_descriptions_have_the_same_bits(clip, names):
    for templates in ([TEMPLATE], [TEMPLATE, "{}", "art of {}."]):
        own = json.dumps({name: [text.format(name) for text in templates] for name in names})
        given = described(clip, descriptions=own).texts
        expected = described(clip, template="|".join(templates)).texts
        np.testing.assert_array_equal(given.frozen, expected.frozen)
        if len(templates) > 1:
            np.testing.assert_array_equal(given.mean, expected.mean)


def test_normalised_features_are_averaged_over_the_texts_of_each_class(clip, names):
    """However many texts other classes have. KgCoOp's target is this mean, not its own template."""
    several = ["a cat.", "a dog.", "a small thing."]
    own = {name: [TEMPLATE.format(name)] for name in names} | {names[1]: several}
    given = described(clip, "kgcoop", descriptions=json.dumps(own))
    alone = dict(zip(names, several, strict=False))
    alone = {name: [alone.get(name, name)] for name in names}
    parts = described(clip, descriptions=json.dumps(alone)).texts.frozen[0, : len(several)]
    expected = normalize(described(clip, template=TEMPLATE).texts.frozen[0])
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
def test_wrong_descriptions_are_refused(clip_dir, names, tmp_path, change, named):
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
    before = results_of(run)
    in_process(*evaluate)
    assert results_of(run) == before
    refused("'unseen'", dpt_jax.load, prompts, classnames=[*names, "unseen"])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_new_classes_fall_back_to_their_texts(name):
    """Trained classes keep their parameters, wherever they are in the list of names."""
    keys = jax.random.split(jax.random.key(0), 4)
    raw = jax.random.normal(keys[0], (5, 16))
    support = Support(jax.random.normal(keys[1], (2, 6, 16)), jnp.arange(6) % 3)
    settings = method_config(name.partition("_plus")[0].partition("_conf")[0]).classifier
    classifier = CLASSIFIERS[name]

    def texts(rows):
        return ClassTexts(normalize(raw[jnp.array(rows)]), raw[jnp.array(rows)], jnp.float32(50.0))

    params = classifier.start(support, texts([0, 1, 2]), keys[2], settings)
    params = {key: np.asarray(x) + (key in classifier.learned) for key, x in params.items()}
    images = normalize(jax.random.normal(keys[3], (4, 16)))
    trained = classifier.logits(params, images, texts([0, 1, 2]))
    other = for_classes(classifier, params, np.array([-1, 2, 0, -1]))
    found = classifier.logits(other, images, texts([3, 2, 0, 4]))
    np.testing.assert_allclose(found[:, 1:3], trained[:, [2, 0]], rtol=1e-5)
    if name != "clip_adapter":  # which changes the images of all classes
        zero_shot = 50.0 * images @ texts([3, 4]).unit.T
        np.testing.assert_allclose(found[:, [0, 3]], zero_shot, rtol=1e-4, atol=1e-4)


def test_resumes_at_the_second_stage(tiny_clip_dir, tmp_path, monkeypatch, capsys):
    """A run that was stopped between the stages, or in the second, ends with the same bits."""
    run = tmp_path / "run"
    own = {"train__epochs": 1, "train__batch_size": 18, "classifier__views": 3}
    command = ["main.py", "--config=dpt_clap:folder", f"--workdir={run}"]
    command += small_flags(tiny_clip_dir, **own)
    in_process(*command)
    of = results_of(run)["of"]
    metrics = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints" / str(of["step"]))
    (run / "results.json").unlink()
    command_refused(run, "main.py", "--mode=eval", f"--workdir={run}")  # there is no classifier yet
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", lambda _: signal.raise_signal(signal.SIGTERM))
        assert in_process(*command, check=False).returncode == EXIT_CODE
    assert not (run / "results.json").exists()
    in_process(*command)
    again = results_of(run)["of"]
    assert again["prompts"] == of["prompts"]
    assert (run / "metrics.jsonl").read_text() == metrics

    # Learned parameters are those of the training, and λ is not learned.
    in_process("main.py", "--mode=eval", f"--workdir={run}", "--config.dataset.classes=new")
    folders, prompts = (run, run / "on" / "folder-new"), load_newest(run).prompts
    own, new_classes = (results_of(f) for f in folders)
    sizes = [x.size for x in jax.tree.leaves(prompts)]
    assert own["parameters"] == sum(sizes) - prompts["classifier"]["penalty"].size
    assert new_classes["parameters"] == own["parameters"]
    assert own["of"]["settings"]["dataset.natural"] is False  # so that a report distinguishes them

    new = dpt_jax.load(run, classnames=["airplane", "zebra"])
    assert new.predict_proba(np.zeros((1, 40, 40, 3), np.uint8)).shape == (1, 2)
    assert "1 of these 2 classes, such as 'zebra'" in capsys.readouterr().err
    command_refused("classifier.lr", *command, "--config.classifier.lr=0.2")


def test_settings_chosen_by_the_support(capsys):
    """The best of the grid on one image of each class; then all images are trained on."""
    keys = jax.random.split(jax.random.key(1), 2)
    raw = jax.random.normal(keys[0], (3, 16))
    labels = jnp.arange(12) % 3
    views = raw[labels] + jax.random.normal(keys[1], (1, 12, 16))
    texts = ClassTexts(normalize(raw), raw, jnp.float32(20.0))
    config = method_config("tip_adapter")
    config.classifier.select = "support"
    params, _, chosen = fit(config, Support(views, labels), texts)
    assert len(params["keys"]) == 12
    alpha, beta = (float(params[key]) for key in ("alpha", "beta"))
    grid = CLASSIFIERS["tip_adapter"].grid
    assert any(alpha == pytest.approx(x) for x in grid["alpha"])
    assert any(beta == pytest.approx(x) for x in grid["beta"])
    assert chosen == pytest.approx({"classifier.alpha": alpha, "classifier.beta": beta})
    assert f"classifier.alpha={alpha:g}, classifier.beta={beta:g}" in capsys.readouterr().out
