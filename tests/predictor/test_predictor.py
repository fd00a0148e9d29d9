"""Images classified from Python, explained, and as one program; training from Python."""

import doctest
import importlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

import jax
import jax.export
import numpy as np
import pandas as pd
import pytest
import scipy.special
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import dpt_jax
from dpt_jax.config import keyword_config
from dpt_jax.data.folder import in_memory, read_folder
from dpt_jax.errors import UserError
from dpt_jax.predictor import describe, nearest_words, program, read_classnames
from dpt_jax.report.one_run import draw_confusion
from dpt_jax.training.checkpoints import Checkpoints, load_newest
from tests.helpers.commands import command, command_refused, in_process, refused
from tests.helpers.configs import IMAGES
from tests.helpers.models import all_outputs
from tests.helpers.runs import results_of

pytestmark = pytest.mark.compiles


def test_probabilities_are_those_of_the_evaluation(predictor, trained):
    """predictions.npz of main.py, image by image."""
    found = np.load(trained / "predictions.npz")
    probabilities = predictor.predict_proba([IMAGES / path for path in found["path"]])
    expected = scipy.special.softmax(found["logits"], -1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert predictor.classnames == tuple(found["classnames"])


def test_any_number_of_images_is_one_program(predictor, files):
    whole = predictor.predict_proba(files)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    for n in (1, 3, 4, 9):
        found = predictor.predict_proba(files[:n])
        np.testing.assert_allclose(found, whole[:n], rtol=1e-5, atol=1e-7)
    assert predictor.predict_proba([]).shape == (0, len(predictor.classnames))
    assert not compiled
    predictor.encode_text(["of other", "shapes"])
    assert compiled


def test_every_form_of_an_image(predictor, files, tmp_path):
    expected = predictor.predict_proba(files[0])
    opened = Image.open(files[0]).convert("RGB")
    array = np.asarray(opened)
    forms = [pathlib.Path(files[0]), opened, array, array[None], opened.convert("RGBA"), [files[0]]]
    for form in [*forms, np.array(files[:1]), jax.numpy.asarray(array[None])]:
        np.testing.assert_array_equal(predictor.predict_proba(form), expected)
    grey = np.asarray(opened.convert("L"))
    expected = predictor.predict_proba(np.stack([grey] * 3, -1))
    for two in ([grey, files[0]], np.stack([grey, grey])):
        np.testing.assert_array_equal(predictor.predict_proba(two)[:1], expected)
    deep = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        found = predictor.predict_proba(image)
    np.testing.assert_array_equal(found, predictor.predict_proba(tmp_path / "deep.png"))


def test_what_is_not_an_image_is_refused(predictor, tmp_path):
    arrays = [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 7), np.uint8)]
    for wrong in (*arrays, np.zeros((0, 0, 3), np.uint8), "none.png"):
        refused(r"an image is a path|none\.png", predictor.predict_proba, [wrong])
    eight = np.zeros((8, 8, 1), np.uint8)  # one image, and not eight
    refused("an image is a path", predictor.predict_proba, eight)


def test_names_and_score(predictor, files):
    names = predictor.predict(files)
    indices = predictor.predict_proba(files).argmax(-1)
    assert names == [predictor.classnames[c] for c in indices]
    assert predictor.score(files, names) == predictor.score(files, indices) == 1
    wrong = next(name for name in predictor.classnames if name != names[1])
    assert predictor.score(files[:2], [names[0], wrong]) == 0.5
    for labels, named in ((["zebra"], "zebra"), ([1, 2], "1 and 2"), ([99], "99"), ([0.5], "0.5")):
        refused(named, predictor.score, files[:1], labels)


