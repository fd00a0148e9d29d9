"""Classifiers on cached features against arrays computed by the published code of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dpt_jax.clip.model import normalize
from dpt_jax.config import method_config
from dpt_jax.prompts.classifiers import CLASSIFIERS, ClassTexts, Support, cache_logits
from dpt_jax.training.classifier import draw_batches, learning_rates, train_on_features
from dpt_jax.training.losses import cross_entropy
from tests.helpers.golden import Golden, relative_error

LOGITS = 1e-5  # of the largest entry
GRADIENTS = 1e-4  # of the norm
MOVED = 1e-4  # of the norm of final − initial parameters
CASES = {x: x for x in ("zslp", "clap", "taskres", "clip_adapter", "lpplus")}
CASES["tip_adapter"] = "tip_adapter_f"
NAMES = {"prototypes": "weight", "text_feature_residuals": "residual"}
NAMES |= {"fc.0.weight": "down", "fc.2.weight": "up"}


class Case:
    """One golden file, and its classifier with the settings of its configuration."""

    def __init__(self, file):
        self.golden, self.name = Golden(f"heads/{file}"), CASES[file]
        self.meta, self.classifier = self.golden.meta, CLASSIFIERS[self.name]
        templates = jnp.asarray(self.golden["text_templates"])
        s = jnp.float32(self.golden.arrays.get("logit_scale", 100.0))
        self.texts = ClassTexts(normalize(normalize(templates).mean(1)), templates.mean(1), s)
        self.settings = method_config(self.name, "caltech101").classifier
        self.rows = (normalize(self.golden["train"]), jnp.asarray(self.golden["train_label"]))

    def support(self):
        labels = self.golden.arrays.get("label", self.golden["train_label"])
        if "views" in self.golden.arrays:
            return Support(self.golden["views"], labels)
        # A view of the published loader has its own order; here all have that of the labels.
        own = self.golden["train_label"].reshape(-1, len(labels))
        order = np.argsort(own, axis=1, kind="stable")[:, :, None]
        views = self.golden["train"].reshape(*own.shape, -1)
        assert (np.sort(own) == labels).all() or len(own) == 1
        if len(own) == 1:
            return Support(views, labels)
        return Support(np.take_along_axis(views, order, 1), labels)

    def start(self):
        key = jax.random.key(0)
        return self.classifier.start(self.support(), self.texts, key, self.settings)

    def params(self, prefix):
        found = {NAMES.get(k, k): v for k, v in self.golden.tensors(prefix).items()}
        return {k: v[0] if k == "alpha" else v for k, v in found.items()}

    def given(self, prefix="param"):
        """Return the parameters of the file, completed by those that it leaves out."""
        return {**self.start(), **self.params(prefix)}

    def logits(self, params):
        test = normalize(self.golden["test"])
        return self.classifier.logits(params, test, self.texts)

    def batches(self):
        steps = len(self.golden["train_losses"])
        everything = np.tile(np.arange(len(self.rows[1])), (steps, 1))
        return self.golden.arrays.get("batches", everything)

    def rates(self):
        batches = self.batches()
        per_epoch = len(batches) // self.meta.get(
            "max_epoch", self.meta.get("epochs", self.meta.get("train_epoch"))
        )
        settings = ConfigDict({**self.settings, "lr": self.meta.get("lr", 0.0)})
        return learning_rates(settings, self.support(), self.texts, len(batches), per_epoch)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_start(case):
    started, expected = case.start(), case.params("param")
    for name, value in expected.items():
        if name in ("down", "up", "bias"):  # random
            assert started[name].shape == value.shape
            bound = 1 / np.sqrt(value.shape[-1] if value.ndim > 1 else case.texts.raw.shape[-1])
            assert 0.5 * bound < np.abs(started[name]).max() <= bound
        else:
            np.testing.assert_allclose(started[name], value, rtol=0, atol=LOGITS * 10)
    if "lambdas" in case.golden.arrays and case.name == "clap":
        assert relative_error(started["penalty"], case.golden["lambdas"]) < LOGITS


def test_logits(case):
    assert relative_error(case.logits(case.given()), case.golden["logits"]) < LOGITS


def test_gradient(case):
    rows = case.batches()[0]
    rows = rows[rows >= 0]
    features, labels = (x[rows] for x in case.rows)

    def loss(learned):
        params = {**case.given(), **learned}
        logits = case.classifier.logits(params, features, case.texts)
        value = cross_entropy(logits, labels).mean()
        penalty = case.classifier.penalty
        return value + (penalty(params, case.texts) if penalty else 0.0)

    learned = {name: case.given()[name] for name in case.classifier.learned}
    value, gradient = jax.value_and_grad(loss)(learned)
    assert float(value) == pytest.approx(float(case.golden["loss"]), rel=LOGITS)
    for name, expected in case.params("grad").items():
        error = np.linalg.norm(gradient[name] - expected)
        assert error < GRADIENTS * np.linalg.norm(expected), name


@pytest.mark.parametrize("prefix", ["", "noisy/"])
def test_training(case, prefix):
    golden = case.golden
    if f"{prefix}loss" not in golden.arrays:
        assert prefix and case.name != "taskres"
        return
    started = case.given(f"{prefix}param")
    batches, rates, decay = case.batches(), case.rates(), case.settings.weight_decay
    found, course = train_on_features(
        case.name, started, *case.rows, case.texts, batches, rates, decay
    )
    rate = next(iter(rates.values()))
    np.testing.assert_allclose(rate, golden["train_lrs"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(course.loss, golden[f"{prefix}train_losses"], rtol=0, atol=2e-5)
    for name, expected in case.params(f"{prefix}final").items():
        moved = expected - started[name]
        error = np.linalg.norm(found[name] - started[name] - moved)
        assert error < MOVED * np.linalg.norm(moved), name
    assert relative_error(case.logits(found), golden[f"{prefix}final_logits"]) < LOGITS


def test_closed_form():
    """SS-Text, SS-Text+ and its other λ, also for a class without images."""
    golden = Golden("heads/sstext")
    templates = jnp.asarray(golden["text_templates"])
    unit, raw = normalize(normalize(templates).mean(1)), templates.mean(1)
    names = {"plain": "sstext", "plus": "sstext_plus", "perf": "sstext_confidence"}
    for sample in "ab":
        texts = ClassTexts(unit, raw, jnp.float32(golden[f"{sample}/logit_scale"]))
        support = Support(golden[f"{sample}/train"][None], golden[f"{sample}/train_label"])
        for kind, name in names.items():
            classifier = CLASSIFIERS[name]
            params = classifier.start(support, texts, jax.random.key(0), ConfigDict())
            expected = golden[f"{sample}/{kind}/prototypes"]
            assert relative_error(params["weight"], expected) < LOGITS
            logits = classifier.logits(params, normalize(golden["test"]), texts)
            assert relative_error(logits, golden[f"{sample}/{kind}/logits"]) < LOGITS


def test_search_of_the_cache():
    """Tip-Adapter's grid of α and β, on validation images."""
    case = Case("tip_adapter")
    params, labels = case.given(), jnp.asarray(case.golden["val_label"])
    images = normalize(case.golden["val"])
    betas, alphas = (
        0.1 + np.arange(steps) * (end - 0.1) / steps
        for end, steps in zip(case.meta["search_scale"], case.meta["search_step"], strict=True)
    )

    def accuracy(beta, alpha):
        own = {**params, "beta": beta, "alpha": alpha}
        return (cache_logits(own, images, case.texts).argmax(-1) == labels).mean()

    of_alphas = jax.jit(jax.vmap(accuracy, (None, 0)))
    found = np.array([of_alphas(np.float32(beta), np.float32(alphas)) for beta in betas])
    np.testing.assert_allclose(100 * found, case.golden["search_accuracy"], rtol=1e-6)
    beta, alpha = np.unravel_index(found.argmax(), found.shape)
    assert betas[beta] == pytest.approx(case.meta["best_beta"])
    assert alphas[alpha] == pytest.approx(case.meta["best_alpha"])
    params |= {"beta": np.float32(betas[beta]), "alpha": np.float32(alphas[alpha])}
    assert relative_error(case.logits(params), case.golden["searched_logits"]) < LOGITS


@pytest.mark.parametrize("name", ["clap", "taskres", "tip_adapter_f", "lpplus"])
def test_batches(name):
    """An epoch has each image at most once, of one view; CLAP draws from all views."""
    classifier, settings = CLASSIFIERS[name], ConfigDict({"name": name, "batch_size": 4})
    batches = draw_batches(settings, images=10, views=3, steps=7, seed=1)
    assert batches.shape == (7, 4)
    if classifier.pooled:
        assert all(len(set(batch)) == 4 for batch in batches.tolist())
        return
    per_epoch = 3 if classifier.keeps_partial else 2
    for epoch in range(7 // per_epoch):
        rows = batches[epoch * per_epoch : (epoch + 1) * per_epoch].ravel()
        used = rows[rows >= 0]
        assert len(set(used.tolist())) == len(used) == (10 if classifier.keeps_partial else 8)
        assert set(used // 10) == {epoch % 3}
