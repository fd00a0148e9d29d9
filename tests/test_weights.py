"""Learned weights of CLIP against arrays computed by the published code (float32, CPU)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import twostage
from dpt_jax.clip.model import normalize
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.model import PromptedCLIP, Texts, init_prompts
from dpt_jax.prompts import PromptConfig, Weights
from dpt_jax.prompts.classifiers import CLASSIFIERS, for_classes
from dpt_jax.prompts.text import plain_layout
from dpt_jax.prompts.weights import MATRICES, norms_of
from dpt_jax.training.classifier import learning_rates as rates_of_classifier
from dpt_jax.training.classifier import train_on_features
from dpt_jax.training.optimizer import Schedule, descend, learning_rates, make_optimizer
from tests.helpers.golden import Golden, assert_close_in_norm, relative_error
from tests.helpers.models import apply, frozen_features, total_loss

pytestmark = pytest.mark.compiles

LOGITS = 1e-5  # of the largest entry
GRADIENTS = 1e-4  # of the norm
# Training hardly moves a parameter, so compare the change, by its norm.
MOVEMENT = {"clip_lora": 1e-4, "two_stage": 1e-3, "two_stage_all_norms": 1e-3}
TEMPLATE = "a photo of a {}."
LORA_NAME = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.(\w)_proj\.w_lora_([AB])")
NORM_NAME = re.compile(r"(visual\.)?(?:transformer\.resblocks\.(\d+)\.)?(ln_\w+)\.(weight|bias)")


def weights_of(tensors):
    """Return the tree of a published file's tensors."""
    rows, tree = {}, {}
    for name, value in tensors.items():
        if found := LORA_NAME.fullmatch(name):
            tower, layer, letter, factor = found.groups()
            place = "text" if tower is None else "vision", MATRICES[letter], factor.lower()
        else:
            tower, layer, norm, kind = NORM_NAME.fullmatch(name).groups()
            in_text = tower is None
            kind = {"weight": "scale"}.get(kind, kind)
            place = "text" if in_text else "vision", norm, kind
        rows.setdefault(place, {})[layer] = value
    for (tower, part, kind), values in rows.items():
        stacked = [values[layer] for layer in sorted(values, key=lambda x: int(x or 0))]
        own = stacked[0] if None in values else np.stack(stacked)
        tree.setdefault(tower, {}).setdefault(part, {})[kind] = own
    return {"weights": tree}


def config_of(meta):
    if meta["kind"] == "CLIP-LoRA":
        every = {"vision": (1, 0), "text": (1, 0)}
        return Weights("lora", meta["r"], meta["alpha"], "".join(meta["params"]), **every)
    kind = {"both": "norms", "all_norms": "all_norms"}[meta["variant"]]
    return Weights(kind, vision=(1, 0), text=(1, 0))


class Case:
    """One golden file, set up in this package."""

    def __init__(self, golden, clip) -> None:
        self.golden, meta = golden, golden.meta
        self.model = PromptedCLIP(clip.config, PromptConfig(meta["C"], weights=config_of(meta)))
        self.clip, self.tokenizer = clip.params, clip.tokenizer
        self.texts = self.encode(meta["classnames"])
        self.images = self.golden["image"].transpose(0, 2, 3, 1)
        self.labels = self.golden["label"]
        self.tested = "base_image" if meta["kind"] == "2SFS" else "test_image"
        self._step = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        self.logits = jax.jit(self._logits)

    def encode(self, names):
        plain = [TEMPLATE.format(name) for name in names]
        frozen = frozen_features(self.model, self.clip, plain, self.tokenizer)
        return Texts(plain_layout(plain, self.tokenizer), frozen)

    def _logits(self, prompts, images, texts):
        own = functools.partial(apply, self.model, self.clip, prompts)
        return own(images, own(texts, method="texts"))

    def step(self, prompts, rows):
        """Return (loss, logits), gradient, for some of the images.  rows: -1 is padding."""
        rows = rows[rows >= 0]
        return self._step(prompts, self.images[rows], self.labels[rows])

    def _loss(self, prompts, images, labels):
        outputs = self._logits(prompts, images, self.texts)
        return total_loss(self.model, outputs, labels, guidance=False), outputs.logits

    def test_logits(self, prompts, key=None, texts=None):
        images = self.golden[key or self.tested].transpose(0, 2, 3, 1)
        return self.logits(prompts, images, self.texts if texts is None else texts).logits

    def merged(self, prompts):
        return jax.jit(lambda clip, p: apply(self.model, clip, p, method="merge"))(
            self.clip, prompts
        )


ALL_NORMS = pytest.param("two_stage_all_norms", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["clip_lora", "two_stage", ALL_NORMS])
def case(request, golden_clip_dir) -> Case:
    golden = Golden(f"heads/{request.param}")
    return Case(golden, load_clip(str(golden_clip_dir(golden.meta))))


