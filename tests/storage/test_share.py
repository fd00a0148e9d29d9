"""Prompts handed on: one file, a checkpoint of the published code, a compiled program."""

import json
import runpy
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from PIL import Image

import dpt_jax
from configs import dpt
from dpt_jax import settings
from dpt_jax.commands import convert
from dpt_jax.data.folder import find_images
from dpt_jax.errors import UserError
from dpt_jax.inference.published import convert_reference, reverse_reference
from dpt_jax.storage import prompt_file
from dpt_jax.storage.checkpoints import load_newest
from dpt_jax.storage.published import (
    CAVPT,
    MODULES,
    VISUAL,
    prompts_from_published,
    published_from_prompts,
)
from tests.helpers.commands import command, in_process
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

CHECKPOINT = SMALL / "checkpoint"
IMAGES = SMALL / "images"


def same_bytes(a, b):
    a, b = (
        settings.flat(
            jax.tree.map(lambda x: (x.dtype, x.shape, np.ascontiguousarray(x).tobytes()), t)
        )
        for t in (a, b)
    )
    return a == b


@pytest.fixture(scope="module")
def shared(trained, tmp_path_factory):
    file = tmp_path_factory.mktemp("shared") / "prompts.safetensors"
    done = in_process("-m", "dpt_jax", "convert", "export", str(trained), str(file))
    assert f"wrote {file}: dpt prompts" in done.stdout
    return file


def test_a_file_has_the_prompts_to_the_byte_and_says_what_they_are(shared, trained):
    own = load_newest(trained)
    assert same_bytes(load_newest(shared).prompts, own.prompts)
    assert load_newest(shared)[::2] == own[::2]
    with safetensors.safe_open(shared, "numpy") as opened:
        header = {
            key: json.loads(value) for key, value in opened.metadata().items() if key != "format"
        }
    results = json.loads((trained / "results.json").read_text())
    config = json.loads((trained / "config.json").read_text())
    assert header["classnames"] == own.meta["classnames"]
    assert (header["method"], header["backbone"]) == ("dpt", config["clip"]["weights"])
    assert header["template"] == config["dataset"]["template"]
    assert header["results"]["accuracy"] == results["accuracy"]
    # All settings but the folder of the data, which is nobody else's.
    assert header["settings"] == {**config, "dataset": {**config["dataset"], "root": ""}}
    assert str(IMAGES) not in json.dumps(header)
    assert shared.stat().st_size < sum(x.nbytes for x in jax.tree.leaves(own.prompts)) + 10_000


def test_a_file_stands_where_a_workdir_does(shared, trained, tmp_path):
    """predict and export in this process, main.py's evaluation and init_from as commands."""
    files = find_images([str(IMAGES / "test")])
    expected = dpt_jax.load(trained).predict(files)
    np.testing.assert_array_equal(dpt_jax.load(shared).predict(files), expected)
    convert.export(shared, tmp_path / "again.safetensors")
    assert same_bytes(
        load_newest(tmp_path / "again.safetensors").prompts, load_newest(shared).prompts
    )
    assert prompt_file.read_header(tmp_path / "again.safetensors") == prompt_file.read_header(
        shared
    )
    root = f"--config.dataset.root={IMAGES}"
    in_process("main.py", "--config=configs/dpt.py", "--mode=eval", f"--workdir={shared}", root,
            "--config.eval.save_logits=True")  # fmt: skip
    elsewhere = shared.with_suffix("") / "on" / "folder"
    logits = (np.load(folder / "predictions.npz")["logits"] for folder in (elsewhere, trained))
    np.testing.assert_allclose(
        *logits, rtol=1e-3, atol=1e-3
    )  # the training's was compiled in haste
    done = in_process(
        "main.py",
        "--config=configs/dpt.py:folder",
        f"--config.init_from={shared}",
        root,
        "--config.train.epochs=1",
        "--config.train.visual_lr=0.0",
        "--config.train.text_lr=0.0",
        f"--workdir={tmp_path / 'on'}",
    )
    assert "Training dpt" in done.stdout
    started, own = load_newest(tmp_path / "on").prompts, load_newest(trained).prompts
    np.testing.assert_allclose(
        started["visual"]["tokens"], own["visual"]["tokens"], atol=1e-3
    )  # new ones: 0.02


def test_a_file_is_not_trained_in(shared):
    done = in_process("main.py", f"--workdir={shared}", check=False)
    assert done.returncode == 2
    assert "is a file of prompts: evaluate it with --mode=eval" in done.stderr
    done = in_process(
        "main.py", "--mode=eval", f"--workdir={shared}", "--config.init_from=other", check=False
    )
    assert done.returncode == 2
    assert "--config.init_from names others" in done.stderr


