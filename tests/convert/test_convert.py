"""Published checkpoints to workdirs, and adapted weights to transformers and PEFT; and back."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import CLIPModel

import dpt_jax
from configs import cliplora, coop
from dpt_jax.clip.files import read_tensors, read_torch_file, write_safetensors
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.config import method_config
from dpt_jax.convert import convert_reference, reverse_reference, write_run
from dpt_jax.convert.reference import CAVPT, COUPLED, JOINT, TEXT, VISUAL
from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.saved import shapes_of
from dpt_jax.training.setup import make_model
from dpt_jax.training.workdir import load_config, save_config
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import IMAGES, small_config, small_flags
from tests.helpers.golden import SMALL, Golden, same_bytes
from tests.helpers.published_cases import by_module

pytestmark = pytest.mark.compiles

EPOCH = 3
FILES = {"coop": "coop_end", "dpt": "dpt_last_layer", "promptsrc": "family/promptsrc_all"}
# What the published code saves beside the prompts.
KGCOOP = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")
WHOLE_CLIP = [
    "logit_scale",
    "prompt_learner.token_prefix",
    "image_encoder.conv1.weight",
    "text_encoder.text_projection",
    "image_encoder.transformer.resblocks.0.attn.in_proj_weight",
    "text_encoder.transformer.resblocks.2.mlp.c_fc.bias",
]
OTHERS = {"kgcoop": KGCOOP, "maple": WHOLE_CLIP, "ivlp": WHOLE_CLIP}
OTHERS["promptsrc"] = [*WHOLE_CLIP, "prompt_learner.ZS_image_encoder.proj"]


def published(method):
    """The golden file of a method, and its tensors by module."""
    golden = Golden(FILES.get(method, f"family/{method}"))
    tensors = golden.tensors("param")
    joined = {"ivlp": JOINT, "promptsrc": JOINT, "maple": COUPLED}
    return golden, {joined[method]: tensors} if method in joined else by_module(tensors)


def of_layers(tensors, layers):
    """The class-aware prompts of one layer as those of several."""
    each = {name: x for name, x in tensors.items() if name != "ctx"}
    every = {
        name.replace(".0.", f".{i}."): x + i for i in range(layers) for name, x in each.items()
    }
    return {"ctx": np.concatenate([tensors["ctx"]] * layers), **every}


def write(folder, modules, others=(), epoch=EPOCH):
    """A checkpoint as the published code writes it.  others: tensors that are not prompts."""
    for module, tensors in modules.items():
        if module in (TEXT, JOINT, COUPLED):
            tensors = {**tensors, **dict.fromkeys(others, np.zeros(2))}
        (folder / module).mkdir(parents=True)
        state = {name: torch.from_numpy(np.asarray(x)) for name, x in tensors.items()}
        file = folder / module / f"model.pth.tar-{epoch}"
        torch.save({"state_dict": state, "epoch": epoch}, file)
    return folder


@pytest.fixture
def config(clip_dir):
    return small_config(clip_dir)


CASES = ("coop", "coop, of each class", "cocoop", "kgcoop", "dpt", "dpt, all layers", "promptsrc",
         "maple", "ivlp")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_published_checkpoint_converts_there_and_back_to_the_same_bytes(
    tmp_path, golden_clip_dir, name
):
    """The method and its sizes are those of the tensors, although --config says DPT."""
    method = name.partition(",")[0]
    golden, modules = published(method)
    if name == "coop, of each class":
        modules = {TEXT: {"ctx": np.stack([modules[TEXT]["ctx"]] * 6)}}
    elif name == "dpt, all layers":  # the code saves a visual prompt even without layers
        modules[CAVPT] = of_layers(modules[CAVPT], golden.meta["clip"]["vl"])
        modules[VISUAL] = {"ctx": np.zeros((0, 10, 128), np.float32)}
    theirs = write(tmp_path / "theirs", modules, OTHERS.get(method, ("token_prefix",)))
    convert_reference(theirs, tmp_path / "w", small_config(golden_clip_dir(golden.meta)), {})
    found, saved = load_config(tmp_path / "w"), load_newest(tmp_path / "w")
    assert found.method == saved.meta["method"] == method
    assert saved.step == EPOCH
    assert found.text_prompt.class_specific == name.endswith("each class")
    words = method not in ("coop", "dpt")
    assert (found.text_prompt.init == "a photo of a") == words
    assert (found.loss.image_consistency > 0) == (method == "promptsrc")
    assert (found.loss.text_consistency > 0) == (method in ("promptsrc", "kgcoop"))
    reverse_reference(tmp_path / "w", tmp_path / "ours")
    assert {folder.name for folder in (tmp_path / "ours").iterdir()} == set(modules)
    for module, tensors in modules.items():
        ours, epoch = read_torch_file(tmp_path / "ours" / module / f"model.pth.tar-{EPOCH}")
        assert epoch == EPOCH
        assert same_bytes(ours, tensors)
        assert (tmp_path / "ours" / module / "checkpoint").read_text().startswith("model.pth.tar-")


def test_promptsrc_is_recognised_by_its_frozen_tower_or_the_config(tmp_path, golden_clip_dir):
    golden, modules = published("promptsrc")
    write(tmp_path / "joint", modules)
    for method, loss in (("promptsrc", 25.0), ("ivlp", 0.0)):
        named = method_config(method, "folder")
        named.clip.weights = str(golden_clip_dir(golden.meta))
        convert_reference(tmp_path / "joint", tmp_path / method, named, {})
        found = load_config(tmp_path / method)
        assert (found.method, found.loss.text_consistency) == (method, loss)


def test_prompts_trained_here_there_and_back(trained, tmp_path):
    """By commands; the checkpoint has the last epoch that all its modules have."""
    back = ("convert", "reference")
    in_process(*back, "--reverse", trained, tmp_path / "published")
    folder = tmp_path / "published" / TEXT
    shutil.copy(folder / "model.pth.tar-2", folder / "model.pth.tar-9")
    config = load_config(trained)
    convert_reference(tmp_path / "published", tmp_path / "back", config, {})
    saved, own = load_newest(tmp_path / "back"), load_newest(trained)
    assert same_bytes(saved.prompts, own.prompts)
    assert saved.step == own.meta["epoch"] == 2
    done = in_process(*back, "--reverse", trained, tmp_path / "published", check=False)
    assert done.returncode == 2


def test_a_published_checkpoint_in_a_bucket(trained, bucket, tmp_path):
    published = as_path(f"{bucket}/published")
    reverse_reference(trained, published)
    convert_reference(published, tmp_path / "back", load_config(trained), {})
    assert same_bytes(load_newest(tmp_path / "back").prompts, load_newest(trained).prompts)


@pytest.mark.parametrize(
    ("key", "value"), [("text_prompt.length", 9), ("cavpt.first_layer", 2), ("method", "coop")]
)
def test_settings_that_contradict_the_checkpoint(tmp_path, config, key, value):
    overrides = {key: value}
    config.update_from_flattened_dict(overrides)
    refused(key, convert_reference, SMALL / "checkpoint", tmp_path / "w", config, overrides)
    assert not (tmp_path / "w").exists()


def test_folders_without_a_checkpoint(tmp_path, config, trained):
    (tmp_path / "empty").mkdir()
    (_, dpt), (_, ivlp) = published("dpt"), published("ivlp")
    write(tmp_path / "apart", {TEXT: dpt[TEXT]}, epoch=1)
    write(tmp_path / "apart", {VISUAL: dpt[VISUAL]}, epoch=2)
    write(tmp_path / "two", {TEXT: dpt[TEXT], **ivlp})
    write(tmp_path / "cut", {TEXT: dpt[TEXT]})
    cut = tmp_path / "cut" / TEXT / f"model.pth.tar-{EPOCH}"
    cut.write_bytes(cut.read_bytes()[:500])
    for name in ("nowhere", "empty", "apart", "two", "cut"):
        refused(name, convert_reference, tmp_path / name, tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()
    refused("already holds a run", convert_reference, SMALL / "checkpoint", trained, config, {})


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("method", "module", "name", "value", "named"),
    [
        ("coop", TEXT, "ctx", zeros(4, 64), r"text\.context is .*\(1, 4, 64\)"),
        ("coop", TEXT, "compound.0", zeros(2, 2), r"compound\.0"),
        ("dpt", VISUAL, "ctx", zeros(5, 3, 128), r"visual\.tokens is .*\(5, 3, 128\)"),
        ("dpt", CAVPT, "attns.0.qmlp.weight", None, r"cavpt\.query\.kernel is missing"),
        ("dpt", CAVPT, "ctx", None, "no tensor ctx"),
        ("ivlp", JOINT, "image_encoder.more", zeros(2), r"image_encoder\.more"),
        ("ivlp", JOINT, "text_encoder.transformer.resblocks.1.VPT_shallow", None, "VPT_shallow"),
    ],
)  # fmt: skip
def test_missing_unknown_or_misshapen_tensors(
    tmp_path, golden_clip_dir, method, module, name, value, named
):
    """Nothing is converted in part: CoCoOp's file has all that CoOp's has."""
    golden, modules = published(method)
    tensors = {key: x for key, x in {**modules[module], name: value}.items() if x is not None}
    write(tmp_path / "theirs", {module: tensors})
    config = small_config(golden_clip_dir(golden.meta), coop)
    refused(named, convert_reference, tmp_path / "theirs", tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"text_prompt.depth": 2},
        {"method": "vlp", "visual_prompt.depth": 2},
        {"method": "dpt_zslp", "classifier.name": "zslp"},
    ],
)
def test_prompts_that_no_published_code_has_are_refused(trained, tmp_path, values):
    config = load_config(trained)
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    save_config(config, tmp_path / "w")
    (tmp_path / "w" / "checkpoints").symlink_to(trained / "checkpoints")
    says = r"w has context tokens|w has visual tokens|w has learned parts"
    refused(says, reverse_reference, tmp_path / "w", tmp_path / "out")
    assert not (tmp_path / "out").exists()


THREE = sorted((IMAGES / "test").rglob("*.png"))[:3]
NAMES = ["airplane", "sea_horse"]


@pytest.fixture(scope="module", params=["lora", pytest.param("all_norms", marks=pytest.mark.slow)])
def run(request, clip_dir, tmp_path_factory):
    """A workdir with random learned weights, which some layers lack."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    own = {"weights__matrices": "qo", "weights__alpha": 3.0, "weights__text_layers": "2-3"}
    config = small_config(clip_dir, cliplora, weights__kind=request.param, **own)
    clip = load_clip(str(clip_dir))
    random = np.random.default_rng(0)
    prompts = jax.tree.map(
        lambda x: random.normal(size=x.shape, scale=0.1).astype(np.float32),
        shapes_of(make_model(config, NAMES, clip)),
    )
    write_run(config, prompts, clip, as_path(workdir), "a test")
    return workdir


