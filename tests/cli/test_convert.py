"""Checkpoint folders of the published code, whole, partial and wrong."""

import functools
import shutil

import jax
import numpy as np
import pytest
import torch

from configs import coop, dpt, vpt
from dpt_jax import settings
from dpt_jax.convert.checkpoints import CAVPT, TEXT, VISUAL
from dpt_jax.convert.published import convert_reference
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import predict
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

CHECKPOINT = SMALL / "checkpoint"
LAYERS, WIDTH, EMBED, CLASSES = 4, 128, 64, 6


def normal(*shape, dtype=torch.float32):
    return torch.tensor(np.random.default_rng(sum(shape)).standard_normal(shape), dtype=dtype)


def save(directory, module, tensors, name="model.pth.tar-3", epoch=3):
    (directory / module).mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tensors, "epoch": epoch}, directory / module / name)


def extractor(layers, dtype=torch.float32):
    tensors = {"ctx": normal(layers, 10, WIDTH, dtype=dtype)}
    for i in range(layers):
        shapes = {
            f"meta_nets.{i}.weight": (WIDTH, EMBED),
            f"meta_nets.{i}.bias": (WIDTH,),
            f"attns.{i}.kmlp.weight": (32, WIDTH),
            f"attns.{i}.qmlp.weight": (32, WIDTH),
            f"attns.{i}.vmlp.weight": (WIDTH, WIDTH),
            f"lns.{i}.weight": (WIDTH,),
            f"lns.{i}.bias": (WIDTH,),
            f"classfiers.{i}.weight": (CLASSES, WIDTH),
            f"lns2.{i}.weight": (WIDTH,),
            f"lns2.{i}.bias": (WIDTH,),
        }
        tensors |= {name: normal(*shape, dtype=dtype) for name, shape in shapes.items()}
    return tensors


@pytest.fixture
def config(clip_dir):
    return functools.partial(small_config, clip_dir)


