"""Features are transformers' and open_clip's, token ids OpenAI's, and pixels a model's own."""

import copy
import dataclasses
import functools
import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPTokenizerFast

from dpt_jax.clip import config as clip_config
from dpt_jax.clip.config import CLIP_PREPROCESSING, OPEN_CLIP_CONFIG, Preprocessing, read_open_clip
from dpt_jax.clip.files import OPENAI, params_of, tensors_of
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.packing import pack_one_a_row
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.clip.tokenizer import PLAIN_FILES, load_tokenizer
from dpt_jax.clip.vocabulary import END, START
from dpt_jax.io import ASSETS
from tests.golden import make_clip_features as full_size
from tests.golden import make_open_clip_features as golden
from tests.helpers import make_clip
from tests.helpers.commands import refused
from tests.helpers.golden import DATA, relative_error


def packed(texts):
    """Whole texts, one per row."""
    own = [[(int(token), -1) for token in tokens] for tokens in texts]
    return pack_one_a_row(own, len(own), max(map(len, own)) - 1)


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name", ["clip_vit_b32", pytest.param("clip_vit_b16", marks=pytest.mark.slow)]
)
def test_features_of_full_size(name):
    expected, (images, texts) = np.load(DATA / f"{name}.npz"), full_size.inputs()
    sizes = full_size.MODELS[name]
    config = make_clip.config_of(**sizes)
    params = params_of(make_clip.openai(full_size.SEED, **sizes), config, epath.Path(name))
    image, text = jax.jit(CLIP(config).apply)({"params": params}, images, packed(texts))
    assert relative_error(image, expected["image_features"]) < 1e-4
    assert relative_error(text, expected["text_features"]) < 1e-4
    logits = np.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
    assert relative_error(logits, expected["logits"]) < 1e-4


PREPROCESS = {"mean": [0.5] * 3, "std": [0.25, 0.5, 0.75], "size": [32, 32]}
PREPROCESS |= {"interpolation": "bilinear", "resize_mode": "squash"}


def write(folder, model, **config):
    """The folder of a model as open_clip pushes it to the hub, with a vocabulary beside it."""
    folder.mkdir(exist_ok=True)
    raw = {"model_cfg": golden.MODELS[model], "preprocess_cfg": PREPROCESS, **config}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(raw))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text((ASSETS / "tiny-clip" / name).read_text("utf-8"), "utf-8")
    return folder


def state(model):
    return {name: torch.tensor(value) for name, value in golden.weights(model).items()}


def save_as(kind, folder, model):
    """Write the weights in one of the usual formats; return what to load."""
    if kind == "safetensors":
        save_file(golden.weights(model), folder / "open_clip_model.safetensors")
        return folder
    if kind == "bin":
        torch.save(state(model), folder / "open_clip_pytorch_model.bin")
        return folder
    file = folder / "epoch_3.pt"
    tensors = {f"module.{name}": value for name, value in state(model).items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": tensors, "optimizer": {}}, file)
    return file


@pytest.mark.parametrize(
    ("model", "kind"), zip(golden.MODELS, ("safetensors", "bin", "checkpoint"), strict=True)
)
def test_features_are_those_of_open_clip(tmp_path, model, kind):
    clip = load_clip(str(save_as(kind, write(tmp_path / model, model), model)))
    layout = packed(golden.TEXTS)
    apply = jax.jit(CLIP(clip.config).apply)
    image, text = apply({"params": clip.params}, golden.images(), layout)
    arrays = np.load(golden.FILE)
    for ours, theirs in ((image, "image"), (text, "text")):
        cosine = np.sum(normalize(ours) * normalize(arrays[f"{model}.{theirs}"]), axis=-1)
        assert cosine.min() > 0.99999
        assert relative_error(ours, arrays[f"{model}.{theirs}"]) < 2e-5
    # And back, to its names and numbers.
    found = tensors_of(clip.params, clip.config, OPENAI)
    # One of the models has a separate text tower.
    expected = {name.removeprefix("text."): x for name, x in golden.weights(model).items()}
    assert found.keys() == expected.keys() - {"attn_mask"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], name)
    file = epath.Path(tmp_path / OPEN_CLIP_CONFIG)
    file.write_text(json.dumps(clip_config.open_clip_to_dict(clip.config)))
    assert read_open_clip(file)[0] == clip.config


def read(tmp_path, change=None, **whole):
    raw = copy.deepcopy({"model_cfg": golden.MODELS["quick_gelu"], **whole})
    for place, value in (change or {}).items():
        *path, key = place.split(".")
        functools.reduce(dict.__getitem__, path, raw)[key] = value
    file = epath.Path(tmp_path) / OPEN_CLIP_CONFIG
    file.write_text(json.dumps(raw))
    return read_open_clip(file)


