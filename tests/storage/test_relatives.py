"""Checkpoints of DPT's relatives: told apart by their tensors, taken and given back whole."""

import numpy as np
import pytest

from dpt_jax import settings
from dpt_jax.clip.files import read_torch_file
from dpt_jax.convert import relatives
from dpt_jax.convert.checkpoints import TEXT, read_published
from dpt_jax.convert.published import convert_reference, reverse_reference
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.configs import small_config
from tests.helpers.published_files import write_module

TEXT_WIDTH, VISUAL_WIDTH, EMBED = 128, 128, 64
# Of a module that has the whole CLIP in it, a tensor of each kind.
REST = {
    "logit_scale": (),
    "prompt_learner.token_prefix": (37, 1, TEXT_WIDTH),
    "prompt_learner.token_suffix": (37, 72, TEXT_WIDTH),
    "image_encoder.class_embedding": (VISUAL_WIDTH,),
    "image_encoder.conv1.weight": (VISUAL_WIDTH, 3, 8, 8),
    "image_encoder.ln_pre.weight": (VISUAL_WIDTH,),
    "image_encoder.transformer.resblocks.0.attn.in_proj_weight": (3 * VISUAL_WIDTH, VISUAL_WIDTH),
    "text_encoder.transformer.resblocks.2.mlp.c_fc.bias": (4 * TEXT_WIDTH,),
    "text_encoder.text_projection": (TEXT_WIDTH, 64),
}


# What PromptSRC's has besides.
FROZEN_TOWER = {
    "prompt_learner.ZS_image_encoder.proj": (VISUAL_WIDTH, 64),
    "prompt_learner.ZS_image_encoder.transformer.resblocks.3.ln_2.bias": (VISUAL_WIDTH,),
}

BUFFERS = {"token_prefix": (37, 1, TEXT_WIDTH), "token_suffix": (37, 72, TEXT_WIDTH)}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def joint(text_length, text_depth, visual_length, visual_depth):
    tensors = {"prompt_learner.ctx": normal(text_length, TEXT_WIDTH)}
    for i in range(1, text_depth):
        name = f"text_encoder.transformer.resblocks.{i}.VPT_shallow"
        tensors[name] = normal(text_length, TEXT_WIDTH) + i
    if visual_depth:
        tensors["image_encoder.VPT"] = normal(visual_length, VISUAL_WIDTH)
    for i in range(1, visual_depth):
        name = f"image_encoder.transformer.resblocks.{i}.VPT_shallow"
        tensors[name] = normal(visual_length, VISUAL_WIDTH) + i
    return tensors


def write(directory, module, tensors, rest=()):
    shapes = REST | FROZEN_TOWER | BUFFERS
    every = {**{name: normal(*shapes[name]) for name in rest}, **tensors}
    return write_module(directory, module, every, epoch=5)


@pytest.fixture
def config(clip_dir):
    config = small_config(clip_dir)
    return config


def coupled(length, depth):
    tensors = {"prompt_learner.ctx": normal(length, TEXT_WIDTH)}
    for i in range(depth):
        name = f"prompt_learner.compound_prompt_projections.{i - 1}" if i else "prompt_learner.proj"
        tensors[f"{name}.weight"] = normal(VISUAL_WIDTH, TEXT_WIDTH) + i
        tensors[f"{name}.bias"] = normal(VISUAL_WIDTH) + i
        if i:
            name = f"prompt_learner.compound_prompts_text.{i - 1}"
            tensors[name] = normal(length, TEXT_WIDTH) + i
    return tensors