def test_files_that_are_no_prompts(shared, tmp_path):
    whole = shared.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"damaged\.safetensors cannot be read"):
            load_newest(damaged)
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors is no file of prompts"):
        dpt_jax.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"none\.safetensors is not there"):
        dpt_jax.load(tmp_path / "none.safetensors")
    for key in ("settings", "step", "training", "classnames"):
        with safetensors.safe_open(shared, "numpy") as opened:
            header = opened.metadata()
        tensors = safetensors.numpy.load_file(shared)
        header[key] = header[key][:-1] + ","
        safetensors.numpy.save_file(tensors, damaged, header)
        with pytest.raises(UserError, match=r"damaged\.safetensors: its header is damaged"):
            load_newest(damaged)
        del header[key]
        safetensors.numpy.save_file(tensors, damaged, header)
        if key != "classnames":
            with pytest.raises(UserError, match=rf"damaged\.safetensors: its header lacks {key}"):
                dpt_jax.load(damaged)


@pytest.mark.parametrize(
    ("entry", "value"),
    [(entry, value) for entry in ("settings", "training") for value in (None, [], "x", 5)]
    + [("step", "x"), ("results", "x"), ("training.classnames", 5), ("training.classnames", [])]
    + [
        ("training.classnames", [None]),
        ("training.classnames", ["dog", ""]),
        ("training.classnames", {"a": 1}),
    ]
    + [("training.method", None), ("training.epoch", "/../../x"), ("settings.dtype", "int8")]
    + [
        ("settings.dataset.template", "{0.__class__}"),
        ("settings.train.remat", "all"),
        ("settings.cavpt.top_k", -1),
    ]
    + [("settings.cavpt", None), ("settings.no_such_key", 1)],
)
def test_a_header_that_says_something_else_is_refused(shared, tmp_path, entry, value):
    """In one sentence that names the file, whatever is done with it."""
    with safetensors.safe_open(shared, "numpy") as opened:
        header = opened.metadata()
    first, *rest = entry.split(".")
    told = json.loads(header[first])
    if rest:
        part = told
        for key in rest[:-1]:
            part = part[key]
        part[rest[-1]] = value
    else:
        told = value
    header[first] = json.dumps(told)
    file = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(shared), file, header)
    for use in (dpt_jax.load, lambda file: reverse_reference(file, tmp_path / "new")):
        with pytest.raises(UserError, match="odd"):
            use(file)


def without_classifier(tensors):
    return {name: x for name, x in tensors.items() if "classifier" not in name}


@pytest.mark.parametrize(
    "change",
    [
        without_classifier,
        lambda tensors: {},
        lambda tensors: {"cavpt": np.zeros(3, np.float32), "text": np.zeros(3, np.float32)},
        lambda tensors: {**tensors, "cavpt": np.zeros(3, np.float32)},
        lambda tensors: {**tensors, "cavpt.classifier.kernel": np.zeros(3, np.float32)},
        lambda tensors: {**tensors, "text.more": np.zeros(3, np.float32)},
        lambda tensors: {**tensors, "text.context": tensors["text.context"][:, :-1]},
        lambda tensors: {**tensors, "text.context": tensors["text.context"].astype(np.int32)},
    ],
)
def test_tensors_that_are_no_prompts_are_refused(shared, tmp_path, change):
    with safetensors.safe_open(shared, "numpy") as opened:
        header = opened.metadata()
    file = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(shared)), file, header)
    with pytest.raises(UserError, match=r"odd\.safetensors"):
        dpt_jax.load(file)


def test_export_says_what_it_cannot_do(trained, tmp_path):
    with pytest.raises(UserError, match=r"should end in \.safetensors"):
        convert.export(trained, tmp_path / "prompts.bin")
    with pytest.raises(UserError, match="cannot be written"):
        convert.export(trained, tmp_path / "nowhere" / "prompts.safetensors")
    with pytest.raises(UserError, match="is no workdir of a run"):
        convert.export(tmp_path, tmp_path / "prompts.safetensors")
    done = in_process("-m", "dpt_jax", "convert", "export", str(trained), check=False)
    assert done.returncode == 2
    assert "unknown arguments" in done.stderr


def published(directory):
    """The state dicts of a published checkpoint, without what it does not learn."""
    found = {}
    for module in MODULES:
        (file,) = (directory / module).glob("model.pth.tar-*")
        contents = torch.load(file, weights_only=True)
        tensors = {
            k: v
            for k, v in contents["state_dict"].items()
            if k not in ("token_prefix", "token_suffix")
        }
        found[module] = {k: v.numpy() for k, v in tensors.items()}, contents["epoch"], file.name
    return found


def test_published_checkpoint_there_and_back(clip_dir, tmp_path):
    config = dpt.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(IMAGES)
    convert_reference(CHECKPOINT, tmp_path / "w", config, {})
    in_process(
        "-m",
        "dpt_jax",
        "convert",
        "reference",
        "--reverse",
        str(tmp_path / "w"),
        str(tmp_path / "back"),
    )
    before, after = published(CHECKPOINT), published(tmp_path / "back")
    for module in MODULES:
        assert same_bytes(after[module][0], before[module][0])
        assert after[module][1:] == before[module][1:] == (1, "model.pth.tar-1")
        name = (tmp_path / "back" / module / "checkpoint").read_text()
        assert name == "model.pth.tar-1\n"