def test_logits_are_features_of_images_with_features_of_texts(predictor, files, clip):
    logits = all_outputs(predictor, files)[1].logits
    scale = np.exp(np.asarray(clip.params["logit_scale"]))
    images, texts = predictor.encode_image(files), predictor.encode_text()
    np.testing.assert_allclose(scale * images @ texts.T, logits, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    backwards = predictor.encode_text(predictor.classnames[::-1])
    np.testing.assert_allclose(backwards, texts[::-1], rtol=1e-3, atol=1e-5)
    assert predictor.encode_text(["a zebra"]).shape == (1, texts.shape[1])


@pytest.mark.parametrize("part", ["sizes", "weights", "preprocessing", "image tower"])
def test_another_clip_is_refused(trained, clip_dir, tmp_path, part):
    """The weights alone do not say how images reach them, nor which activation they had."""
    copy = shutil.copytree(clip_dir, tmp_path / "clip")
    if part == "weights":
        tensors = load_file(clip_dir / "model.safetensors")
        tensors["vision_model.encoder.layers.1.self_attn.q_proj.weight"] *= np.float32(1.01)
        save_file(tensors, copy / "model.safetensors")
    elif part == "preprocessing":
        change(copy / "preprocessor_config.json", lambda raw: raw.update(resample=2))
    elif part == "image tower":
        change(copy / "config.json", lambda raw: raw["vision_config"].update(hidden_act="gelu"))
    with pytest.raises(UserError, match="a different CLIP" if part == "sizes" else part):
        dpt_jax.load(trained, clip="tiny-clip" if part == "sizes" else copy)


def change(file, update):
    raw = json.loads(file.read_text())
    update(raw)
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["dog", "cat", "dog"], "dog"),
        ([], "classnames"),
        (["dog", " "], "' '"),
        ("dog", "'dog'"),
        (["dog " * 80], "77"),
    ],
)
def test_wrong_class_names(trained, names, named):
    refused(named, dpt_jax.load, trained, names)


def test_class_names_of_a_file(tmp_path):
    """One per line, also as CoOp lists those of ImageNet."""
    file = tmp_path / "names.txt"
    for text in ("tench\n\n goldfish \n", "n01440764 tench\nn01443537 goldfish\n"):
        file.write_text(text)
        assert read_classnames(file) == ["tench", "goldfish"]


def test_answers_that_are_not_finite_are_refused(trained, files, tmp_path):
    """From Python, from the command line, as pictures and as a program: the tensor is named."""
    own = load_newest(trained)
    own.prompts["visual"]["tokens"] = own.prompts["visual"]["tokens"] * np.float32(np.nan)
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("checkpoints"))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, own.prompts, own.meta)
        checkpoints.wait()
    bad = dpt_jax.load(workdir)
    says = r"are not finite: the prompt visual\.tokens has such values"
    for use in (bad.predict_proba, bad.encode_image, lambda images: describe(bad, images)):
        refused(says, use, files[:1])
    refused(says, program.write, bad, tmp_path)
    assert not (tmp_path / program.PROGRAM).exists()
    done = command_refused("the logits are not finite", "predict", workdir, files[0], "--json")
    assert "probability" not in done.stdout


