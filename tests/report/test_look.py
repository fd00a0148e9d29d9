"""What is shown of a trained prompt: heat maps, words, calibration, features, the page."""

import html.parser
import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.data.folder import find_images
from dpt_jax.inference import words as explain
from dpt_jax.inference.attention import describe
from dpt_jax.inference.evaluation import calibration
from dpt_jax.report import one_run as run_report
from dpt_jax.report import page, plots
from tests.helpers.commands import assert_refused, command
from tests.helpers.golden import SMALL

IMAGES = SMALL / "images"


@pytest.fixture(scope="module")
def predictor(trained):
    return dpt_jax.load(trained)


@pytest.fixture(scope="module")
def files():
    return find_images([str(IMAGES / "test")])


def test_sights_are_what_the_model_computed(predictor, files):
    """Each map is the attention of its own class, whatever place the class has among those that CAVPT looks at."""
    pixels = predictor.pixels(files)
    outputs, plain = predictor.see(pixels)
    probability = predictor.predict(files)
    unseen = 0
    for i, sight in enumerate(describe(predictor, pixels, top=6)):
        order = np.argsort(-probability[i])
        assert list(sight.classes) == [predictor.classnames[c] for c in order]
        np.testing.assert_allclose(sight.probability, probability[i, order], rtol=1e-6)
        np.testing.assert_array_equal(sight.image, pixels[i])
        np.testing.assert_allclose(sight.plain.ravel(), plain.attention[i].mean(0)[1:17], rtol=1e-6)
        np.testing.assert_allclose(
            sight.prompted.ravel(), outputs.attention[i].mean(0)[1:17], rtol=1e-6
        )
        assert sight.prompted.shape == (4, 4)
        for c, own in zip(order, sight.class_maps, strict=True):
            if c not in outputs.indices[i]:
                assert own is None
                unseen += 1
                continue
            place = list(outputs.indices[i]).index(c)
            np.testing.assert_array_equal(own.ravel(), outputs.class_attention[i, -1, place, 1:17])
    assert unseen == 3 * len(files)  # of six classes CAVPT looks at three