def test_prompts_trained_here_there_and_back(trained, tmp_path):
    reverse_reference(trained, tmp_path / "published")
    config = settings.load(trained, dpt.get_config())
    convert_reference(tmp_path / "published", tmp_path / "back", config, {})
    back, own = load_newest(tmp_path / "back"), load_newest(trained)
    assert same_bytes(back.prompts, own.prompts)
    assert back.step == own.meta["epoch"] == 2


def test_cavpt_from_the_first_layer_leaves_an_empty_visual_prompt():
    """The published code makes that module all the same, and looks for its file."""
    cavpt = {
        name: {"kernel": np.ones((4, 5, 6), np.float32)}
        for name in ("query", "key", "value", "classifier")
    }
    cavpt["class_projection"] = {
        "kernel": np.ones((4, 7, 6), np.float32),
        "bias": np.ones((4, 6), np.float32),
    }
    cavpt |= {
        name: dict.fromkeys(("scale", "bias"), np.ones((4, 6), np.float32))
        for name in ("ln_classifier", "ln_prompt")
    }
    prompts = {"cavpt": {**cavpt, "global_tokens": np.ones((4, 10, 6), np.float32)}}
    modules = published_from_prompts(prompts, visual_length=3)
    assert set(modules) == {VISUAL, CAVPT}
    assert modules[VISUAL]["ctx"].shape == (0, 3, 6)
    assert same_bytes(prompts_from_published(modules), prompts)


def test_what_the_published_code_has_no_place_for(trained, tmp_path):
    deep = tmp_path / "deep"
    shutil.copytree(trained, deep)
    config = json.loads((deep / "config.json").read_text())
    config["text_prompt"]["depth"] = 2
    (deep / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="context tokens of several layers"):
        reverse_reference(deep, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is there already"):
        reverse_reference(trained, deep)
    for part in ("text_prompt", "visual_prompt"):
        config[part]["length"] = 0
    config["cavpt"]["top_k"] = 0
    (deep / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is zero-shot"):
        reverse_reference(deep, tmp_path / "new")


# Loads the program where this package cannot be imported.
RUN = """
import json, sys
import jax, numpy as np
sys.modules["dpt_jax"] = None
folder, images = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(f"{folder}/classifier.jax", "rb").read()))
images = np.load(images)
print(json.dumps({"platforms": program.platforms, "input": str(program.in_avals[0]),
                  "all": program.call(images).tolist(),
                  "one": program.call(images[:1]).tolist()}, default=str))
"""


def test_a_program_needs_nothing_of_this_package(trained, tmp_path, monkeypatch):
    served = tmp_path / "served"
    done = in_process("-m", "dpt_jax", "convert", "serve", str(trained), str(served))
    assert all(
        f"wrote {served / name}" in done.stdout
        for name in ("classifier.jax", "classifier.json", "classify.py")
    )
    predictor = dpt_jax.load(trained)
    files = find_images([str(IMAGES / "test")])
    expected = predictor.predict(files)
    np.save(tmp_path / "images.npy", predictor.pixels(files))
    done = command(
        "-c", RUN, str(served), str(tmp_path / "images.npy"), cwd=tmp_path, PYTHONPATH=""
    )
    told = json.loads(done.stdout)
    assert told["platforms"] == ["cpu", "cuda", "tpu"]
    assert told["input"] == "uint8[b,32,32,3]"
    np.testing.assert_allclose(told["all"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(told["one"], expected[:1], rtol=1e-4, atol=1e-6)
    about = json.loads((served / "classifier.json").read_text())
    assert (about["classnames"], about["image_size"]) == (list(predictor.classnames), 32)
    # The example: a file that is not square too, since it has a transform of its own.
    # And one of 16 bits a pixel.
    deep = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wide = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    both = [str(tmp_path / "wide.png"), str(tmp_path / "deep.png"), files[0]]
    done = command(str(served / "classify.py"), *both, cwd=tmp_path, PYTHONPATH="")
    for line, own in zip(done.stdout.splitlines(), predictor.predict(both), strict=True):
        best = np.argsort(-own)[:3]
        assert line.split("  ")[1:] == [
            f"{predictor.classnames[c]} {100 * own[c]:.1f} %" for c in best
        ]
    # A program that this JAX does not read, as one of years ago: the example says what to do.
    (served / "classifier.jax").write_bytes(b"of another time")
    monkeypatch.setattr("sys.argv", ["classify.py", files[0]])
    with pytest.raises(SystemExit, match=f"It is for JAX {jax.__version__} and what is released"):
        runpy.run_path(str(served / "classify.py"), run_name="__main__")


def test_a_file_that_has_more_than_this_version_knows_is_refused(shared, tmp_path):
    """An entry of the header, and a tensor of no part: neither is dropped without a word."""
    with safetensors.safe_open(shared, "numpy") as opened:
        header = opened.metadata()
    tensors, file = safetensors.numpy.load_file(shared), tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(tensors, file, {**header, "scale": "2"})
    with pytest.raises(UserError, match=r"odd\.safetensors: its header has an entry 'scale'"):
        load_newest(file)
    safetensors.numpy.save_file({**tensors, "other_net.w": np.zeros(2, np.float32)}, file, header)
    with pytest.raises(
        UserError, match=r"odd\.safetensors: its tensors 'other_net' are of no prompt"
    ):
        load_newest(file)