# Runs a script where this package cannot be imported.
ALONE = """
import runpy, sys
sys.modules["dpt_jax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.process
def test_a_program_needs_nothing_of_this_package(trained, files, tmp_path):
    served = tmp_path / "served"
    done = in_process("convert", "serve", trained, served)
    for name in ("classifier.jax", "classifier.json", "classify.py"):
        assert f"wrote {served / name}" in done.stdout
    exported = jax.export.deserialize(bytearray((served / "classifier.jax").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0]) == "uint8[b,32,32,3]"
    predictor = dpt_jax.load(trained)
    about = json.loads((served / "classifier.json").read_text())
    assert (about["classnames"], about["image_size"]) == (list(predictor.classnames), 32)
    # The example: a file that is not square too, since it has a transform of its own.
    # It is from a phone that was held upright. Another has 16 bits per pixel.
    deep = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(deep).save(tmp_path / name)
    wide = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "wide.png", exif=lying)
    both = [*(str(tmp_path / name) for name in ("wide.png", "deep.png", "deep.tiff")), files[0]]
    done = command("-c", ALONE, str(served / "classify.py"), *both, cwd=tmp_path, PYTHONPATH="")
    for line, own in zip(done.stdout.splitlines(), predictor.predict_proba(both), strict=True):
        best = [f"{predictor.classnames[c]} {100 * own[c]:.1f} %" for c in np.argsort(-own)[:3]]
        assert line.split("  ")[1:] == best


def test_sights_are_what_the_model_computed(predictor, files):
    """Each map is the attention of its own class, at any place among CAVPT's top-k classes."""
    pixels, outputs = all_outputs(predictor, files)
    probability = predictor.predict_proba(files)
    unseen = 0
    for i, sight in enumerate(describe(predictor, files, top=6)):
        order = np.argsort(-probability[i])
        assert list(sight.classes) == [predictor.classnames[c] for c in order]
        np.testing.assert_allclose(sight.probability, probability[i, order], rtol=1e-6)
        np.testing.assert_array_equal(sight.image, pixels[i])
        for own, whole in ((sight.plain, outputs.zero_shot), (sight.prompted, outputs)):
            expected = whole.attention[i].mean(0)[1:17]
            np.testing.assert_allclose(own.ravel(), expected, rtol=1e-6)
        assert sight.prompted.shape == (4, 4)
        for c, own in zip(order, sight.class_maps, strict=True):
            if c not in outputs.zero_shot.indices[i]:
                assert own is None
                unseen += 1
                continue
            place = list(outputs.zero_shot.indices[i]).index(c)
            np.testing.assert_array_equal(own.ravel(), outputs.class_attention[i, -1, place, 1:17])
    assert unseen == 3 * len(files)  # CAVPT has three of the six classes


