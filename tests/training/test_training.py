"""Losses, the optimiser's state, prompts taken from other runs, and what a run writes down."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from configs import coop, dpt, vlp, zeroshot
from dpt_jax import settings
from dpt_jax.errors import UserError
from dpt_jax.inference import adoption
from dpt_jax.inference import experiment as experiments
from dpt_jax.inference.evaluation import evaluate
from dpt_jax.inference.scores import class_scores, distinct
from dpt_jax.losses import count, loss
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.model.outputs import Outputs
from dpt_jax.runtime.metrics import MetricWriter
from dpt_jax.storage.checkpoints import Checkpoints, load_newest
from dpt_jax.training.loop import train
from dpt_jax.training.optimizer import OptimizerConfig, learning_rates, make_optimizer
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

DPT = PromptConfig(classes=5, text_length=2, visual_length=2, top_k=3, first_layer=2)


def outputs_of(seed, rows):
    """Random outputs for `rows` images of 5 classes, 2 CAVPT layers and 3 looked-at classes."""
    generator = np.random.default_rng(seed)
    draw = [generator.standard_normal((rows, 5), dtype=np.float32) for _ in range(4)]
    auxiliary = generator.standard_normal((rows, 2, 3, 5), dtype=np.float32)
    indices = np.stack([generator.permutation(5)[:3] for _ in range(rows)])
    return Outputs(*draw, auxiliary, indices, None, None, None), generator.integers(0, 5, rows)


def total(outputs, labels, rows, guided):
    return float(
        loss(DPT, outputs, labels, rows, count(outputs.indices, labels, rows, 2), guided, 0.3)
    )


def cross_entropy(logits, labels):
    return np.mean(
        [np.log(np.exp(row - row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
    )


@tries(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 6), st.booleans())
def test_loss_is_the_published_formula_whatever_the_padding(seed, rows, guided):
    outputs, labels = outputs_of(seed, rows)
    expected = cross_entropy(outputs.logits, labels) * (0.1 if guided else 1)
    if guided:
        expected += cross_entropy(outputs.text_logits, labels) + cross_entropy(
            outputs.image_logits, labels
        )
    qualified = [
        (outputs.auxiliary_logits[b, layer, k], labels[b])
        for b in range(rows)
        for layer in range(2)
        for k in range(3)
        if outputs.indices[b, k] == labels[b]
    ]
    if qualified:
        expected += 0.3 * cross_entropy(*zip(*qualified, strict=True))
    assert total(outputs, labels, jnp.ones(rows), guided) == pytest.approx(expected, rel=1e-4)

    other, other_labels = outputs_of(seed + 1, 4)
    padded = jax.tree.map(lambda *x: np.concatenate(x), outputs, other)
    weight = jnp.concatenate([jnp.ones(rows), jnp.zeros(4)])
    every = np.concatenate([labels, other_labels])
    assert total(padded, every, weight, guided) == pytest.approx(expected, rel=1e-4)

    # In two parts that know the counts of both, as gradient accumulation and devices take them.
    counts = count(padded.indices, every, weight, 2)
    shares = []
    for part in (slice(None, rows - 1), slice(rows - 1, None)):
        own = Outputs(*(None if x is None else x[part] for x in padded))
        shares.append(loss(DPT, own, every[part], weight[part], counts, guided, 0.3))
    assert float(sum(shares)) == pytest.approx(expected, rel=1e-4)


def test_learning_rates_of_the_published_settings():
    rates = learning_rates(OptimizerConfig(0.01, 0.002, 10, 60, steps_per_epoch=3))
    assert [float(rates["visual"](3 * e)) for e in (0, 9)] == pytest.approx([1e-5, 1e-5])
    assert float(rates["visual"](30)) == pytest.approx(0.01)
    assert float(rates["visual"](3 * 59 + 2)) == pytest.approx(
        0.01 * (1 + np.cos(np.pi * 49 / 60)) / 2, rel=1e-5
    )
    assert float(rates["text"](2)) == pytest.approx(1e-5)
    assert float(rates["text"](3)) == pytest.approx(0.002)


def make_config(clip_dir, method=dpt, **overrides):
    config = method.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(SMALL / "images")
    config.text_prompt.length, config.visual_prompt.length = 4, 2 if method is not coop else 0
    config.train.epochs, config.train.batch_size = 2, 6
    for key, value in overrides.items():
        settings.set_key(config, key.replace("__", "."), value)
    return config


def run(config, clip, workdir):
    experiment = experiments.prepare(config, clip)
    settings.save(config, workdir)
    prompts = train(experiment, workdir)
    return prompts, evaluate(experiment, adoption.saved_prompts(experiment, workdir), workdir)


@pytest.fixture(scope="module")
def trained(clip_dir, clip, tmp_path_factory):
    """A DPT run on all six classes."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    run(make_config(clip_dir), clip, workdir)
    return workdir


