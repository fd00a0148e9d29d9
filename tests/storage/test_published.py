"""Every tensor of a published checkpoint is converted, known to belong to its classes, or named."""

import numpy as np
import pytest

from configs import coop
from dpt_jax import settings
from dpt_jax.convert.checkpoints import CAVPT, TEXT, VISUAL, account
from dpt_jax.convert.published import convert_reference
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.configs import small_config
from tests.helpers.published_files import write_module

WIDTH, CLASSES = 128, 6
CONTEXT = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
BUFFERS = {
    "token_prefix": np.zeros((37, 1, WIDTH), np.float32),
    "token_suffix": np.zeros((37, 72, WIDTH), np.float32),
}


def write(directory, tensors, module=TEXT):
    return write_module(directory, module, tensors, epoch=50)


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.fixture
def config(clip_dir):
    config = small_config(clip_dir, coop)
    return config


def test_buffers_and_what_kgcoop_does_not_use_are_left(tmp_path, config):
    unused = {"bias_vectors": zeros(1, 512), "meta_net.linear1.weight": zeros(512, 512)}
    unused["meta_net.linear1.bias"] = zeros(512)
    write(tmp_path / "kgcoop", {"ctx": CONTEXT, **BUFFERS, **unused})
    convert_reference(tmp_path / "kgcoop", tmp_path / "w", config, {})
    found = settings.load_saved(tmp_path / "w")
    assert (found.method, found.loss.text_consistency) == ("kgcoop", 8.0)
    np.testing.assert_array_equal(
        load_newest(tmp_path / "w").prompts["text"]["context"][0], CONTEXT
    )


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"meta_net.linear1.weight": zeros(8, 64), "meta_net.linear2.weight": zeros(128, 8)},
            r"tensor meta_net\.linear1\.bias is missing",
        ),
        (
            {"bias_vectors": zeros(1, 512), "meta_net.linear2.weight": zeros(128, 8)},
            r"prompt_learner: tensor meta_net\.linear2\.weight is none of",
        ),
        ({"compound.0": zeros(2, 2)}, r"prompt_learner: tensor compound\.0 is none of"),
    ],
)
def test_what_is_left_over_or_missing_is_refused_by_name(tmp_path, config, tensors, says):
    """CoCoOp's checkpoint has all that CoOp's has, and must not become one without a word."""
    write(tmp_path / "other", {"ctx": CONTEXT, **BUFFERS, **tensors})
    with pytest.raises(UserError, match=says):
        convert_reference(tmp_path / "other", tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()


def test_left_over_tensors_of_the_visual_modules(tmp_path):
    with pytest.raises(UserError, match="tensor more is none of"):
        account({VISUAL: {"ctx": zeros(4, 2, 8), "more": zeros(1)}}, tmp_path)
    layers = {"ctx": zeros(1, 10, 8), "attns.1.qmlp.weight": zeros(8, 8)}
    with pytest.raises(UserError, match=r"tensor attns\.1\.qmlp\.weight is none of"):
        account({CAVPT: layers}, tmp_path)


def test_contexts_of_another_number_of_classes_than_the_dataset(tmp_path, config, capsys):
    write(tmp_path / "csc", {"ctx": np.stack([CONTEXT] * 37), **BUFFERS})
    with pytest.raises(UserError, match=r"each of 37 classes, but folder \(all classes\) has 6"):
        convert_reference(tmp_path / "csc", tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()
    config.dataset.root = "/nowhere"
    convert_reference(tmp_path / "csc", tmp_path / "w", config, {})
    assert "the 37 classes of" in capsys.readouterr().out
