"""Every format of weights gives the same CLIP; a file that does not fit is named."""

import io
import json
import os
import shutil

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from etils import epath
from safetensors.numpy import load_file, save_file

from dpt_jax.clip import transformers_config
from dpt_jax.clip.layouts import common_names
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.names import to_transformers
from dpt_jax.clip.openai import MODELS, recognise
from dpt_jax.clip.pretrained import BUNDLED, load_clip, save_orbax
from dpt_jax.errors import UserError
from tests.helpers import make_clip
from tests.helpers.commands import command

SIZES = {"embed": 32, "res": 16, "vl": 2, "vw": 128, "patch": 8, "tw": 64, "th": 1, "tl": 2}


@pytest.fixture(scope="module")
def openai():
    """Weights under OpenAI's names."""
    sizes = {k: v for k, v in SIZES.items() if k != "th"}
    return make_clip.seeded(make_clip.openai_shapes(**sizes), seed=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    make_clip.write(directory, seed=3, **SIZES)
    return directory


@pytest.fixture(scope="module")
def expected(source):
    return load_clip(str(source))


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the model directory without its weights."""
    directory = tmp_path / "copy"
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("model.safetensors"))
    return directory


def assert_same(clip, expected):
    assert clip.config == expected.config
    assert jax.tree.structure(clip.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, clip.params, expected.params)
    assert clip.tokenizer.encode("a photo of a sea horse.") == expected.tokenizer.encode(
        "a photo of a sea horse."
    )


def torch_state(tensors):
    return {name: torch.tensor(value) for name, value in tensors.items()}


def as_flax(tensors):
    """transformers' Flax spelling: kernels transposed, embeddings and scales by their own names."""
    tree = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind != "weight":
            tree[name] = value
        elif "embedding" in stem and value.ndim == 2:
            tree[f"{stem}.embedding"] = value
        elif "norm" in stem or "layrnorm" in stem:
            tree[f"{stem}.scale"] = value
        else:
            tree[f"{stem}.kernel"] = value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
    return flax.traverse_util.unflatten_dict(tree, sep=".")


def test_parameters_are_the_tree_that_the_model_expects(expected):
    shapes = jax.tree.map(lambda x: x.shape, expected.params)
    assert shapes == jax.tree.map(lambda x: x.shape, param_shapes(expected.config))


def test_names_there_and_back(expected, source):
    there, back = (
        load_file(source / "model.safetensors"),
        to_transformers(expected.params, expected.config),
    )
    assert sorted(there) == sorted(back)
    for name, value in there.items():
        assert value.shape == back[name].shape
        np.testing.assert_array_equal(value, back[name])


def test_flax_file(copy, source, expected):
    tree = as_flax(load_file(source / "model.safetensors"))
    (copy / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert_same(load_clip(str(copy)), expected)


def test_pytorch_file_with_old_index_buffers(copy, source, expected):
    tensors = torch_state(load_file(source / "model.safetensors"))
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(tensors, copy / "pytorch_model.bin")
    assert_same(load_clip(str(copy)), expected)


def test_single_weight_file(source, expected):
    assert_same(load_clip(str(source / "model.safetensors")), expected)


MARKS = {"input_resolution": 16, "context_length": 77, "vocab_size": 49408}


def test_openai_archive_of_other_sizes_is_not_guessed(openai, source, expected, tmp_path):
    """Heads and activation are known of OpenAI's own models; another one needs its
    configuration.
    """
    file = tmp_path / "tiny.pt"
    torch.save({**torch_state(openai), **{k: torch.tensor(v) for k, v in MARKS.items()}}, file)
    with pytest.raises(UserError, match="of none of its models"):
        load_clip(str(file))
    shutil.copy(source / "config.json", tmp_path)
    assert_same(load_clip(str(file)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_openai_archive_is_known_by_its_sizes(name):
    """Only the shapes are looked at, so arrays that take no memory stand for the weights."""
    width, text_width, patch, positions = {
        "ViT-B/32": (768, 512, 32, 50),
        "ViT-B/16": (768, 512, 16, 197),
        "ViT-L/14": (1024, 768, 14, 257),
        "ViT-L/14@336px": (1024, 768, 14, 577),
    }[name]
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (positions, width),
        "token_embedding.weight": (49408, text_width),
        **dict.fromkeys(MARKS, ()),
    }
    tensors = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
    named = common_names(tensors, epath.Path("x.pt"))
    assert named.openai
    config = recognise(named.tensors, epath.Path("x.pt"))
    assert config == MODELS[name]
    assert (config.vision.heads, config.text.heads) == (width // 64, text_width // 64)


def test_training_checkpoint_needs_a_configuration(openai, source, expected, tmp_path):
    """The tensors of LAION's and of OpenAI's models look alike, and mean another thing."""
    state = {f"module.{name}": value for name, value in torch_state(openai).items()}
    optimizer = {"state": {}, "param_groups": []}
    file = tmp_path / "epoch_2.pt"
    torch.save({"epoch": 2, "name": "run", "state_dict": state, "optimizer": optimizer}, file)
    with pytest.raises(UserError, match=r"epoch_2\.pt does not say the heads and the activation"):
        load_clip(str(file))
    shutil.copy(source / "config.json", tmp_path)
    assert_same(load_clip(str(file)), expected)


@pytest.mark.parametrize(
    ("field", "says"), [("ema", "field 'ema'"), ("optimizer_states", "'optimizer_states'")]
)
def test_field_of_a_checkpoint_that_is_not_known_is_named(openai, tmp_path, field, says):
    file = tmp_path / "epoch_2.pt"
    torch.save({"epoch": 2, "state_dict": torch_state(openai), field: {}}, file)
    with pytest.raises(UserError, match=says):
        load_clip(str(file))
    torch.save({"epoch": 2, "model_state_dict": torch_state(openai)}, file)
    with pytest.raises(UserError, match="no field 'state_dict', but a field 'model_state_dict'"):
        load_clip(str(file))


def test_prefix_of_several_devices(copy, source, expected):
    tensors = load_file(source / "model.safetensors")
    save_file({f"module.{k}": v for k, v in tensors.items()}, copy / "model.safetensors")
    assert_same(load_clip(str(copy)), expected)


def write_shards(folder, tensors, ending="safetensors"):
    """The tensors in two files with their index; the index."""
    names = sorted(tensors)
    places = {}
    for i, own in enumerate((names[::2], names[1::2])):
        shard = f"model-0000{i + 1}-of-00002.{ending}"
        part = {name: tensors[name] for name in own}
        if ending == "bin":
            torch.save(torch_state(part), folder / shard)
        else:
            save_file(part, folder / shard)
        places |= dict.fromkeys(own, shard)
    stem = "pytorch_model" if ending == "bin" else "model"
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_sharded_weights(copy, source, expected, ending):
    index = write_shards(copy, load_file(source / "model.safetensors"), ending)
    assert_same(load_clip(str(copy)), expected)
    assert_same(load_clip(str(index)), expected)
    with pytest.raises(UserError, match="is one of several shards"):
        load_clip(str(copy / f"model-00001-of-00002.{ending}"))


def test_shards_that_are_not_what_the_index_says(copy, source):
    index = write_shards(copy, load_file(source / "model.safetensors"))
    whole = json.loads(index.read_text())
    left = dict(whole["weight_map"])
    del left["logit_scale"]
    index.write_text(json.dumps({"weight_map": left}))
    with pytest.raises(UserError, match="has tensor logit_scale, against what"):
        load_clip(str(copy))
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../../secret.safetensors"}}))
    with pytest.raises(UserError, match=r"weight_map\.logit_scale is"):
        load_clip(str(copy))
    index.write_text(json.dumps(whole))
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="the model is incomplete"):
        load_clip(str(copy))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
def test_file_that_is_another_thing_is_named(copy, name, data, says):
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(copy))
    assert str(copy / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("visual.trunk.cls_token", "timm"),
        ("visual.attn_pool.query", "attentional pooling"),
        ("logit_bias", "SigLIP"),
        ("visual.blocks.0.norm1.weight", "EVA"),
        ("image_encoder.model.x", "MobileCLIP"),
        ("visual.transformer.resblocks.0.attn.lora_A", "LoRA"),
        ("text_decoder.ln_final.weight", "CoCa"),
    ],
)
def test_tensors_of_another_model_are_refused_by_its_name(copy, openai, name, says):
    tensors = {n: np.asarray(x) for n, x in openai.items()}
    save_file({**tensors, name: np.zeros(3, np.float32)}, copy / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=says):
        load_clip(str(copy))


def test_tensorflow_weights_alone(copy):
    (copy / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"TensorFlow alone \(tf_model\.h5\)"):
        load_clip(str(copy))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("ViT-L/14@336px", "openai/clip-vit-large-patch14-336"),
        ("ViT-B-16", "openai/clip-vit-base-patch16"),
        ("ViT-H-14", "name of an architecture"),
        ("hf-hub:laion/some-clip", "write laion/some-clip here"),
        ("RN50", "ResNet"),
        ("nobody/here.pt", "no file or directory"),
        (" ", "is empty"),
    ],
)
def test_name_that_is_no_path_says_what_is_meant(name, says):
    with pytest.raises(UserError, match=says):
        load_clip(name)