def test_preprocessing_is_the_models_own(tmp_path):
    expected = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.5, 0.75), "bilinear", "squash")
    assert read(tmp_path, preprocess_cfg=PREPROCESS)[0].preprocessing == expected
    assert read(tmp_path)[0].preprocessing == Preprocessing()
    one = read(tmp_path, preprocess_cfg={"mean": 0.5, "std": None})[0].preprocessing
    assert (one.mean, one.std) == ((0.5, 0.5, 0.5), Preprocessing().std)


def test_the_text_feature_is_taken_at_the_end(tmp_path):
    assert read(tmp_path)[1] is None
    text = "model_cfg.text_cfg"
    assert read(tmp_path, {f"{text}.pool_type": "eos", f"{text}.eos_id": 4513})[1] == 4513


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model_cfg.vision_cfg.timm_model_name", "vit_base_patch16_siglip_224"),
        ("model_cfg.vision_cfg.layers", [3, 4, 6, 3]),
        ("model_cfg.vision_cfg.pool_type", "avg"),
        ("model_cfg.vision_cfg.image_size", [32, 64]),
        ("model_cfg.text_cfg.no_causal_mask", True),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"clean": "canonicalize"}),
        ("model_cfg.text_cfg.heads", 7),
        ("model_cfg.embed_dim", None),
        ("preprocess_cfg.resize_mode", "longest"),
        ("preprocess_cfg.mean", [0.5]),
    ],
)
def test_unsupported_models_of_open_clip_are_named(tmp_path, place, value):
    whole = {"preprocess_cfg": PREPROCESS} if place.startswith("preprocess_cfg") else {}
    key = place.rpartition(".")[2]
    refused(rf"{OPEN_CLIP_CONFIG}.*{key}", read, tmp_path, {place: value}, **whole)


def test_timms_repository_has_the_clip_in_open_clips_files(tmp_path):
    """Its model.safetensors is only the image tower, and its config.json is timm's."""
    folder = write(tmp_path / "timm", "quick_gelu")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    save_file({"cls_token": np.zeros(1, np.float32)}, folder / "model.safetensors")
    save_as("safetensors", folder, "quick_gelu")
    assert load_clip(str(folder)).config.vision.heads == 2


SIZE = 32
OWN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")


@pytest.mark.parametrize("size", [(20000, 1), (1, 60000)])
def test_thin_image_takes_the_memory_of_its_square(size):
    image = Image.new("RGB", size, (200, 10, 10))
    tracemalloc.start()
    pixels = CLIP_PREPROCESSING.transform(image, 224)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels == (200, 10, 10)).all()
    assert pixels.shape == (224, 224, 3)
    assert peak < 50 * pixels.nbytes


def test_mean_and_deviation_are_the_models():
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    found = OWN.normalize(jnp.asarray(images))[0, 0, 0]
    np.testing.assert_allclose(found, (2.5, 2.0, 1.75), rtol=1e-6)


def processor(folder, name="preprocessor_config.json", own=CLIP_PREPROCESSING, **change):
    raw = {**clip_config.processor_to_dict(own, SIZE), **change}
    whole = raw if name.startswith("pre") else {"image_processor": raw}
    (folder / name).write_text(json.dumps(whole))
    return clip_config.read_processor(epath.Path(folder), SIZE)


@pytest.mark.parametrize("own", [OWN, CLIP_PREPROCESSING])
def test_processor_there_and_back(tmp_path, own):
    for kernel in Image.Resampling:
        own = dataclasses.replace(own, interpolation=kernel.name.lower())
        assert processor(tmp_path, own=own) == own


def test_as_transformers_5_and_the_first_version_write_it(tmp_path):
    assert clip_config.read_processor(epath.Path(tmp_path), SIZE) == CLIP_PREPROCESSING
    mean = [0.1, 0.2, 0.3]
    assert processor(tmp_path, "processor_config.json", image_mean=mean).mean == tuple(mean)
    (tmp_path / "processor_config.json").unlink()
    old = {"size": SIZE, "crop_size": SIZE, "resample": 2, "feature_extractor_type": None}
    assert processor(tmp_path, **old).interpolation == "bilinear"
    square = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "crop_size": 224}
    own = processor(tmp_path, **square, image_mean=0.5)
    assert (own.resize, own.mean) == ("squash", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_processor_type", "SiglipImageProcessor"),
        ("do_center_crop", False),
        ("resample", 9),
        ("rescale_factor", 1 / 127.5),
        ("size", {"height": SIZE, "width": 2 * SIZE}),
        ("image_mean", [0.5, None, 0.5]),
        ("image_std", [0.5, 0, 0.5]),
    ],
)
def test_processor_that_is_not_supported_is_named(tmp_path, key, value):
    said = value if key == "image_processor_type" else key.removeprefix("image_")
    refused(rf"preprocessor_config\.json.*{said}", processor, tmp_path, **{key: value})


