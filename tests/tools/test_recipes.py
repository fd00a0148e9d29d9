"""The recipes of the bundled assets, on a few drawings that the tests make."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data.dataset import BUNDLED
from tests.helpers import emoji_package
from tools import make_digits_dataset, make_emoji_dataset
from tools import pretrain_tiny_clip as recipe

pytestmark = pytest.mark.compiles


def smaller(vocab_size):
    tower = TransformerConfig(width=32, layers=2, heads=2, mlp_width=32)
    return CLIPConfig(32, recipe.IMAGE_SIZE, 8, tower, tower, vocab_size=vocab_size)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """(The model directory of a training of a few steps, what the training printed)."""
    folder = tmp_path_factory.mktemp("recipe")
    package = emoji_package.write(folder)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        # Towers that compile quickly, and one number of patches, so that there is one program.
        patch.setattr(recipe, "tiny_config", smaller)
        patch.setattr(recipe, "WHOLE_IMAGE_SHARE", 0.0)
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        short = recipe.Recipe(epochs=8, batch_size=4, learning_rate=3e-3)
        recipe.pretrain(str(package), folder / "tiny", short)
    return folder / "tiny", lines


def test_the_pretraining_learns_and_writes_what_is_read_back(tiny_clip):
    folder, lines = tiny_clip
    losses = [float(m[1]) for line in lines if (m := re.search(r"loss (\d+\.\d+)", line))]
    assert len(losses) == 8
    # The first epoch warms up; a batch of four starts near log 4 and falls.
    assert min(losses[-3:]) < losses[0] - 0.1
    clip = load_clip(str(folder))
    assert (clip.config.image_size, clip.config.embed_dim) == (64, 32)
    assert clip.tokenizer.decode(clip.tokenizer.encode("a fruit")) == "a fruit"


def test_a_true_caption_of_another_image_is_left_out_of_the_loss():
    logits = jnp.array([[2.0, 9.0], [0.0, 1.0]])
    fits = jnp.array([[True, True], [False, True]])
    # Rows: nothing but the pair in the first, log(e^0 + e^1) - 1 in the second; columns alike.
    wanted = (0.5 * np.log1p(np.exp(-1)) + 0.5 * np.log1p(np.exp(-2))) / 2
    assert float(recipe.contrastive_loss(logits, fits)) == pytest.approx(wanted, abs=1e-6)


def test_the_dataset_recipe_divides_the_drawings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        make_emoji_dataset, "DATASET_CLASSES", {"food-fruit": "fruit", "time": "wall clock"}
    )
    package = emoji_package.write(tmp_path, "twitter", each=10)
    make_emoji_dataset.main([str(package), str(tmp_path / "emoji")])
    found = {split: sorted(p.name for p in (tmp_path / "emoji" / split).glob("*/*.png"))
             for split in ("train", "test")}  # fmt: skip
    assert {name: len(files) for name, files in found.items()} == {"train": 16, "test": 4}
    assert not set(found["train"]) & set(found["test"])
    assert (tmp_path / "emoji/train/wall_clock").is_dir()
    assert "2 classes, 16 train and 4 test images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_emoji_dataset.main([str(package), str(tmp_path / "emoji")])
    assert "already exists" in capsys.readouterr().err


def test_the_bundled_digits_are_those_that_the_recipe_makes(tmp_path, capsys):
    made, bundled = tmp_path / "digits", BUNDLED / "digits"
    make_digits_dataset.main([str(made)])
    assert "10 classes, 600 train, 400 val, 797 test images" in capsys.readouterr().out
    files = sorted(file.relative_to(made) for file in made.rglob("*.*"))
    assert files == sorted(file.relative_to(bundled) for file in bundled.rglob("*.*"))
    assert (made / "NOTICE.md").read_bytes() == (bundled / "NOTICE.md").read_bytes()
    for file in (file for file in files if file.suffix == ".png"):
        # Not the bytes of the files, which are those of a version of Pillow.
        with Image.open(made / file) as one, Image.open(bundled / file) as other:
            assert one.tobytes() == other.tobytes()