def test_visualize_writes_a_picture_per_image(trained, files, tmp_path):
    """Also if two images have one name, and if one cannot be read."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "other").mkdir()
    shutil.copy(files[0], tmp_path / "other")
    out = tmp_path / "out"
    images = [files[0], tmp_path / "broken.png", tmp_path / "other"]
    done = in_process("visualize", trained, "--top=3", f"--out={out}", *images)
    assert "broken.png cannot be read as an image" in done.stderr
    name = files[0].rpartition("/")[2].removesuffix(".png")
    assert sorted(file.name for file in out.iterdir()) == [f"{name}-2.png", f"{name}.png"]
    assert Image.open(out / f"{name}.png").size[0] > 1000
    # In the folder of the images themselves: none of them is overwritten.
    before = (tmp_path / "other" / f"{name}.png").read_bytes()
    shutil.copy(files[0], tmp_path / "other" / f"{name}-2.png")
    in_process("visualize", trained, f"--out={tmp_path / 'other'}", tmp_path / "other")
    assert (tmp_path / "other" / f"{name}.png").read_bytes() == before
    assert len(list((tmp_path / "other").iterdir())) == 4


def test_names_that_are_formulas_or_not_unicode(trained, files, tmp_path):
    """Names that matplotlib would typeset as mathematics, and one that is not Unicode."""
    odd = [r"$\frac$.png", "$x_$.png", os.fsdecode(b"n\xff.png")]
    for name in odd:
        shutil.copy(files[0], tmp_path / name)
    in_process("visualize", trained, f"--out={tmp_path / 'out'}", tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(odd)
    names = [r"$\frac$", "$x_$"]
    assert draw_confusion(pd.DataFrame(np.eye(2), columns=names), r"$\frac$")


def test_nearest_words_of_a_context_of_known_words(trained, clip, tmp_path):
    predictor = dpt_jax.load(trained)
    ids = [clip.tokenizer.encode(word)[0] for word in ("photo", "of", "a", "zebra")]
    embeddings = np.asarray(clip.params["text"]["token_embedding"])
    predictor.prompts["text"]["context"] = embeddings[None, ids]
    found = nearest_words(predictor, top=2)
    nearest = ["nearest 1 (distance)", "nearest 2 (distance)"]
    assert [*found.columns] == ["context", *nearest, "in word distances"]
    assert found["context"].tolist() == ["1", "2", "3", "4"]
    words = ["photo (0.000)", "of (0.000)", "a (0.000)", "zebra (0.000)"]
    assert found[nearest[0]].tolist() == words
    assert not found.iloc[:, 2].str.contains("(0.000)", regex=False).any()
    lines = in_process("explain", trained, "--top=2").stdout.splitlines()
    assert len(lines) == 2 + 4


SETTINGS = {"shots": -1, "epochs": 2, "top_k": np.int64(3)}
SETTINGS |= {"text_prompt__length": 4, "visual_prompt.length": 3}


@pytest.fixture(scope="module")
def memory():
    """The training images of the folder as a path, a PIL image and arrays, and their names."""
    whole = read_folder(IMAGES)
    paths = [IMAGES / example.path for example in whole.train]
    images = [*paths[:1], Image.open(paths[1]), *(np.asarray(whole.read(p)) for p in paths[2:])]
    return images, [whole.classnames[example.label] for example in whole.train]


def test_a_folder_is_a_run_of_the_command_line(trained, clip_dir, tmp_path, files):
    """The same bits and files, also if a callback ends it and the same call resumes."""
    epochs = []

    def end(metrics):
        epochs.append(metrics.pop("epoch"))
        return len(epochs) == 1

    for _ in range(2):
        given = {"clip": str(clip_dir), "workdir": tmp_path / "run", "callbacks": [end]}
        classifier = dpt_jax.fit(IMAGES, **given, **SETTINGS)
    assert epochs == [1, 2]
    assert load_newest(tmp_path / "run").digest == load_newest(trained).digest
    expected = dpt_jax.load(trained)
    np.testing.assert_array_equal(classifier.predict_proba(files), expected.predict_proba(files))
    classifier.save(tmp_path / "prompts.safetensors")
    assert dpt_jax.load(tmp_path / "prompts.safetensors").predict(files) == expected.predict(files)
    names = {file.name for file in trained.iterdir() if "tfevents" not in file.name}
    assert names - {"predictions.npz"} <= {file.name for file in (tmp_path / "run").iterdir()}
    results = [results_of(w) for w in (trained, tmp_path / "run")]
    assert results[0] == results[1]


def test_images_in_memory_are_those_of_the_folder(
    trained, clip_dir, memory, tmp_path, monkeypatch, capsys
):
    """The same bits, silent, and nothing is left on the disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    metrics: list[dict[str, float]] = []
    given = {"clip": str(clip_dir), "validation": memory, "verbose": False}
    classifier = dpt_jax.fit(*memory, callbacks=[metrics.append], **given, **SETTINGS)
    assert [0 <= one["val_accuracy"] <= 1 for one in metrics] == [True, True]
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    classifier.save(tmp_path / "prompts.safetensors")
    assert load_newest(tmp_path / "prompts.safetensors").digest == load_newest(trained).digest


@pytest.mark.parametrize(
    ("method", "key"),
    [("dpt", "loss.alpha"), ("tip_adapter", "classifier.alpha")],
)
def test_a_keyword_without_its_section_is_a_key_of_the_method(method, key):
    assert keyword_config(method, {key.rpartition(".")[2]: 2})[1] == {key: 2}


def test_the_record_is_of_the_pixels(memory):
    images, names = memory
    paths = [example.path for example in in_memory(images, names, validation=memory).train]
    assert paths[0] == str(images[0])
    assert len({*paths}) == len(paths)
    other = [*images[:-1], images[-1] ^ np.uint8(1)]
    changed = [example.path for example in in_memory(other, names).train]
    assert [a == b for a, b in zip(paths, changed, strict=True)] == [True] * 11 + [False]