# Computed by the tokenizer of the published code.
IDS = {
    "Siberian Husky": [34058, 20421],
    "don't stop": [847, 713, 1691],
    "don’t": [847, 713],
    "McDonnell Douglas DC-9-30's": [34360, 10065, 2743, 268, 280, 268, 274, 271, 568],
    "two-toned, 1/2 FULL": [1237, 268, 29426, 267, 272, 270, 273, 1476],
    "x (C) 3.5mm": [343, 263, 322, 264, 274, 269, 276, 2848],
    "  two   spaces ": [1237, 9006],
    "tab\there": [14724, 763],
    "naïve Ænima": [1097, 35689, 563, 42495, 42586],
    "hello…world": [3306, 959, 1002],
    "ﬁnger": [8895],
    "a&amp;b": [320, 261, 321],
    "名前": [41673, 235, 161, 231, 491],
    "Ⅳ ½": [158, 227, 367, 33613],
}
TINY = ASSETS / "tiny-clip"
SIZE, LAST = 4514, 4513
TEXT = "a drawing of a vegetable"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(epath.Path(tmp_path_factory.mktemp("no-vocabulary-here")))


def test_ids(tokenizer):
    assert {text: tokenizer.encode(text) for text in IDS} == IDS
    # A lower-cased sigma at the end of a word differs from one within it.
    assert tokenizer.encode("ΟΔΟΣ") == tokenizer.encode("οδος") != tokenizer.encode("οδοσ")


@pytest.fixture
def folder(tmp_path):
    """A folder with vocab.json and merges.txt of the tiny CLIP."""
    for name in PLAIN_FILES:
        shutil.copy(TINY / name, tmp_path)
    return epath.Path(tmp_path)


def write_tokenizer_json(folder, change=lambda raw: None):
    """As transformers writes it for a vocab.json and merges.txt."""
    raw = json.loads(CLIPTokenizerFast.from_pretrained(TINY).backend_tokenizer.to_str())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return epath.Path(folder)


def test_tokenizer_json_only(tmp_path):
    """With merges as older versions of transformers wrote them; test_weights.py has a newer one."""

    def change(raw):
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]

    own = load_tokenizer(write_tokenizer_json(tmp_path, change), SIZE, LAST)
    assert (own.start, own.end) == (4512, LAST)
    assert own.encode(TEXT) == load_tokenizer(epath.Path(TINY), SIZE).encode(TEXT)


def with_ids(**ids):
    """Change ids of a vocab.json.  ids: None leaves a token out."""

    def change(text):
        changed = {**json.loads(text), **ids}
        return json.dumps({token: x for token, x in changed.items() if x is not None})

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, None) for name in PLAIN_FILES),
        ("merges.txt", lambda text: text[: len(text) // 2]),
        ("vocab.json", with_ids(**{START: None})),
        ("vocab.json", with_ids(th=None)),
        ("vocab.json", with_ids(**{START: 4511})),
        ("vocab.json", with_ids(**{"!": 4514})),
        ("vocab.json", with_ids(**{"!": LAST, END: 0})),
    ],
)
def test_a_missing_or_damaged_file_is_named(folder, name, damage):
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).unlink()
    if damage:
        (folder / name).write_text(damage(text), encoding="utf-8")
    refused(str(folder), load_tokenizer, folder, SIZE)


@pytest.mark.parametrize(
    ("key", "value"), [("type", "WordPiece"), ("merges", [["a"]]), ("vocab", [])]
)
def test_tokenizer_of_another_kind(tmp_path, key, value):
    refused(str(SIZE), load_tokenizer, epath.Path(tmp_path), SIZE)  # OpenAI's, for other sizes
    write_tokenizer_json(tmp_path, lambda raw: raw["model"].update({key: value}))
    refused(r"tokenizer\.json", load_tokenizer, epath.Path(tmp_path), SIZE)


def test_end_of_text_of_the_configuration(tmp_path):
    """The text feature is taken at the end token, so the two must agree."""
    for file in TINY.iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((TINY / "config.json").read_text())
    for end, right in ((LAST, True), (2, True), (None, True), (7, False), (49407, False)):
        config["text_config"]["eos_token_id"] = end
        (tmp_path / "config.json").write_text(json.dumps(config))
        if right:
            assert load_clip(str(tmp_path)).tokenizer.end == LAST
        else:
            refused(str(end), load_clip, str(tmp_path))
