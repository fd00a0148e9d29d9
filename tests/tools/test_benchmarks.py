"""Benchmarks: their commands run; the PyTorch baseline computes what the published code does."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from benchmarks import on_gpu
from benchmarks.torch_twin import Twin
from tests.helpers.commands import command
from tests.helpers.golden import Golden, assert_close_in_norm
from tests.helpers.published_cases import config_of, prompts_of


@pytest.mark.process
@pytest.mark.slow
def test_the_measurement_on_a_gpu(tmp_path):
    """Its small mode on a CPU, where each command ends well and leaves its output."""
    command("benchmarks/on_gpu.py", f"--out={tmp_path}", "--small")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["name"]: line["code"] for line in lines} == dict.fromkeys(
        dict(on_gpu.commands(small=True)), 0
    )
    assert all((tmp_path / f"{line['name']}.txt").stat().st_size for line in lines)


LOSS, GRADIENTS = 1e-5, 1e-4


def fixed_texts(golden, model, clip):
    """Return Z and t̄ of a golden file, of unit length."""
    names = [f"a photo of a {name}." for name in golden.meta["classnames"]]
    tokens = torch.tensor(
        [[clip.tokenizer.start, *clip.tokenizer.encode(n.replace("_", " ")), clip.tokenizer.end,
          *[0] * 77][:77] for n in names]
    )  # fmt: skip
    pooled = model.text_model(tokens, attention_mask=None).pooler_output
    held = next((golden[k] for k in ("frozen_text_features", "fixed_embeddings")
                 if k in golden.arrays), np.ones((1, 1)))  # fmt: skip
    normalize = torch.nn.functional.normalize
    return normalize(model.text_projection(pooled), dim=-1), normalize(torch.tensor(held), dim=-1)


@pytest.mark.parametrize(
    ("name", "guided", "suffix"),
    [
        ("coop_end", False, "_late"),
        ("dpt_last_layer", True, "_early"),
        ("dpt_last_layer", False, "_late"),
        *((f"family/{name}", False, "") for name in ("cocoop", "ivlp", "kgcoop", "maple")),
        ("family/promptsrc_all", False, ""),
    ],
)
def test_loss_and_gradient_are_those_of_the_published_code(
    name, guided, suffix, clip, golden_clip_dir
):
    """guided: as in the first epochs of DPT, whose numbers have a suffix in the golden file."""
    golden = Golden(name)
    model = transformers.CLIPModel.from_pretrained(golden_clip_dir(golden.meta)).eval()
    model.requires_grad_(False)
    frozen, held = fixed_texts(golden, model, clip)
    config, alpha = config_of(golden.meta), golden.meta.get("alpha", 0.0)
    tokens = torch.tensor(golden["tokens"]).long()
    twin = Twin(model, config, tokens, frozen, held, alpha, guided)
    prompts = jax.tree.map(
        lambda x: torch.tensor(x, requires_grad=True), prompts_of(golden.tensors("param"))
    )
    loss = twin.loss(prompts, torch.tensor(golden["image"]), torch.tensor(golden["label"]))
    assert loss.item() == pytest.approx(float(golden[f"loss{suffix}"]), rel=LOSS)
    loss.backward()
    gradient = jax.tree.map(lambda x: x.grad.numpy(), prompts)
    assert_close_in_norm(gradient, prompts_of(golden.tensors(f"grad{suffix}")), GRADIENTS)