def conditioned(length):
    return {
        "ctx": normal(length, TEXT_WIDTH),
        "meta_net.linear1.weight": normal(EMBED // 16, EMBED),
        "meta_net.linear1.bias": normal(EMBED // 16),
        "meta_net.linear2.weight": normal(TEXT_WIDTH, EMBED // 16),
        "meta_net.linear2.bias": normal(TEXT_WIDTH),
    }


CHECKPOINTS = {
    "cocoop": (TEXT, conditioned(4)),
    "promptsrc": (relatives.JOINT, joint(4, 2, 4, 2)),
    "maple": (relatives.COUPLED, coupled(2, 3)),
    "maple, one layer": (relatives.COUPLED, coupled(4, 1)),
    "ivlp": (relatives.JOINT, joint(2, 3, 5, 3)),
    # Six tokens of context are more than the words, so that there are none.
    "ivlp, long": (relatives.JOINT, joint(6, 2, 3, 4)),
    "ivlp, text alone": (relatives.JOINT, joint(4, 3, 0, 0)),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_goes_in_and_out_with_the_same_bytes(tmp_path, config, name):
    """The method and its sizes are those of the tensors, whatever --config says."""
    module, tensors = CHECKPOINTS[name]
    rest = [*REST, *(FROZEN_TOWER if name == "promptsrc" else ())]
    if module == TEXT:  # which has buffers alone
        rest = ["token_prefix", "token_suffix"]
    write(tmp_path / "theirs", module, tensors, rest)
    convert_reference(tmp_path / "theirs", tmp_path / "w", config, {})
    found = settings.load_saved(tmp_path / "w")
    method = "coop" if name.endswith("alone") else name.partition(",")[0]
    assert found.method == load_newest(tmp_path / "w").meta["method"] == method
    assert found.text_prompt.init == ("" if "long" in name else "a photo of a")
    assert (found.loss.image_consistency > 0) == (method == "promptsrc")
    reverse_reference(tmp_path / "w", tmp_path / "ours")
    ours = read_torch_file(tmp_path / "ours" / module / "model.pth.tar-5").tensors
    assert {k: v.tobytes() for k, v in ours.items()} == {
        k: np.asarray(v).tobytes() for k, v in tensors.items()
    }


def test_sizes_of_a_joint_checkpoint(tmp_path, config):
    write(tmp_path / "theirs", *CHECKPOINTS["ivlp"])
    convert_reference(tmp_path / "theirs", tmp_path / "w", config, {})
    found = settings.load_saved(tmp_path / "w")
    text, visual = found.text_prompt, found.visual_prompt
    assert (text.length, text.depth, text.fixed_words) == (2, 3, True)
    assert (visual.length, visual.depth, visual.ln_pre) == (5, 3, True)
    with pytest.raises(UserError, match=r"visual_prompt\.depth is 3 in the checkpoint"):
        convert_reference(
            tmp_path / "theirs", tmp_path / "other", config, {"visual_prompt.depth": 4}
        )


def test_a_file_without_the_frozen_tower_is_of_the_method_that_is_named(tmp_path, config):
    """As `--reverse` writes PromptSRC's: nothing else tells it from IVLP's."""
    write(tmp_path / "theirs", *CHECKPOINTS["promptsrc"])
    for method, loss in (("promptsrc", 25.0), ("ivlp", 0.0)):
        named = settings.of_method(method, "folder")
        named.clip.weights = config.clip.weights
        convert_reference(tmp_path / "theirs", tmp_path / method, named, {})
        found = settings.load_saved(tmp_path / method)
        assert (found.method, found.loss.text_consistency) == (method, loss)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"image_encoder.more": normal(2)}, r"tensor image_encoder\.more is none of"),
        (
            {"image_encoder.transformer.resblocks.7.VPT_shallow": normal(5, VISUAL_WIDTH)},
            r"tensor image_encoder\.transformer\.resblocks\.3\.VPT_shallow is missing",
        ),
    ],
)
def test_what_is_left_over_or_missing_is_named(tmp_path, config, more, says):
    module, tensors = CHECKPOINTS["ivlp"]
    write(tmp_path / "theirs", module, {**tensors, **more}, REST)
    with pytest.raises(UserError, match=says):
        convert_reference(tmp_path / "theirs", tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()


def test_two_methods_in_one_folder_are_refused(tmp_path):
    write(tmp_path, *CHECKPOINTS["ivlp"])
    write(tmp_path, TEXT, {"ctx": normal(4, TEXT_WIDTH)})
    with pytest.raises(UserError, match="holds checkpoints of two methods"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"text_prompt.depth": 2},
        {"visual_prompt.ln_pre": True},
        {"method": "vlp", "visual_prompt.depth": 2},
    ],
)
def test_what_no_published_code_has_is_not_written(trained, tmp_path, values):
    """Settings of a run of DPT, changed as its prompts could have been trained."""
    config = settings.load_saved(trained)
    for key, value in values.items():
        settings.set_key(config, key, value)
    (tmp_path / "w").mkdir()
    settings.save(config, tmp_path / "w")
    (tmp_path / "w" / "checkpoints").symlink_to(trained / "checkpoints")
    with pytest.raises(UserError, match="no published code"):
        reverse_reference(tmp_path / "w", tmp_path / "out")
    assert not (tmp_path / "out").exists()