def test_optimizer_state_is_momentum_of_the_prompts_and_nothing_else(trained, clip_dir, clip):
    experiment = experiments.prepare(make_config(clip_dir), clip)
    prompts = adoption.initial_prompts(experiment)
    state = make_optimizer(OptimizerConfig(0.01, 0.002, 1, 2, 1)).init(prompts)
    learned = sorted(x.shape for x in jax.tree.leaves(prompts))
    assert sorted(x.shape for x in jax.tree.leaves(state) if x.ndim) == learned
    # And so the checkpoint: a few hundred kilobytes beside CLIP's hundred and more megabytes.
    size = sum(f.stat().st_size for f in (trained / "checkpoints").rglob("*") if f.is_file())
    assert size < 5 * sum(x.nbytes for x in jax.tree.leaves(prompts)) + 200_000


def test_every_prompt_is_trained_and_clip_is_not(trained, clip_dir, clip):
    before = adoption.initial_prompts(experiments.prepare(make_config(clip_dir), clip))
    after = load_newest(trained).prompts
    assert jax.tree.structure(before) == jax.tree.structure(after)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed)), changed


def test_files_of_a_run(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4]
    assert {"loss", "accuracy", "visual_lr", "text_lr", "images_per_s", "epoch"} <= set(records[0])
    assert list(trained.glob("events.out.tfevents.*"))
    lines = (trained / "train_files.txt").read_text().splitlines()
    assert all((SMALL / "images" / line).is_file() for line in lines)
    results = json.loads((trained / "results.json").read_text())
    assert {
        "method",
        "dataset",
        "shots",
        "seed",
        "split",
        "classes",
        "n",
        "accuracy",
        "macro_f1",
        "per_class",
    } <= set(results)
    assert results["method"] == "dpt"
    assert 0 <= results["accuracy"] <= 1


def test_same_seed_same_prompts_other_seed_others(trained, clip_dir, clip, tmp_path):
    expected = load_newest(trained).prompts
    same, _ = run(make_config(clip_dir), clip, tmp_path / "same")
    jax.tree.map(np.testing.assert_array_equal, same, expected)
    other, _ = run(make_config(clip_dir, seed=2), clip, tmp_path / "other")
    assert (other["text"]["context"] != expected["text"]["context"]).any()


def test_gradient_accumulation_trains_to_the_same(trained, clip_dir, clip, tmp_path):
    """Also if the images of a device are no multiple of a part: 6 in parts of 4."""
    found, results = run(make_config(clip_dir, train__microbatch=4), clip, tmp_path)
    expected = load_newest(trained).prompts
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    assert results["accuracy"] == json.loads((trained / "results.json").read_text())["accuracy"]


def test_what_is_kept_for_the_backward_pass_goes_by_the_memory(monkeypatch, clip_dir, clip):
    config = make_config(clip_dir)
    assert experiments.prepare(config, clip).model.remat == "matmuls"
    monkeypatch.setattr("dpt_jax.runtime.devices.memory", lambda: 100_000)
    assert experiments.prepare(config, clip).model.remat == "blocks"
    config.train.remat = "none"
    assert experiments.prepare(config, clip).model.remat == "none"


def test_visual_tokens_that_carry_on_take_memory_as_those_of_the_image(clip):
    """As many as an image has, from the first layer on, take that of another image."""
    length = clip.config.grid**2 + 1
    looked_at, carried_on = (
        PromptedCLIP(clip.config, PromptConfig(classes=5, visual_length=length, visual_depth=depth))
        for depth in (0, 1)
    )

    def limit(model, images):
        return next(
            memory
            for memory in np.geomspace(1e3, 1e9, 100)
            if experiments.choose_remat(model, 0, images, memory) == "matmuls"
        )

    assert limit(carried_on, 4) == limit(looked_at, 8) > limit(looked_at, 4)


