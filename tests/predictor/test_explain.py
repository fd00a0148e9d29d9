"""What a learned prompt attends to, and the words that are nearest to it."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.predictor.explain import describe, nearest_words
from dpt_jax.report.figures import draw_confusion, draw_features
from tests.helpers.commands import command_refused, in_process
from tests.helpers.golden import SMALL
from tests.helpers.models import all_outputs

pytestmark = pytest.mark.compiles


IMAGES = SMALL / "images"


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
        np.testing.assert_allclose(
            sight.plain.ravel(), outputs.zero_shot.attention[i].mean(0)[1:17], rtol=1e-6
        )
        np.testing.assert_allclose(
            sight.prompted.ravel(), outputs.attention[i].mean(0)[1:17], rtol=1e-6
        )
        assert sight.prompted.shape == (4, 4)
        for c, own in zip(order, sight.class_maps, strict=True):
            if c not in outputs.zero_shot.indices[i]:
                assert own is None
                unseen += 1
                continue
            place = list(outputs.zero_shot.indices[i]).index(c)
            np.testing.assert_array_equal(own.ravel(), outputs.class_attention[i, -1, place, 1:17])
    assert unseen == 3 * len(files)  # CAVPT has three of the six classes


def test_visualize_writes_a_picture_an_image(trained, files, tmp_path):
    """Also if two images have one name, and if one cannot be read."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "other").mkdir()
    shutil.copy(files[0], tmp_path / "other")
    out = tmp_path / "out"
    images = [files[0], str(tmp_path / "broken.png"), str(tmp_path / "other")]
    options = [f"--workdir={trained}", "--top=3", f"--out={out}"]
    done = in_process("visualize", *options, *images)
    assert "broken.png cannot be read as an image" in done.stderr
    name = files[0].rpartition("/")[2].removesuffix(".png")
    assert sorted(file.name for file in out.iterdir()) == [f"{name}-2.png", f"{name}.png"]
    assert Image.open(out / f"{name}.png").size[0] > 1000
    # In the folder of the images themselves: none of them is overwritten.
    before = (tmp_path / "other" / f"{name}.png").read_bytes()
    shutil.copy(files[0], tmp_path / "other" / f"{name}-2.png")
    options = [f"--workdir={trained}", f"--out={tmp_path / 'other'}", str(tmp_path / "other")]
    in_process("visualize", *options)
    assert (tmp_path / "other" / f"{name}.png").read_bytes() == before
    assert len(list((tmp_path / "other").iterdir())) == 4


def test_names_that_are_formulas_or_no_unicode(trained, files, tmp_path):
    """Names that matplotlib would typeset as mathematics, and one that is not Unicode."""
    odd = [r"$\frac$.png", "$x_$.png", os.fsdecode(b"n\xff.png")]
    for name in odd:
        shutil.copy(files[0], tmp_path / name)
    options = [f"--workdir={trained}", f"--out={tmp_path / 'out'}", str(tmp_path)]
    done = in_process("visualize", *options)
    assert len(done.stdout.splitlines()) == 3
    assert sorted(os.listdir(tmp_path / "out")) == sorted(odd)
    matrix, names = np.eye(2), [r"$\frac$", "a\nb\udcff"]
    assert draw_confusion(matrix, names, r"$\frac$")
    assert draw_features({"before": (np.eye(2), np.eye(2))}, np.arange(2), names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workdir=TRAINED", "--out=README.md", str(IMAGES)], "--out: README.md cannot be made"),
        ([str(IMAGES)], "no image is named"),
    ],
)
def test_wrong_input_to_visualize(trained, arguments, says):
    arguments = [argument.replace("TRAINED", str(trained)) for argument in arguments]
    command_refused(says, "visualize", *arguments)


def test_words_of_a_context_that_is_words(trained, clip, tmp_path):
    """A context set to the embeddings of words is explained as these words, at distance 0."""
    predictor = dpt_jax.load(trained)
    ids = [clip.tokenizer.encode(word)[0] for word in ("photo", "of", "a", "zebra")]
    predictor.prompts["text"]["context"] = np.asarray(clip.params["text"]["token_embedding"])[
        None, ids
    ]
    found = nearest_words(predictor, top=2)
    assert [*found.columns] == [
        "context",
        "nearest 1 (distance)",
        "nearest 2 (distance)",
        "in word distances",
    ]
    assert found.iloc[:, :2].values.tolist() == [
        ["1", "photo (0.000)"],
        ["2", "of (0.000)"],
        ["3", "a (0.000)"],
        ["4", "zebra (0.000)"],
    ]
    assert not found.iloc[:, 2].str.contains("(0.000)", regex=False).any()


def test_explain_prints_a_table(trained):
    lines = in_process("explain", f"--workdir={trained}", "--top=2").stdout.splitlines()
    assert len(lines) == 2 + 4
    assert re.fullmatch(r"\| 1 +\| \S+ \(\d\.\d+\) +\| \S+ \(\d\.\d+\) +\| \d\.\d\d +\|", lines[2])
    done = in_process("explain", f"--workdir={trained}", "x", check=False)
    assert done.returncode == 2