def features_of(torch_model, predictor):
    """Features of transformers' CLIPModel, of unit length: images, texts."""
    pixels = np.concatenate([batch["image"] for batch, _ in predictor.answers(THREE)])
    preprocessing = predictor.model.clip_config.preprocessing
    pixels = (pixels / 255 - preprocessing.mean) / preprocessing.std
    tokenizer = predictor.pretrained.tokenizer
    features = []
    with torch.no_grad():
        vision = torch_model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)).float())
        features.append(torch_model.visual_projection(vision.pooler_output))
        for name in NAMES:
            text = tokenizer.encode(f"a photo of a {name.replace('_', ' ')}.")
            ids = torch.tensor([[tokenizer.start, *text, tokenizer.end]])
            features.append(torch_model.text_projection(torch_model.text_model(ids).pooler_output))
    images, *texts = [x / x.norm(dim=-1, keepdim=True) for x in features]
    return images.numpy(), torch.cat(texts).numpy()


def assert_same_features(torch_model, predictor):
    images, texts = features_of(torch_model.eval(), predictor)
    np.testing.assert_allclose(images, predictor.encode_image(THREE), atol=2e-6)
    np.testing.assert_allclose(texts, predictor.encode_text(NAMES), atol=2e-6)


def test_transformers_loads_the_adapted_clip(run, clip_dir, tmp_path):
    """From a workdir and from its prompt file; here it is a value of clip.weights."""
    predictor = dpt_jax.load(run)
    in_process("convert", "clip", run, tmp_path / "clip")
    assert_same_features(CLIPModel.from_pretrained(tmp_path / "clip"), predictor)
    in_process("convert", "export", run, tmp_path / "run.safetensors")
    in_process("convert", "export", tmp_path / "run.safetensors", tmp_path / "same", "--merge")
    first, second = (load_clip(str(tmp_path / name)) for name in ("clip", "same"))
    assert first.digest == second.digest != load_clip(str(clip_dir)).digest
    in_process("convert", "clip", run, tmp_path / "open_clip", "--layout=open_clip")
    third = load_clip(str(tmp_path / "open_clip"))
    assert (third.config, third.digest) == (first.config, first.digest)
    command_refused(tmp_path / "clip", "convert", "clip", run, tmp_path / "clip")
    file = tmp_path / "a.safetensors"
    command_refused(file, "convert", "export", run, file, "--merge")