def converted(directory, workdir, config, clip, **overrides):
    """Converts, evaluates, and gives the configuration, prompts and predictions."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in overrides.items():
        settings.set_key(config, key, value)
    convert_reference(directory, workdir, config, overrides)
    saved = settings.settings_for_evaluation(config, {}, False, workdir)
    experiment = experiments.prepare(saved, clip)
    prompts = adoption.saved_prompts(experiment, workdir).prompts
    assert {x.dtype for x in jax.tree.leaves(prompts)} == {np.dtype(np.float32)}
    found = predict(experiment, prompts)
    assert np.isfinite(found.logits).all()
    return saved, load_newest(workdir), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_class_specific_coop(tmp_path, config, clip, dtype):
    """CoOp's folder has one module, with buffers that belong to its classes; half precision is
    usual.
    """
    ctx = normal(CLASSES, 5, WIDTH, dtype=dtype)
    buffers = {
        "token_prefix": normal(CLASSES, 1, WIDTH),
        "token_suffix": normal(CLASSES, 71, WIDTH),
    }
    save(tmp_path, TEXT, {"ctx": ctx, **buffers}, epoch=50, name="model.pth.tar-50")
    saved, checkpoint, found = converted(
        tmp_path, tmp_path / "w", config(coop), clip, text_prompt__class_position="middle"
    )
    assert saved.method == checkpoint.meta["method"] == "coop"
    assert (saved.text_prompt.length, saved.text_prompt.class_specific) == (5, True)
    assert checkpoint.step == 50
    np.testing.assert_array_equal(checkpoint.prompts["text"]["context"][0], ctx.float().numpy())
    assert found.logits.shape == (18, CLASSES)


def test_coop_folder_under_the_dpt_config_is_coop(tmp_path, config, clip):
    save(tmp_path, TEXT, {"ctx": normal(4, WIDTH)})
    saved, _, _ = converted(tmp_path, tmp_path / "w", config(dpt), clip)
    assert saved.method == "coop"


def test_vpt(tmp_path, config, clip):
    ctx = normal(LAYERS, 3, WIDTH)
    save(tmp_path, VISUAL, {"ctx": ctx}, name="model-best.pth.tar", epoch=7)
    saved, checkpoint, found = converted(tmp_path, tmp_path / "w", config(vpt), clip)
    assert (saved.method, checkpoint.step) == ("vpt", 7)
    np.testing.assert_array_equal(checkpoint.prompts["visual"]["tokens"], ctx.numpy())
    assert (found.logits != found.zero_shot_logits).any()


@pytest.mark.parametrize("first", [1, 3])
def test_dpt_from_an_earlier_layer(tmp_path, config, clip, first):
    """From layer 1 on there are no visual prompt layers, and the published file holds an empty
    tensor.
    """
    save(tmp_path, TEXT, {"ctx": normal(4, WIDTH)})
    save(tmp_path, VISUAL, {"ctx": normal(first - 1, 3, WIDTH)})
    save(tmp_path, CAVPT, extractor(LAYERS + 1 - first))
    saved, checkpoint, _ = converted(tmp_path, tmp_path / "w", config(), clip, cavpt__top_k=3)
    assert saved.cavpt.first_layer == first
    assert ("visual" in checkpoint.prompts) == (first > 1)


def test_newest_epoch_that_all_modules_have(tmp_path, config, clip):
    shutil.copytree(CHECKPOINT, tmp_path / "c")
    shutil.copy(
        tmp_path / "c" / TEXT / "model.pth.tar-1", tmp_path / "c" / TEXT / "model.pth.tar-9"
    )
    _, checkpoint, _ = converted(tmp_path / "c", tmp_path / "w", config(), clip, cavpt__top_k=3)
    assert checkpoint.step == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"text_prompt.length": 9},
            "text_prompt.length is 4 in the checkpoint, but the command line says 9",
        ),
        ({"text_prompt.class_specific": True}, "text_prompt.class_specific is False"),
        ({"visual_prompt.length": 2}, "visual_prompt.length is 3"),
        ({"cavpt.first_layer": 2}, "cavpt.first_layer is 4"),
        ({"cavpt.top_k": 0}, "cavpt.top_k is 0"),
    ],
)
def test_flags_that_contradict_the_checkpoint(tmp_path, config, overrides, says):
    wanted = config(**{key.replace(".", "__"): value for key, value in overrides.items()})
    with pytest.raises(UserError, match=says):
        convert_reference(CHECKPOINT, tmp_path / "w", wanted, overrides)
    assert not (tmp_path / "w").exists()


def test_last_layer_counted_from_the_end_is_no_contradiction(tmp_path, config):
    convert_reference(CHECKPOINT, tmp_path / "w", config(), {"cavpt.first_layer": -1})
    with pytest.raises(UserError, match="already holds a run"):
        convert_reference(CHECKPOINT, tmp_path / "w", config(), {})


def test_wrong_folders_are_named(tmp_path, config):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        convert_reference(tmp_path / "nowhere", tmp_path / "w", config(), {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of prompt_learner"):
        convert_reference(tmp_path / "empty", tmp_path / "w", config(), {})
    save(tmp_path / "apart", TEXT, {"ctx": normal(4, WIDTH)}, name="model.pth.tar-1")
    save(tmp_path / "apart", VISUAL, {"ctx": normal(LAYERS, 3, WIDTH)}, name="model.pth.tar-2")
    with pytest.raises(UserError, match=r"has no model-best\.pth\.tar"):
        convert_reference(tmp_path / "apart", tmp_path / "w", config(), {})


def test_wrong_tensors_are_named(tmp_path, config):
    tensors = extractor(1)
    del tensors["attns.0.qmlp.weight"]
    save(tmp_path / "missing", CAVPT, tensors)
    with pytest.raises(UserError, match=r"tensor attns\.0\.qmlp\.weight is missing"):
        convert_reference(tmp_path / "missing", tmp_path / "w", config(), {})
    save(tmp_path / "narrow", TEXT, {"ctx": normal(4, WIDTH // 2)})
    with pytest.raises(UserError, match=r"prompt_learner: text\.context has shape \(1, 4, 64\)"):
        convert_reference(tmp_path / "narrow", tmp_path / "w", config(), {})
    save(tmp_path / "short", VISUAL, {"ctx": normal(LAYERS + 1, 3, WIDTH)})
    with pytest.raises(UserError, match=r"visual\.tokens has shape \(5, 3, 128\)"):
        convert_reference(tmp_path / "short", tmp_path / "w", config(), {})
    (tmp_path / "cut" / TEXT).mkdir(parents=True)
    whole = (CHECKPOINT / TEXT / "model.pth.tar-1").read_bytes()
    (tmp_path / "cut" / TEXT / "model.pth.tar-1").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.pth\.tar-1 cannot be read"):
        convert_reference(tmp_path / "cut", tmp_path / "w", config(), {})
