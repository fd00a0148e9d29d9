"""Checkpoint folders of the published codes become workdirs, and workdirs such folders."""

import shutil

import pytest

from configs import coop, dpt
from dpt_jax.clip.files import read_torch_file
from dpt_jax.config import method_config
from dpt_jax.convert.published import CAVPT, JOINT, TEXT, VISUAL
from dpt_jax.convert.reference import convert_reference, reverse_reference
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.workdir import load_config, read_config, save_config
from tests.convert.checkpoints import (
    CHECKPOINTS,
    EPOCH,
    LAYERS,
    WIDTH,
    cavpt,
    joint,
    normal,
    write,
)
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL
from tests.helpers.prompt_trees import same_bytes

pytestmark = pytest.mark.compiles

GOLDEN = SMALL / "checkpoint"


@pytest.fixture
def config(clip_dir):
    return small_config(clip_dir)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_goes_in_and_out_with_the_same_bytes(tmp_path, config, name):
    """The method and its sizes are those of the tensors, although --config says DPT."""
    modules, others = CHECKPOINTS[name]
    convert_reference(write(tmp_path / "theirs", modules, others), tmp_path / "w", config, {})
    found, saved = load_config(tmp_path / "w"), load_newest(tmp_path / "w")
    method = name.partition(",")[0]
    assert found.method == saved.meta["method"] == method
    assert saved.step == EPOCH
    assert found.text_prompt.class_specific == name.endswith("each class")
    words = method in ("promptsrc", "maple", "ivlp") and "long" not in name
    assert (found.text_prompt.init == "a photo of a") == (words or method == "cocoop")
    assert (found.loss.image_consistency > 0) == (method == "promptsrc")
    reverse_reference(tmp_path / "w", tmp_path / "ours")
    assert {folder.name for folder in (tmp_path / "ours").iterdir()} == set(modules)
    for module, tensors in modules.items():
        ours, epoch = read_torch_file(tmp_path / "ours" / module / f"model.pth.tar-{EPOCH}")
        assert epoch == EPOCH
        assert same_bytes(ours, tensors)
        assert (tmp_path / "ours" / module / "checkpoint").read_text().startswith("model.pth.tar-")


def test_kgcoop_and_promptsrc_are_known_by_more_than_their_prompts(tmp_path, config):
    """By tensors that KgCoOp's code does not use; without the frozen tower by --config."""
    unused = {name: normal(2, 2) for name in
              ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")}  # fmt: skip
    write(tmp_path / "kgcoop", {TEXT: {"ctx": normal(4, WIDTH)}}, unused)
    convert_reference(tmp_path / "kgcoop", tmp_path / "w", config, {})
    found = load_config(tmp_path / "w")
    assert (found.method, found.loss.text_consistency) == ("kgcoop", 8.0)
    write(tmp_path / "joint", {JOINT: joint(4, 2, 4, 2)})
    for method, loss in (("promptsrc", 25.0), ("ivlp", 0.0)):
        named = method_config(method, "folder")
        named.clip.weights = config.clip.weights
        convert_reference(tmp_path / "joint", tmp_path / method, named, {})
        found = load_config(tmp_path / method)
        assert (found.method, found.loss.text_consistency) == (method, loss)


def test_prompts_trained_here_there_and_back(trained, tmp_path):
    """As commands; the checkpoint has the last epoch that all its modules have."""
    back = ("-m", "dpt_jax", "convert", "reference")
    in_process(*back, "--reverse", str(trained), str(tmp_path / "published"))
    folder = tmp_path / "published" / TEXT
    shutil.copy(folder / "model.pth.tar-2", folder / "model.pth.tar-9")
    config = read_config(trained, dpt.get_config())
    convert_reference(tmp_path / "published", tmp_path / "back", config, {})
    saved, own = load_newest(tmp_path / "back"), load_newest(trained)
    assert same_bytes(saved.prompts, own.prompts)
    assert saved.step == own.meta["epoch"] == 2
    done = in_process(*back, "--reverse", str(trained), str(tmp_path / "published"), check=False)
    assert done.returncode == 2


@pytest.mark.parametrize(
    "overrides",
    [{"text_prompt.length": 9}, {"cavpt.first_layer": 2}, {"method": "coop"}],
)
def test_settings_that_contradict_the_checkpoint(tmp_path, config, overrides):
    for key, value in overrides.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=next(iter(overrides))):
        convert_reference(GOLDEN, tmp_path / "w", config, overrides)
    assert not (tmp_path / "w").exists()