def test_lora_files_of_peft(run, clip_dir, tmp_path):
    """W + scale · B A in transformers' model; then back, with zeros for layers without."""
    saved = load_newest(run).prompts["weights"]
    if "ln_1" in saved["vision"]:
        command_refused(run, "convert", "peft", run, tmp_path / "no")
        return
    folder = tmp_path / "peft"
    in_process("convert", "peft", run, folder, "--merge")  # which is for export
    about = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    model = CLIPModel.from_pretrained(clip_dir)
    scale = about["lora_alpha"] / about["r"] ** 0.5
    assert about["use_rslora"]
    for module in about["target_modules"]:
        a, b = (tensors.pop(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
        model.get_submodule(module).weight.data += torch.tensor(scale * b @ a)
    assert not tensors
    assert_same_features(model, dpt_jax.load(run))

    flags = small_flags(clip_dir)
    # As PEFT's default, alpha / r.
    default = about | {"use_rslora": False, "lora_alpha": 3 * 2**0.5}
    (folder / "adapter_config.json").write_text(json.dumps(default))
    back = tmp_path / "back"
    in_process("convert", "peft", folder, f"--workdir={back}", "--config=twostage:folder", *flags)
    found = load_newest(back).prompts["weights"]
    np.testing.assert_array_equal(found["vision"]["query"]["a"], saved["vision"]["query"]["a"])
    np.testing.assert_array_equal(found["text"]["out"]["b"][1:], saved["text"]["out"]["b"])
    assert not found["text"]["out"]["b"][0].any()
    expected = dpt_jax.load(run).predict_proba(THREE)
    np.testing.assert_allclose(dpt_jax.load(back).predict_proba(THREE), expected, atol=1e-5)

    again = ("convert", "peft", folder, f"--workdir={tmp_path}/no", *flags)
    for change in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"r": 3}):
        (folder / "adapter_config.json").write_text(json.dumps(about | change))
        command_refused(folder, *again)

    name = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_B.weight"
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    del tensors[name]
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(about))
    command_refused(name.removeprefix("base_model.model."), *again)


def test_tensors_in_a_bucket(bucket):
    file, tensors = as_path(f"{bucket}/adapter_model.safetensors"), {"lora_A": zeros(2, 3)}
    write_safetensors(file, tensors)
    assert same_bytes(read_tensors(file), tensors)
