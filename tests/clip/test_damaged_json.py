"""Damaged JSON files of a model are refused in a sentence that names the file, or read as whole."""

import json
import pathlib
import random
import shutil

import pytest
from safetensors.numpy import load_file

from dpt_jax.clip.pretrained import BUNDLED, load_clip
from dpt_jax.errors import UserError
from tests.golden import make_open_clip_features as golden
from tests.helpers.vocabularies import tokenizer_json
from tests.helpers.weight_files import write_shards

TINY = BUNDLED / "tiny-clip"
OTHERS = [None, True, -1, 0, 3, 1.5, 1e400, "x", "", [], [1], {}, {"a": 1}]


def values(raw, path=()):
    """Every place of a JSON value, to the third level."""
    yield path
    children = (
        raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    )
    for key, value in list(children)[:12] if len(path) < 3 else ():
        yield from values(value, (*path, key))


def put(raw, path, value):
    if not path:
        return value
    raw = raw.copy()
    raw[path[0]] = put(raw[path[0]], path[1:], value)
    return raw


def damages(raw, count, seed=0):
    """This JSON file with another value somewhere, cut, with bytes changed, in an encoding."""
    draw = random.Random(seed)
    whole = json.dumps(raw, ensure_ascii=False).encode()
    places = list(values(raw))
    yield from (b"", b"<html>404</html>", b"\xff\xfe" + whole[:50], b"[" * 100_000, b"null", b'"a"')
    yield whole[: len(whole) // 2]
    yield b'{"caf\xe9": 1, ' + whole[1:]
    for i in range(count):
        if i % 3 == 0:
            yield whole[: draw.randrange(len(whole))]
        elif i % 3 == 1:
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] = draw.randrange(256)
            yield bytes(changed)
        else:
            yield json.dumps(put(raw, draw.choice(places), draw.choice(OTHERS))).encode()


def sources(folder):
    """{file: its whole content} of a model folder that has them all, in transformers' layout."""
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(TINY / name, folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(TINY)), encoding="utf-8")
    write_shards(folder, load_file(TINY / "model.safetensors"))
    names = ("config.json", "preprocessor_config.json", "tokenizer.json")
    names += ("model.safetensors.index.json",)
    return {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in names}


def check(load, file, raw, count):
    """Load each damaged file; return (inputs, refused)."""
    inputs = refused = 0
    for data in damages(raw, count):
        file.write_bytes(data)
        inputs += 1
        try:
            load()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error).strip()
            assert str(file.parent) in str(error)
    return inputs, refused


def both(count):
    return pytest.param(count), pytest.param(40 * count, marks=pytest.mark.slow)


@pytest.mark.parametrize("count", both(15))
def test_transformers_layout(tmp_path, count):
    for name, raw in sources(tmp_path).items():
        whole = (tmp_path / name).read_bytes()
        inputs, refused = check(lambda: load_clip(str(tmp_path)), tmp_path / name, raw, count)
        print(f"{name}: {inputs} inputs, {refused} refused, 0 tracebacks")
        assert refused >= inputs // 3
        (tmp_path / name).write_bytes(whole)


@pytest.mark.parametrize("count", both(60))
def test_open_clip_config(tmp_path, count):
    from etils import epath

    from dpt_jax.clip import open_clip

    file = pathlib.Path(tmp_path) / open_clip.CONFIG_FILE
    raw = {"model_cfg": golden.MODELS["custom_text"], "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    inputs, refused = check(lambda: open_clip.read_description(epath.Path(file)), file, raw, count)
    print(f"{file.name}: {inputs} inputs, {refused} refused, 0 tracebacks")
    assert refused >= inputs // 3


def test_byte_order_mark_is_read(tmp_path):
    sources(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_clip(str(tmp_path)).config == load_clip("tiny-clip").config


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("vision_config", "image_size", [64, 32], "image_size is .* where a square"),
        ("vision_config", "num_attention_heads", 3, "3 heads, which do not divide"),
        ("text_config", "num_attention_heads", "2", "num_attention_heads is"),
        ("text_config", "num_attention_heads", True, "num_attention_heads is true"),
        ("vision_config", "patch_size", 0, "patch_size is 0"),
        ("vision_config", "patch_size", 65, "does not fit"),
        ("text_config", "num_hidden_layers", None, "num_hidden_layers is null"),
        ("vision_config", "hidden_act", None, "hidden_act is null"),
        ("vision_config", "hidden_act", ["gelu"], "hidden_act is"),
        ("vision_config", "num_channels", 1, "num_channels is 1"),
        ("vision_config", "layer_norm_eps", "1e-5", "layer_norm_eps is"),
        (None, "projection_dim", None, "projection_dim is null"),
        (None, "text_config", [], "text_config is"),
        (None, "vision_config", "clip", "vision_config is"),
    ],
)
def test_value_of_a_config_that_cannot_be(tmp_path, part, key, value, says):
    raw = sources(tmp_path)["config.json"]
    (raw[part] if part else raw)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(tmp_path))
    assert str(tmp_path / "config.json") in str(error.value)


def test_image_size_as_a_pair(tmp_path):
    raw = sources(tmp_path)["config.json"]
    raw["vision_config"]["image_size"] = [64, 64]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_clip(str(tmp_path)).config.image_size == 64
