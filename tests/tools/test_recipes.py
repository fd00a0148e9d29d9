"""The recipes of the bundled assets, on a few drawings that the tests make."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dpt_jax.data.dataset import BUNDLED
from tools import make_digits_dataset
from tools import pretrain_tiny_clip as recipe

pytestmark = pytest.mark.compiles


def test_a_true_caption_of_another_image_is_left_out_of_the_loss():
    logits = jnp.array([[2.0, 9.0], [0.0, 1.0]])
    fits = jnp.array([[True, True], [False, True]])
    # Rows: nothing but the pair in the first, log(e^0 + e^1) - 1 in the second; columns alike.
    wanted = (0.5 * np.log1p(np.exp(-1)) + 0.5 * np.log1p(np.exp(-2))) / 2
    assert float(recipe.contrastive_loss(logits, fits)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
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