def test_bfloat16_trains_to_nearly_the_same(trained, clip_dir, clip, tmp_path):
    expected = load_newest(trained).prompts
    found, results = run(make_config(clip_dir, dtype="bfloat16"), clip, tmp_path)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), found, expected)
    assert np.isfinite(results["accuracy"])


@pytest.fixture
def three_classes(tmp_path):
    """A dataset of half of the classes."""
    root = tmp_path / "three"
    for split in ("train", "test"):
        for name in ("airplane", "sea_horse", "yin_yang"):
            shutil.copytree(SMALL / "images" / split / name, root / split / name)
    return root


def test_evaluation_on_other_classes(trained, clip, three_classes, tmp_path):
    config = settings.settings_for_evaluation(
        dpt.get_config(), {"dataset.root": str(three_classes)}, False, trained
    )
    experiment = experiments.prepare(config, clip)
    results = evaluate(experiment, adoption.saved_prompts(experiment, trained), tmp_path)
    assert list(results["per_class"]) == ["airplane", "sea horse", "yin yang"]
    assert results["n"] == 9


def test_training_on_other_classes_starts_the_classifier_anew(
    trained, clip_dir, clip, three_classes, capsys
):
    config = make_config(clip_dir, dataset__root=str(three_classes), init_from=str(trained))
    prompts, saved = (
        adoption.initial_prompts(experiments.prepare(config, clip)),
        load_newest(trained).prompts,
    )
    assert prompts["cavpt"]["classifier"]["kernel"].shape[-1] == 3
    assert "auxiliary classifier starts anew" in capsys.readouterr().out
    for part in ("text", "visual"):
        jax.tree.map(np.testing.assert_array_equal, prompts[part], saved[part])
    np.testing.assert_array_equal(
        prompts["cavpt"]["query"]["kernel"], saved["cavpt"]["query"]["kernel"]
    )


def test_class_specific_context_is_refused_for_other_classes(
    clip_dir, clip, three_classes, tmp_path
):
    workdir = tmp_path / "coop"
    run(
        make_config(clip_dir, coop, text_prompt__class_specific=True, train__epochs=1),
        clip,
        workdir,
    )
    config = settings.settings_for_evaluation(
        coop.get_config(), {"dataset.root": str(three_classes)}, False, workdir
    )
    with pytest.raises(UserError, match="class_specific"):
        adoption.saved_prompts(experiments.prepare(config, clip), workdir)


def test_a_part_can_be_added_to_a_trained_one(clip_dir, clip, tmp_path):
    first = tmp_path / "coop"
    run(make_config(clip_dir, coop, train__epochs=1), clip, first)
    config = make_config(clip_dir, vlp, init_from=str(first))
    prompts = adoption.initial_prompts(experiments.prepare(config, clip))
    np.testing.assert_array_equal(
        prompts["text"]["context"], load_newest(first).prompts["text"]["context"]
    )
    assert "visual" in prompts
    config = make_config(clip_dir, vlp)
    with pytest.raises(UserError, match="has no visual prompt"):
        adoption.saved_prompts(experiments.prepare(config, clip), first)


def test_prompts_of_other_sizes_are_refused_by_name(trained, clip_dir, clip):
    experiment = experiments.prepare(make_config(clip_dir, visual_prompt__length=7), clip)
    with pytest.raises(UserError, match=r"prompt visual\.tokens has shape \(3, 2, 128\)"):
        adoption.saved_prompts(experiment, trained)


def test_initial_words(clip_dir, clip):
    experiment = experiments.prepare(make_config(clip_dir, text_prompt__init="a photo of a"), clip)
    context = adoption.initial_prompts(experiment)["text"]["context"]
    ids = clip.tokenizer.encode("a photo of a")
    np.testing.assert_array_equal(context[0], clip.params["text"]["token_embedding"][ids])


@pytest.mark.parametrize("words", ["a xylophonists", "A PHOTO,_of a", "X X X X"])
def test_initial_words_set_the_length_by_their_tokens(words, clip_dir, clip):
    experiment = experiments.prepare(
        make_config(clip_dir, text_prompt__init=words, text_prompt__length=2), clip
    )
    ids = clip.tokenizer.encode(words.replace("_", " "))
    context = adoption.initial_prompts(experiment)["text"]["context"]
    np.testing.assert_array_equal(context[0], clip.params["text"]["token_embedding"][ids])