def test_visualize_writes_a_picture_an_image(trained, files, tmp_path):
    """Also where two images have one name, and one cannot be read."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "other").mkdir()
    shutil.copy(files[0], tmp_path / "other")
    out = tmp_path / "out"
    done = command("-m", "dpt_jax.visualize", f"--workdir={trained}", "--top=3", f"--out={out}",
                   files[0], str(tmp_path / "broken.png"), str(tmp_path / "other"))  # fmt: skip
    assert "broken.png cannot be read as an image" in done.stderr
    name = files[0].rpartition("/")[2].removesuffix(".png")
    assert sorted(file.name for file in out.iterdir()) == [f"{name}-2.png", f"{name}.png"]
    assert Image.open(out / f"{name}.png").size[0] > 1000
    # In the folder of the images themselves: none of them is overwritten.
    before = (tmp_path / "other" / f"{name}.png").read_bytes()
    shutil.copy(files[0], tmp_path / "other" / f"{name}-2.png")
    command(
        "-m",
        "dpt_jax.visualize",
        f"--workdir={trained}",
        f"--out={tmp_path / 'other'}",
        str(tmp_path / "other"),
    )
    assert (tmp_path / "other" / f"{name}.png").read_bytes() == before
    assert len(list((tmp_path / "other").iterdir())) == 4


def test_names_that_are_formulas_or_no_unicode(trained, files, tmp_path):
    """What matplotlib would set as mathematics, and a name that no encoding gives."""
    odd = [r"$\frac$.png", "$x_$.png", os.fsdecode(b"n\xff.png")]
    for name in odd:
        shutil.copy(files[0], tmp_path / name)
    done = command(
        "-m",
        "dpt_jax.visualize",
        f"--workdir={trained}",
        f"--out={tmp_path / 'out'}",
        str(tmp_path),
    )
    assert len(done.stdout.splitlines()) == 3
    assert sorted(os.listdir(tmp_path / "out")) == sorted(odd)
    matrix, names = np.eye(2), [r"$\frac$", "a\nb\udcff"]
    plots.draw_confusion(matrix, names, r"$\frac$", tmp_path / "confusion.png")
    cloud = plots.Cloud(np.eye(2), np.eye(2), np.ones(2))
    plots.draw_clouds({"before": cloud}, np.arange(2), names, tmp_path / "clouds.png")


@pytest.mark.parametrize("classes", [1, 8])
def test_a_sight_of_any_number_of_classes_is_drawn(classes, tmp_path):
    """Very long names, a class that was not looked at, a map without attention: nothing is clipped or divided by 0."""
    names = [
        f"{'one of' if i % 2 else 'another of'} the rather long names without room, {i}"
        for i in range(classes)
    ]
    maps = [None if i == 1 else np.zeros((2, 2)) for i in range(classes)]
    chances = np.full(classes, 1 / classes)
    sight = plots.Sight(
        np.zeros((8, 8, 3), np.uint8), names, chances, chances, np.ones((2, 2)) / 5, None, maps
    )
    with np.errstate(all="raise"):
        plots.draw_sight(sight, "x" * 500, "dpt", tmp_path / "sight.png")
    assert Image.open(tmp_path / "sight.png").size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workdir=TRAINED"], "no image is named"),
        (["--workdir=TRAINED", "/nowhere/a.png"], "/nowhere/a.png is not there"),
        (["--workdir=TRAINED", "README.md"], "none of the 1 images could be read"),
        (["--workdir=TRAINED", "--out=README.md", str(IMAGES)], "--out: README.md cannot be made"),
        (["--workdir=/nowhere", str(IMAGES)], "/nowhere is no workdir of a run"),
        ([str(IMAGES)], "--workdir is not given"),
    ],
)
def test_wrong_input_to_visualize(trained, arguments, says):
    arguments = [argument.replace("TRAINED", str(trained)) for argument in arguments]
    assert_refused(command("-m", "dpt_jax.visualize", *arguments, check=False), says)


def test_words_of_a_context_that_is_words(trained, clip, tmp_path):
    """A context set to the embeddings of words is explained as these, at no distance."""
    predictor = dpt_jax.load(trained)
    ids = [clip.tokenizer.encode(word)[0] for word in ("photo", "of", "a", "zebra")]
    predictor.prompts["text"]["context"] = np.asarray(clip.params["text"]["token_embedding"])[
        None, ids
    ]
    found = explain.neighbours(predictor, top=2)
    assert [one.words[0] for one in found] == ["photo", "of", "a", "zebra"]
    assert [one.distances[0] for one in found] == [0] * 4
    assert all(one.distances[1] > 0 for one in found)
    assert [one.place for one in found] == [1, 2, 3, 4]


def test_words_of_classes_that_have_their_own(trained):
    predictor = dpt_jax.load(trained)
    own = (
        np.random.default_rng(0)
        .normal(size=(1, len(predictor.classnames), 2, 128))
        .astype(np.float32)
    )
    predictor.prompts["text"]["context"] = own
    found = explain.neighbours(predictor, top=1)
    assert [(one.classname, one.place) for one in found] == [
        (n, i) for n in predictor.classnames for i in (1, 2)
    ]
    assert explain.header(found)[0] == "class"
    assert {len(row) for row in explain.rows(found)} == {len(explain.header(found))}


def test_explain_prints_a_table(trained):
    lines = command("-m", "dpt_jax.explain", f"--workdir={trained}", "--top=2").stdout.splitlines()
    assert len(lines) == 2 + 4
    assert re.fullmatch(r"\| 1 \| .* \(\d\.\d+\) \| .* \(\d\.\d+\) \| \d\.\d\d \|", lines[2])
    done = command("-m", "dpt_jax.explain", f"--workdir={trained}", "x", check=False)
    assert done.returncode == 2


def test_calibration_by_hand():
    """Four answers: two sure at 90 % of which one is right, two at 60 % that are right."""

    def logits(p):
        return np.log([p, 1 - p])

    found = calibration(
        np.array([logits(0.9), logits(0.9), logits(0.6), logits(0.6)]), np.array([0, 1, 0, 0])
    )
    assert [one["images"] for one in found["bins"]] == [2, 2]
    np.testing.assert_allclose([one["confidence"] for one in found["bins"]], [0.6, 0.9])
    np.testing.assert_allclose([one["accuracy"] for one in found["bins"]], [1, 0.5])
    assert found["ece"] == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    certain = calibration(np.array([[1000.0, 0.0]]), np.array([0]))
    assert certain == {"ece": 0.0, "bins": [{"images": 1, "confidence": 1.0, "accuracy": 1.0}]}


def test_principal_axes_by_hand():
    """Points on a line through six dimensions: all variance on one axis, and texts where they stand along it."""
    direction = np.array([0, 3, 0, 0, 4, 0]) / 5
    images = np.outer([-2.0, 0.0, 1.0, 5.0], direction) + 7
    cloud = page.principal_axes(images, np.outer([1.0, 3.0], direction) - 9)
    np.testing.assert_allclose(cloud.variance, [1, 0], atol=1e-12)
    sign = np.sign(cloud.images[3, 0])
    np.testing.assert_allclose(sign * cloud.images[:, 0], [-3, -1, 0, 4], atol=1e-9)
    np.testing.assert_allclose(sign * cloud.texts[:, 0], [-1, 1], atol=1e-9)
    single = page.principal_axes(np.ones((1, 6)), np.ones((2, 6)))
    np.testing.assert_array_equal(single.variance, [0, 0])


def test_surest_answers_are_of_different_classes():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.05, 0.95]])
    answers = page.Answers(
        probability, np.array([0, 0, 1, 1, 0]), np.arange(5), probability, probability
    )
    right = probability.argmax(-1) == answers.label
    assert page.surest(answers, right) == [0, 2, 1, 3]
    assert page.surest(answers, ~right) == [4]


class Page(html.parser.HTMLParser):
    """The tags of a page, the addresses it asks for, its text and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.asked, self.text, self.cells = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.asked += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] in ("td", "th"):
            self.cells.append(data)