def test_start(case):
    """Logits, loss and gradients with the first parameters, also where all parts are moved."""
    golden = case.golden
    first = golden["batches"][0]
    for prefix in ("", "noisy/") if "noisy/loss" in golden.arrays else ("",):
        prompts = weights_of(golden.tensors(f"{prefix}param"))
        (loss, logits), gradient = case.step(prompts, first)
        assert loss == pytest.approx(float(golden[f"{prefix}loss"]), rel=1e-5)
        if f"{prefix}batch_logits" in golden.arrays:
            assert relative_error(logits, golden[f"{prefix}batch_logits"]) < LOGITS
        expected = weights_of(golden.tensors(f"{prefix}grad"))
        assert_close_in_norm(gradient, expected, GRADIENTS)
    key = "zero_shot_base_logits" if case.tested == "base_image" else "zero_shot_logits"
    prompts = weights_of(golden.tensors("param"))
    assert relative_error(case.test_logits(prompts), golden[key]) < LOGITS


def test_new_weights_begin_as_published(case):
    norms = norms_of(case.clip)
    fresh = jax.jit(functools.partial(init_prompts, case.model))(jax.random.key(0), None, norms)
    published = weights_of(case.golden.tensors("param"))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, published)
    if case.model.config.weights.kind != "lora":
        jax.tree.map(np.testing.assert_array_equal, fresh, published)
        return
    for tree in (fresh, published):
        factors = tree["weights"]["vision"]["query"]
        assert not np.any(factors["b"])
        bound = factors["a"].shape[-1] ** -0.5
        assert 0.9 * bound < np.abs(factors["a"]).max() < bound


def test_training(case):
    """AdamW and its cosine: rates, losses, what the steps change, and the logits after them."""
    golden = case.golden
    losses, rates = golden["train_losses"], golden["train_lrs"][:, 0]
    schedule = Schedule(0, 0, 0, 1, 1, weights_lr=case.golden.meta["lr"])
    schedule = schedule._replace(cosine_steps=len(losses))
    optimizer = make_optimizer("adamw", 0.01)
    start = weights_of(golden.tensors("param"))
    prompts, state = start, optimizer.init(start)
    for i, expected in enumerate(losses):
        own = learning_rates(schedule, i)
        np.testing.assert_allclose(own["weights"], rates[i], rtol=1e-5)
        (loss, _), gradient = case.step(prompts, golden["batches"][i])
        assert loss == pytest.approx(float(expected), rel=1e-5)
        prompts, state = descend(optimizer, gradient, state, prompts, own)
    final = weights_of(golden.tensors("final"))
    moved, published = (jax.tree.map(np.subtract, tree, start) for tree in (prompts, final))
    name = "clip_lora" if case.tested == "test_image" else "two_stage"
    assert_close_in_norm(moved, published, MOVEMENT[name])
    merged = case.merged(prompts)
    if case.tested == "test_image":
        assert relative_error(case.test_logits(prompts), golden["final_logits"]) < LOGITS
        assert relative_error(case.test_logits(merged), golden["merged_logits"]) < LOGITS
    else:
        texts = case.encode(golden.meta["new_classnames"])
        found = case.test_logits(prompts, "new_image", texts)
        assert relative_error(found, golden["tuned_new_logits"]) < LOGITS
        assert relative_error(case.test_logits(prompts), golden["tuned_base_logits"]) < LOGITS
    # The published code's merged and unmerged logits differ by as much.
    temperature = golden.meta.get("logit_scale", 100)
    difference = case.test_logits(merged) - case.test_logits(prompts)
    assert np.abs(difference).max() / temperature < 1e-6


@pytest.mark.parametrize("case", ["two_stage", ALL_NORMS], indirect=True)
def test_second_stage_of_2sfs(case):
    """From the tuned texts: losses, what the steps change, and logits of base and new classes."""
    golden, meta = case.golden, case.golden.meta
    prompts = weights_of(golden.tensors("final"))

    def encoded(images, texts):
        """Features of images, and texts of the classes, by the tuned towers."""
        own = functools.partial(apply, case.model, case.clip, prompts)
        found = own(texts, method="texts")
        features = own(images.transpose(0, 2, 3, 1), found, method="image_features")
        return normalize(features), own(found, method="class_texts")

    encode = jax.jit(encoded)
    features, texts = encode(golden["image"], case.texts)
    config = twostage.get_config()
    classifier, settings = CLASSIFIERS[config.classifier.name], config.classifier
    start = classifier.start(None, texts, None, settings)
    assert relative_error(start["weight"], golden["stage2/param/classifier"]) < LOGITS
    losses, rates = golden["stage2/train_losses"], golden["stage2/train_lrs"][:, 0]
    own = rates_of_classifier(settings, None, texts, len(losses), 1)
    np.testing.assert_allclose(own["weight"], rates, rtol=1e-5)
    batches, labels = golden["batches"][-len(losses) :], jnp.asarray(case.labels)
    trained, course = train_on_features(
        settings.name, start, features, labels, texts, batches, own, settings.weight_decay
    )
    np.testing.assert_allclose(course.loss, losses, rtol=1e-5)
    moved = trained["weight"] - start["weight"]
    published = golden["stage2/final/classifier"] - golden["stage2/param/classifier"]
    assert np.linalg.norm(moved - published) / np.linalg.norm(published) < MOVEMENT["two_stage"]
    new = case.encode(meta["new_classnames"])
    for kind, names, rows in (("base", case.texts, np.arange(meta["C"])), ("new", new, [-1] * 3)):
        params = for_classes(classifier, jax.tree.map(np.asarray, trained), np.array(rows))
        images, own_texts = encode(golden[f"{kind}_image"], names)
        logits = classifier.logits(params, images, own_texts)
        assert relative_error(logits, golden[f"final_{kind}_logits"]) < LOGITS