def test_openai_archive_is_read_without_running_it(openai, source, expected, tmp_path):
    """As OpenAI publishes them: a TorchScript program whose modules hold the weights."""

    class Part(torch.nn.Module):
        pass

    root = Part()
    for name, value in openai.items():
        *path, leaf = name.split(".")
        node = root
        for step in path:
            if step not in dict(node.named_children()):
                node.add_module(step, Part())
            node = getattr(node, step)
        node.register_parameter(leaf, torch.nn.Parameter(torch.tensor(value)))
    file = tmp_path / "tiny.pt"
    torch.jit.save(torch.jit.script(root), str(file))
    shutil.copy(source / "config.json", tmp_path)
    assert_same(load_clip(str(file)), expected)


def test_half_precision_file(copy, source, expected):
    halves = {k: v.astype(np.float16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(halves, copy / "model.safetensors")
    clip = load_clip(str(copy))
    assert {x.dtype for x in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        clip.params,
        expected.params,
    )


def test_bfloat16_keeps_layer_norm_and_temperature_in_float32(source):
    clip = load_clip(str(source), jax.numpy.bfloat16)
    flat = flax.traverse_util.flatten_dict(clip.params, sep="/")
    assert {name for name, x in flat.items() if x.dtype == np.float32} == {
        name for name in flat if "/ln_" in name or name == "logit_scale"
    }


def test_orbax_directory(source, expected, tmp_path):
    target = tmp_path / "orbax"
    save_orbax(load_clip(str(source)), str(target))
    assert_same(load_clip(str(target)), expected)
    with pytest.raises(UserError, match="already exists"):
        save_orbax(expected, str(target))
    shapes = json.loads((target / "config.json").read_text())
    shapes["vision_config"]["num_hidden_layers"] = 3
    (target / "config.json").write_text(json.dumps(shapes))
    with pytest.raises(UserError, match=r"vision/transformer/blocks/.* has shape"):
        load_clip(str(target))


def test_hub_id_from_the_local_cache(source, expected, tmp_path, monkeypatch):
    """As a machine without network that has downloaded the model before."""
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "0123"
    shutil.copytree(source, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    code = (
        "from dpt_jax.clip.pretrained import load_clip; import numpy as np; "
        "print(float(np.sum(load_clip('someone/tiny').params['text']['token_embedding'], "
        "dtype=np.float64)))"
    )
    done = command("-c", code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    total = float(np.sum(expected.params["text"]["token_embedding"], dtype=np.float64))
    assert float(done.stdout) == pytest.approx(total)
    code = "from dpt_jax.clip.pretrained import load_clip; load_clip('someone/else')"
    done = command("-c", code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1", check=False)
    assert "UserError: clip.weights: someone/else is neither on this disk" in done.stderr


def change(tensors, name, how):
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = np.zeros((3, 5), np.float32)
    elif how == "surplus":
        tensors[f"{name}.more"] = np.zeros(3, np.float32)
    elif how == "integers":
        tensors[name] = np.zeros(tensors[name].shape, np.int64)


@pytest.mark.parametrize(
    ("how", "says"),
    [("missing", "is missing"), ("shape", "shape"), ("surplus", "not part"), ("integers", "int64")],
)
def test_tensor_that_does_not_fit_is_named(copy, source, openai, tmp_path, how, says):
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors = load_file(source / "model.safetensors")
    change(tensors, name, how)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(copy))
    assert name in str(error.value)
    assert str(copy / "model.safetensors") in str(error.value)

    name = "visual.transformer.resblocks.1.attn.out_proj.weight"
    tensors = dict(openai)
    change(tensors, name, how)
    torch.save(torch_state(tensors), tmp_path / "tiny.pt")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(tmp_path / "tiny.pt"))
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_truncated_file_is_named(copy, source, name, kept):
    tensors = load_file(source / "model.safetensors")
    whole = {
        "model.safetensors": lambda: (source / name).read_bytes(),
        "flax_model.msgpack": lambda: flax.serialization.msgpack_serialize(as_flax(tensors)),
        "pytorch_model.bin": lambda: torch_bytes(torch_state(tensors)),
    }[name]()
    (copy / name).write_bytes(whole[:kept])
    with pytest.raises(UserError) as error:
        load_clip(str(copy))
    assert str(copy / name) in str(error.value)


def torch_bytes(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


class Trap:
    """Unpickling this runs a program."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_pickled_program_is_not_run(copy, tmp_path):
    target = tmp_path / "trapped"
    (copy / "pytorch_model.bin").write_bytes(torch_bytes({"logit_scale": Trap(str(target))}))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        load_clip(str(copy))
    assert not target.exists()


def test_resnet_is_refused(tmp_path):
    file = tmp_path / "RN50.pt"
    torch.save(
        {"visual.layer1.0.conv1.weight": torch.zeros(2, 2, 1, 1), "logit_scale": torch.tensor(1.0)},
        file,
    )
    with pytest.raises(UserError, match="ResNet"):
        load_clip(str(file))


@pytest.mark.parametrize("model_type", ["siglip", "bert"])
def test_other_architecture_is_refused(copy, source, model_type):
    shutil.copy(source / "model.safetensors", copy)
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**raw, "model_type": model_type}))
    with pytest.raises(UserError, match=model_type):
        load_clip(str(copy))


def test_directory_without_weights_or_sizes(copy, source, tmp_path):
    with pytest.raises(UserError, match="no CLIP weights"):
        load_clip(str(copy))
    shutil.copy(source / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_clip(str(tmp_path))


CONFIGS = [
    {},
    {
        "text_config": {"hidden_size": 64, "vocab_size": 100},
        "vision_config": {"patch_size": 16, "hidden_act": "gelu"},
    },
    {
        "text_config": {"hidden_size": 64},
        "text_config_dict": {"num_hidden_layers": 3},
        "projection_dim": 32,
    },
    {"vision_config": {"image_size": 96}, "vision_config_dict": None},
]


def test_sizes_that_a_config_leaves_out_are_those_of_transformers(tmp_path):
    """In a process of its own: the configuration of transformers imports PyTorch."""
    code = (
        "import json, sys, transformers; "
        "print(json.dumps([transformers.CLIPConfig.from_dict(raw).to_dict() for raw in "
        "json.loads(sys.argv[1])]))"
    )
    read = json.loads(command("-c", code, json.dumps(CONFIGS)).stdout.splitlines()[-1])
    for raw, whole in zip(CONFIGS, read, strict=True):
        sizes = []
        for name, config in (("raw", raw), ("whole", whole)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text(
                json.dumps({**config, "model_type": "clip"})
            )
            file = epath.Path(tmp_path / name / "config.json")
            sizes.append(transformers_config.read_description(file).config)
        assert sizes[0] == sizes[1]


def test_bundled_model_loads_in_transformers_too(tmp_path):
    """The tiny CLIP is an ordinary model directory, not one for this project alone.

    In a process of its own: models bring Triton in, if it is there, which can crash where JAX has
    compiled something.
    """
    code = (
        "import sys, numpy, transformers; model = "
        "transformers.CLIPModel.from_pretrained(sys.argv[1]); "
        "numpy.savez(sys.argv[2], **{name: value.float().numpy() for name, value in "
        "model.state_dict().items()})"
    )
    command("-c", code, str(BUNDLED / "tiny-clip"), str(tmp_path / "state.npz"))
    state = np.load(tmp_path / "state.npz")
    ours = load_clip("tiny-clip")
    tensors = to_transformers(ours.params, ours.config)
    assert sorted(state) == sorted(tensors)
    for name, value in state.items():
        np.testing.assert_array_equal(value, tensors[name])
