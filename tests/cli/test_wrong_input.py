"""Settings, folders and images are taken, or refused in one sentence."""

import os
import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from PIL import Image

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING
from dpt_jax.data import loader
from dpt_jax.data.folder import find_images, read_folder
from dpt_jax.data.records import UnreadableImageError, read_image
from dpt_jax.errors import UserError
from tests.helpers.commands import assert_refused, in_process

TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))  # more of them in `make soak`


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
        ["-m", "dpt_jax", "predict", "gs://nobody-has-this/run",
         "dpt_jax/assets/emoji/test/fruit"],
        ["-m", "dpt_jax", "report", "gs://nobody-has-this/runs"],
        ["main.py", "--config.clip.weights=gs://nobody-has-this/clip"],
        ["main.py", "--config=configs/dpt.py:folder",
         "--config.dataset.root=gs://nobody-has-this/data"],
        ["main.py", "--config.init_from=gs://nobody-has-this/run"],
    ],
)  # fmt: skip
def test_a_bucket_that_is_not_there_is_one_sentence(store, arguments, tmp_path):
    given = arguments[0] == "-m" or arguments[1].startswith("--workdir")
    where = [] if given else [f"--workdir={tmp_path}"]
    done = in_process(*arguments, *where, check=False)
    assert_refused(done, "gs://nobody-has-this")
    assert len(done.stderr.strip().splitlines()) == 1


NAMES = st.one_of(
    st.sampled_from(
        [
            "cat.png",
            "dog",
            "a b",
            ".hidden",
            "x.JPG",
            "file.txt",
            "Thumbs.db",
            "\x07bell",
            "ünï",
            "=1+1",
        ]
    ),
    st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]),
        min_size=1,
        max_size=12,
    ),
    st.binary(min_size=1, max_size=8).map(os.fsdecode),
)


KINDS = st.sampled_from(["image", "empty", "text", "folder", "loop", "broken link"])


def fill(folder, entries):
    """Makes a tree of {(names…): kind}; what cannot be made, since a file is in the way, is left
    out.
    """
    for names, kind in entries.items():
        path = folder.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir()
            elif kind == "loop":
                path.symlink_to(path.parent)
            elif kind == "broken link":
                path.symlink_to(path.parent / "nowhere")
            elif kind == "image":
                Image.new("RGB", (4, 4)).save(path, "PNG")
            else:
                path.write_bytes(b"" if kind == "empty" else b"text")
        except (OSError, ValueError):
            continue


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["train", "test", "other"]), NAMES, NAMES), KINDS, max_size=8
    )
)
@tries(max_examples=150 * TIMES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_folder_is_a_dataset_or_is_refused(entries):
    """Names that are no Unicode, links in a circle, empty files: the images of what is taken are
    read or left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        fill(root, entries)
        try:
            splits = read_folder(root)
        except UserError as reason:
            assert folder in str(reason) or "dataset.root" in str(reason)
            return
        assert all(name.isprintable() for name in splits.classnames)
        examples = [*splits.train, *splits.test]
        loading = loader.Loading(
            preprocessing=CLIP_PREPROCESSING,
            read=splits.read,
            examples=examples,
            size=8,
            batch_size=4,
            skip_unreadable=True,
        )
        rows = [row for batch in loader.test_batches(loading)
                for row in zip(batch["index"], batch["weight"], strict=True)]  # fmt: skip
        assert [index for index, _ in rows] == list(range(len(examples)))
        for (_, weight), example in zip(rows, examples, strict=True):
            file = root / example.path
            whole = file.is_file() and file.stat().st_size > 5
            assert weight == whole, example.path
        found = find_images([folder])
        assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "content"),
    [("zero.png", b""), ("text.jpg", b"hello"), ("cut.gif", b"GIF89a"), ("zip.png", b"PK\3\4")],
)
def test_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"{name} cannot be read as an image"):
        read_image(tmp_path / name)


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """One bit a pixel, 20,000 on a side: 50 kB of file."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_an_image_with_another_ending_is_an_image(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "png.jpg", "PNG")
    assert read_image(tmp_path / "png.jpg").getpixel((0, 0)) == (255, 0, 0)