def test_one_page_a_run(trained, tmp_path):
    """Self-contained, with class names that are markup shown as text."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    results = json.loads((workdir / "results.json").read_text())
    old, evil = next(iter(results["per_class"])), "<script>x</script>"
    text = json.dumps(results).replace(json.dumps(old), json.dumps(evil))
    (workdir / "results.json").write_text(text)
    done = command("-m", "dpt_jax.report", "--html", str(workdir))
    assert f"written: {workdir / 'report.html'}" in done.stdout
    found = Page((workdir / "report.html").read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert evil in found.cells
    assert all(address.startswith("data:image/png;base64,") for address in found.asked)
    assert len(found.asked) >= 6
    for heading in ("Training", "Right, and surest of it", "Wrong, and surest of it", "Features before and after",
                    "What the context is near to", "How sure the answers are", "Settings"):  # fmt: skip
        assert heading in found.text
    assert "train.visual_lr" in found.cells


def test_a_page_of_an_evaluation_elsewhere(trained, tmp_path):
    """WORKDIR/on/DATASET has no prompts of its own, and no training."""
    workdir = tmp_path / "on"
    command("main.py", "--config=configs/dpt.py:folder", "--mode=eval", f"--config.init_from={trained}",
            f"--config.dataset.root={IMAGES}", f"--workdir={workdir}")  # fmt: skip
    done = command("-m", "dpt_jax.report", "--html", str(workdir))
    assert "report.html" in done.stdout
    assert "Training" not in Page((workdir / "report.html").read_text(encoding="utf-8")).text
    assert dpt_jax.load(workdir).classnames == dpt_jax.load(trained).classnames


def test_page_of_what_is_no_run(tmp_path):
    done = command("-m", "dpt_jax.report", "--html", str(tmp_path), check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_report_of_a_run_draws_training_and_reliability(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    text, written = run_report.report_run(tmp_path / "run")
    assert written == ["report.md", "report.csv", "report.png", "training.png", "reliability.png"]
    assert all((tmp_path / "run" / name).is_file() for name in written)
    assert "expected calibration error" in text
    # Results of a version that did not note how sure the answers were.
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    del results["calibration"], results["zero_shot_calibration"]
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert run_report.report_run(tmp_path / "run")[1] == ["report.md", "report.csv", "report.png"]
    jax.clear_caches()
