"""What a learned prompt attends to, and the words that are nearest to it."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.predictor import describe, nearest_words
from dpt_jax.report.one_run import draw_confusion
from tests.helpers.commands import in_process
from tests.helpers.models import all_outputs

pytestmark = pytest.mark.compiles


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


def test_visualize_writes_a_picture_an_image(trained, files, tmp_path):
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


def test_names_that_are_formulas_or_no_unicode(trained, files, tmp_path):
    """Names that matplotlib would typeset as mathematics, and one that is not Unicode."""
    odd = [r"$\frac$.png", "$x_$.png", os.fsdecode(b"n\xff.png")]
    for name in odd:
        shutil.copy(files[0], tmp_path / name)
    in_process("visualize", trained, f"--out={tmp_path / 'out'}", tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(odd)
    names = [r"$\frac$", "$x_$"]
    assert draw_confusion(pd.DataFrame(np.eye(2), columns=names), r"$\frac$")


def test_words_of_a_context_that_is_words(trained, clip, tmp_path):
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