@pytest.mark.parametrize("blank", ["   ", "_", "\t"])
def test_blank_initial_words_are_none(blank, clip_dir, clip):
    configs_ = [make_config(clip_dir, text_prompt__init=words) for words in (blank, "")]
    found, expected = (
        adoption.initial_prompts(experiments.prepare(config, clip)) for config in configs_
    )
    assert found["text"]["context"].shape[1] == configs_[0].text_prompt.length
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a photo of a {}.", "has a brace"),
        ("a photo of a {", "has a brace"),
        ("<|endoftext|> a", "special token"),
        ("a <|startoftext|>", "special token"),
        ("a " * 80, "is 80 .*takes 77"),
    ],
)
def test_initial_words_that_cannot_be_are_refused(words, says, clip_dir, clip):
    with pytest.raises(UserError, match=says):
        experiments.prepare(make_config(clip_dir, text_prompt__init=words), clip)


@pytest.mark.parametrize("method", [zeroshot, vlp])
def test_every_method_reads_the_same_names(method, clip_dir, clip):
    """An underscore is a space for zero-shot and frozen texts, as it is for the learned prompt."""
    experiment = experiments.prepare(make_config(clip_dir, method), clip)
    texts = []
    for name in ("hot_dog", "hot dog"):
        dataset = experiment.dataset._replace(classnames=(name, "cat"), train=[], test=[])
        texts.append(experiments.assemble(experiment.config, dataset, clip).frozen.texts)
    np.testing.assert_array_equal(*texts)


def test_several_templates_are_averaged_as_clip_does_it(clip_dir, clip):
    """The mean of the normalised features; zero-shot normalises it again."""

    def texts(template):
        experiment = experiments.prepare(
            make_config(clip_dir, zeroshot, dataset__template=template), clip
        )
        return np.asarray(experiment.frozen.texts[0])

    one, other = texts("a photo of a {}."), texts("{} texture.")
    expected = (
        one / np.linalg.norm(one, axis=1)[:, None] + other / np.linalg.norm(other, axis=1)[:, None]
    ) / 2
    np.testing.assert_allclose(
        texts("a photo of a {}.| {} texture."), expected, rtol=1e-5, atol=1e-6
    )


def test_class_without_training_images_is_named(clip_dir, clip, three_classes, tmp_path):
    shutil.rmtree(three_classes / "train" / "sea_horse")
    experiment = experiments.prepare(make_config(clip_dir, dataset__root=str(three_classes)), clip)
    with pytest.raises(UserError, match="no training images of class 'sea horse'"):
        train(experiment, tmp_path / "run")


def test_no_readable_training_image_is_said(clip_dir, clip, three_classes, tmp_path):
    for file in (three_classes / "train").rglob("*.png"):
        file.write_bytes(b"not a picture")
    config = make_config(clip_dir, coop, dataset__root=str(three_classes), dataset__on_error="skip")
    with pytest.raises(UserError, match="none of the 2 training images of class 'airplane' can"):
        train(experiments.prepare(config, clip), tmp_path / "run")


def test_prompts_without_training_state_cannot_be_gone_on_with(trained, clip_dir, clip, tmp_path):
    saved = load_newest(trained)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        checkpoints.save(1, saved.prompts, saved.meta)
        checkpoints.wait()
    with pytest.raises(UserError, match="init_from"):
        train(experiments.prepare(make_config(clip_dir), clip), tmp_path)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_newest(tmp_path)


def test_metrics_of_a_resumed_run_have_every_step_once(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')
    with MetricWriter(tmp_path, 2) as writer:
        writer.write(3, {"loss": 9.0})
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0}]


def test_class_scores():
    scores = class_scores(np.array([0, 0, 1, 0]), np.array([0, 1, 1, 1]), ["a", "b", "c"])
    assert scores == {
        "a": {"n": 1, "accuracy": 1.0, "f1": 0.5, "predicted": {"a": 1}},
        "b": {"n": 3, "accuracy": pytest.approx(1 / 3), "f1": 0.5, "predicted": {"a": 2, "b": 1}},
        "c": {"n": 0, "accuracy": None, "f1": 0.0, "predicted": {}},
    }


def test_classes_of_one_name_are_told_apart():
    """ImageNet has two missiles and two sunglasses."""
    assert distinct(["missile", "tench", "missile"]) == [
        "missile (class 0)",
        "tench",
        "missile (class 2)",
    ]