def test_folders_without_a_checkpoint(tmp_path, config, trained):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "apart", {TEXT: {"ctx": normal(4, WIDTH)}}, epoch=1)
    write(tmp_path / "apart", {VISUAL: {"ctx": normal(LAYERS, 3, WIDTH)}}, epoch=2)
    write(tmp_path / "two", {TEXT: {"ctx": normal(4, WIDTH)}, JOINT: joint(4, 2, 4, 2)})
    write(tmp_path / "cut", {TEXT: {"ctx": normal(4, WIDTH)}})
    cut = tmp_path / "cut" / TEXT / f"model.pth.tar-{EPOCH}"
    cut.write_bytes(cut.read_bytes()[:500])
    for name in ("nowhere", "empty", "apart", "two", "cut"):
        with pytest.raises(UserError, match=name):
            convert_reference(tmp_path / name, tmp_path / "w", config, {})
    assert not (tmp_path / "w").exists()
    with pytest.raises(UserError, match="already holds a run"):
        convert_reference(GOLDEN, trained, config, {})


COOP = {"ctx": normal(4, WIDTH)}
CSC = {"ctx": normal(37, 4, WIDTH)}
INCOMPLETE = {name: x for name, x in cavpt(1).items() if "qmlp" not in name}


@pytest.mark.parametrize(
    ("module", "tensors", "named"),
    [
        (TEXT, {"ctx": normal(4, WIDTH // 2)}, r"text\.context has shape \(1, 4, 64\)"),
        (TEXT, COOP | {"compound.0": normal(2, 2)}, r"compound\.0"),
        (TEXT, CSC, "37 classes"),
        (VISUAL, {"ctx": normal(LAYERS + 1, 3, WIDTH)}, r"visual\.tokens has shape \(5, 3, 128\)"),
        (CAVPT, INCOMPLETE, r"attns\.0\.qmlp\.weight"),
        (JOINT, joint(2, 3, 5, 3) | {"image_encoder.more": normal(2)}, r"image_encoder\.more"),
        (
            JOINT,
            joint(2, 3, 5, 3) | {"image_encoder.transformer.resblocks.7.VPT_shallow": normal(5, 4)},
            r"image_encoder\.transformer\.resblocks\.3\.VPT_shallow",
        ),
    ],
)
def test_tensors_that_are_missing_unknown_or_of_other_shapes(
    tmp_path, clip_dir, module, tensors, named
):
    """Nothing is converted, and nothing left out: CoCoOp's file has all that CoOp's has."""
    write(tmp_path / "theirs", {module: tensors})
    with pytest.raises(UserError, match=named):
        convert_reference(tmp_path / "theirs", tmp_path / "w", small_config(clip_dir, coop), {})
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "values",
    [{"text_prompt.depth": 2}, {"method": "vlp", "visual_prompt.depth": 2}],
)
def test_what_no_published_code_has_is_not_written(trained, tmp_path, values):
    config = load_config(trained)
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    save_config(config, tmp_path / "w")
    (tmp_path / "w" / "checkpoints").symlink_to(trained / "checkpoints")
    with pytest.raises(UserError, match=r"w combines|w has visual tokens"):
        reverse_reference(tmp_path / "w", tmp_path / "out")
    assert not (tmp_path / "out").exists()
