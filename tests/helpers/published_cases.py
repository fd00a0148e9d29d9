"""Parts and prompts of the published code's golden files, in the form of this package."""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.convert.reference import CAVPT, COUPLED, JOINT, TEXT, VISUAL, prompts_from_published
from dpt_jax.model import PromptedCLIP, Texts
from dpt_jax.prompts import Consistency, PromptConfig
from dpt_jax.prompts.text import context_tokens
from dpt_jax.training.optimizer import descend, learning_rates, make_optimizer
from tests.helpers.golden import Golden
from tests.helpers.models import apply, frozen_features, packed_prompts, total_loss

PHOTO = "a photo of a"


def prompts_of(tensors):
    """Return the tree of a file's tensors, by their names in the whole published model."""
    for module, told_by in ((COUPLED, "prompt_learner.proj.bias"), (JOINT, "image_encoder.VPT")):
        if told_by in tensors:
            return prompts_from_published({module: tensors})
    return prompts_from_published(by_module(tensors))


def by_module(tensors):
    """Return the tensors of each published module, by their names in it."""
    modules = {}
    for name, value in tensors.items():
        module = next(m for m in (TEXT, VISUAL, CAVPT) if name.startswith(f"{m}."))
        modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = value
    return modules


# Fields of PromptConfig, and what the published codes call them.
FIELDS = {
    "text_length": ("n_ctx_text", "N_CTX", "N_CTX_TEXT"),
    "text_depth": ("PROMPT_DEPTH", "PROMPT_DEPTH_TEXT"),
    "visual_length": ("n_ctx_visual", "N_CTX_VISION"),
    "visual_depth": ("PROMPT_DEPTH", "PROMPT_DEPTH_VISION"),
    "class_specific": ("csc",),
    "top_k": ("cpn",),
    "first_layer": ("bottom_limit",),
}


def config_of(meta):
    """Return the parts of a case, by the names that its code has for them."""
    kind = meta["kind"]
    own = {field: meta[name] for field, names in FIELDS.items() for name in names if name in meta}
    if kind == "CoOp":
        own = {name: own[name] for name in ("text_length", "class_specific")}
    if kind == "MaPLe":
        own |= {"visual_length": own["text_length"], "coupled": True}
    if kind == "PromptSRC":
        text, image = meta["TEXT_LOSS_WEIGHT"], meta["IMAGE_LOSS_WEIGHT"]
        own["consistency"] = Consistency(text, "l1", image, logits=1.0)
    if kind == "KgCoOp":
        own["consistency"] = Consistency(text=meta["W"])
    own |= {"conditioned": kind == "CoCoOp", "ln_pre": "visual_depth" in own}
    return PromptConfig(classes=meta["C"], **own)


class Case:
    """One golden file, set up in this package, with one compiled function for all its numbers."""

    def __init__(self, name: str, clip_dir: Callable[[dict], pathlib.Path]) -> None:
        self.golden = golden = Golden(name)
        self.meta = meta = golden.meta
        clip = load_clip(str(clip_dir(meta)))
        self.config = config_of(meta)
        self.model = PromptedCLIP(clip.config, self.config)
        self.clip = clip.params
        initial = meta.get("CTX_INIT")  # KgCoOp's is a switch
        words = context_tokens(PHOTO if initial is True else initial or "", clip.tokenizer)
        length, names = self.config.text_length, meta["classnames"]
        place = meta.get("position", "end"), self.config.class_specific
        self.packed = packed_prompts(names, clip.tokenizer, length, *place, fixed=words[length:])
        self.embedded = np.asarray(clip.params["text"]["token_embedding"])[words]
        templates = meta.get("templates", [f"{PHOTO} {{}}."])
        plain = [template.format(name) for template in templates for name in names]
        texts = frozen_features(self.model, clip.params, plain, clip.tokenizer)
        # As they are, not normalised.
        self.frozen = texts.reshape(len(templates), len(names), -1).mean(0)
        self.target = self.frozen if self.config.has_consistency else None
        self.prompts = prompts_of(golden.tensors("param"))
        self.images = golden["image"].transpose(0, 2, 3, 1)
        self.labels = golden["label"]
        self._step = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def step(self, prompts, guided=False):
        """Return (loss, (outputs, texts)), gradient.  guided: as in DPT's first epochs."""
        return self._step(prompts, self.clip, guided)

    def ids(self, c):
        """Return the token ids of a class up to its end, and their context rows or -1."""
        layout, own = self.packed, self.packed.segment_ids == c
        ids = np.concatenate([layout.prefix_tokens, layout.tokens[own]])
        return ids, np.concatenate([layout.prefix_context, layout.context[own]])

    def train(self, schedule, guidance=0):
        """Yield epoch, rates and prompts of one batch an epoch, whose losses are as published."""
        optimizer = make_optimizer()
        prompts, state = self.prompts, optimizer.init(self.prompts)
        for epoch, expected in enumerate(self.golden["train_losses"]):
            rates = learning_rates(schedule, epoch)
            (loss, _), gradient = self.step(prompts, epoch < guidance)
            assert loss == pytest.approx(float(expected), rel=1e-4)
            prompts, state = descend(optimizer, gradient, state, prompts, rates)
            yield epoch, rates, prompts

    def _loss(self, prompts, clip, guided):
        own = functools.partial(apply, self.model, clip, prompts)
        texts = own(Texts(self.packed, self.frozen, self.target), method="texts")
        outputs = own(self.images, texts)
        alpha, guidance = self.meta.get("alpha", 0.0), self.meta["kind"] in ("DPT", "CoOp")
        own = {"guided": guided, "alpha": alpha, "guidance": guidance}
        return total_loss(self.model, outputs, self.labels, **own), (outputs, texts)