def test_a_missing_or_broken_file_is_named_before_training(memory, clip_dir, tmp_path, capsys):
    """A missing file even before CLIP is loaded."""
    images, labels = memory
    missing, broken = tmp_path / "none.png", tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:300])
    for file, clip in ((missing, "no-such-clip"), (broken, clip_dir)):
        with pytest.raises(UserError, match=file.name):
            dpt_jax.fit([*images, file], [*labels, labels[0]], clip=str(clip), **SETTINGS)
        assert "Training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"epcohs": 3}, "train.epochs"),
        ({"lr": 3.0, "method": "coop"}, "lr is not a setting of coop"),
        ({"epochs": 3, "train__epochs": 3}, "train__epochs"),
        ({"epochs": "3"}, "train.epochs"),
        ({"root": "photos"}, "dataset.root"),
        ({"labels": None}, "labels"),
        ({"labels": ["dog"]}, "12 and 1"),
        ({"classnames": ["dog", "cat"]}, "airplane"),
        ({"labels": np.eye(12)}, "array"),
        ({"validation": ([], [])}, "0 and 0"),
        ({"callbacks": print}, "callbacks"),
        ({"workdir": "prompts.safetensors"}, "prompts.safetensors"),
    ],
)
def test_wrong_input_is_named(memory, clip_dir, arguments, named):
    images, labels = memory
    given = {"images": images, "labels": labels, "clip": str(clip_dir), **arguments}
    refused(named, dpt_jax.fit, **given)


@pytest.fixture(scope="module")
def arrays():
    """Training images of three classes in memory, and their labels, which do not begin at 0."""
    whole = read_folder(IMAGES)
    chosen = [example for example in whole.train if example.label < 3]
    images = np.stack([np.asarray(whole.read(example.path).resize((32, 32))) for example in chosen])
    return images, np.array([example.label + 1 for example in chosen]), whole.classnames


def test_examples_run():
    found = doctest.testmod(importlib.import_module("dpt_jax.predictor.fit"))
    assert found.attempted
    assert not found.failed


def test_labels_are_those_of_the_caller(arrays, clip_dir, monkeypatch):
    """Numbers that begin anywhere, and names of them; without scikit-learn."""
    images, labels, names = arrays
    monkeypatch.setitem(sys.modules, "sklearn", None)
    given = {"method": "zeroshot", "clip": str(clip_dir)}
    classifier = dpt_jax.PromptClassifier(**given, classnames=["nothing", *names])
    classifier.fit(images, labels)
    assert classifier.classes_.tolist() == [1, 2, 3]
    assert classifier.predictor_.classnames == names[:3]
    probabilities = classifier.predict_proba(images)
    np.testing.assert_array_equal(classifier.predict(images), probabilities.argmax(-1) + 1)
    expected = (probabilities.argmax(-1) + 1 == labels).mean()
    assert classifier.score(images, labels) == pytest.approx(expected)
    assert classifier.score(images, labels[:, None]) == pytest.approx(expected)
    refused(f"{len(images)} and 1", classifier.score, images, labels[:1])
    named = dpt_jax.PromptClassifier(**given).fit(images, np.array(names)[labels - 1])
    np.testing.assert_array_equal(named.predict_proba(images), probabilities)


def test_a_search_within_a_pipeline(arrays, clip_dir):
    images, labels, _ = arrays
    classifier = dpt_jax.PromptClassifier(method="zeroshot", clip=str(clip_dir))
    assert is_classifier(classifier)
    assert clone(classifier).get_params() == classifier.get_params()
    assert "method=" in repr(classifier)
    pipeline = make_pipeline(FunctionTransformer(np.ascontiguousarray), classifier)
    choices = {"promptclassifier__dataset__template": ["{} texture."]}
    search = GridSearchCV(pipeline, choices, cv=2, error_score="raise").fit(images, labels)
    assert search.predict(images).shape == labels.shape
    assert search.cv_results_["params"] == [{key: value for key, (value,) in choices.items()}]
    refused("and 12", clone(classifier).fit, images, np.eye(2, dtype=int)[labels % 2])
    refused("epcohs", clone(classifier).set_params(epcohs=3).fit, images, labels)
