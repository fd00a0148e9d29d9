"""What is found wrong by its file, bucket or CLIP is refused in one sentence."""

import pytest
from PIL import Image

from dpt_jax.data.records import UnreadableImageError, read_image
from tests.helpers.commands import assert_refused, in_process


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("--config.text_prompt.depth=9", "text_prompt.depth"),
        ("--config.cavpt.first_layer=9", "cavpt.first_layer"),
        ("--config.visual_prompt.depth=4", "visual_prompt.depth"),
        ("--config.visual_prompt.coupled", "text_prompt"),
        ("--config.text_prompt.fixed_words", "text_prompt.fixed_words"),
    ],
)
def test_settings_that_do_not_fit_the_clip(argument, names, tmp_path):
    done = in_process("main.py", argument, f"--workdir={tmp_path / 'run'}", check=False)
    assert_refused(done, names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["main.py", "--workdir=gs://nobody-has-this/run"],
        ["main.py", "--config.clip.weights=gs://nobody-has-this/clip"],
    ],
)  # fmt: skip
def test_a_bucket_that_is_not_there_is_one_sentence(store, arguments, tmp_path):
    given = arguments[0] == "-m" or arguments[1].startswith("--workdir")
    where = [] if given else [f"--workdir={tmp_path}"]
    done = in_process(*arguments, *where, check=False)
    assert_refused(done, "gs://nobody-has-this")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """One bit a pixel, 20,000 on a side: 50 kB of file."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
