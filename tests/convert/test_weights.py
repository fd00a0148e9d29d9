"""Adapted weights of CLIP in the layouts of transformers and PEFT, and back."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import CLIPModel

import dpt_jax
from configs import cliplora
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.convert import write_run
from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.saved import shapes_of
from dpt_jax.training.setup import make_model
from tests.helpers.commands import command_refused, in_process
from tests.helpers.configs import small_config, small_flags
from tests.helpers.golden import IMAGES

pytestmark = pytest.mark.compiles

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
