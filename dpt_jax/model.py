"""PromptedCLIP: one frozen CLIP and the learned prompts of a method.

Every method is this model with some of its parts. Symbols as in the paper: B images, C classes,
K likeliest classes, E joint embedding, t̂ and Z learned and frozen text features, f̂ and z prompted
and frozen image features, s the temperature.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Array, Params, PyTree, broadcast, deterministic_gather
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.packing import PackedTexts
from dpt_jax.prompts import PromptConfig, Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS, ClassTexts
from dpt_jax.prompts.text import MetaNet, TextPrompt
from dpt_jax.prompts.visual import ClassAwarePrompt, ClassPrompts, Coupling, VisualPrompt
from dpt_jax.prompts.weights import adapted, init_weights, merged, over

OptionalArray = Any  # an array, or None for methods without it

# CoCoOp's text tokens encoded at a time: enough to keep a device busy, a small part of its memory.
TOKENS_AT_A_TIME = 2**15
# Products of float32 matrices in float32. By default a TPU rounds such matrices to bfloat16 before
# it multiplies, and a GPU to TF32. Products of bfloat16 matrices are not affected.
EXACT = "highest"


class Texts(NamedTuple):
    """The texts of the classes and their features, normalised by `PromptedCLIP.texts`.

    Attributes:
      packed: The texts, with the context if the method has one.
      frozen: Z (C, E), of the templates in frozen CLIP.
      target: t̄ (C, E), the target of the consistency losses, in training.
      mean: u (C, E) of classifiers, never normalised; None if each class has one text.
      learned: t (C, E), not normalised, once encoded; Z if no text is learned, or if t depends on
        the image.
    """

    packed: PackedTexts
    frozen: Array
    target: OptionalArray = None
    mean: OptionalArray = None
    learned: OptionalArray = None


class ZeroShot(NamedTuple):
    """The outputs of frozen CLIP, float32.  They do not depend on the prompts."""

    features: Array  # z (B, E)
    logits: Array  # (B, C), s z Zᵀ
    indices: OptionalArray  # (B, K), the likeliest classes, best first, for CAVPT
    attention: OptionalArray = None  # (B, heads, 1 + patches), see Outputs


class PromptedVision(NamedTuple):
    """The outputs of the prompted image tower, see Outputs."""

    features: Array  # f (B, E), not normalised
    attention: OptionalArray
    auxiliary_logits: OptionalArray = None
    class_attention: OptionalArray = None


class Outputs(NamedTuple):
    """The outputs that losses, evaluation and pictures read, float32.

    Under jit, unused ones cost nothing.
    """

    logits: Array  # (B, C), the prediction of the method
    text_logits: Array  # (B, C), s z t̂ᵀ
    image_logits: Array  # (B, C), s f̂ Zᵀ
    features: Array  # f̂ (B, E)
    learned_texts: Array  # t̂ (C, E); (B, C, E) if the context depends on the image
    zero_shot: ZeroShot
    auxiliary_logits: OptionalArray = None  # (B, CAVPT layers, K, C)
    # (B, heads, 1 + patches + M), of the class token in the last block, prompts after the patches
    attention: OptionalArray = None
    # (B, CAVPT layers, K, 1 + patches + G), what each class prompt attends to
    class_attention: OptionalArray = None
    target_texts: OptionalArray = None  # t̄ (C, E)
    target_logits: OptionalArray = None  # (B, C), s z t̄ᵀ


def apply(
    model: "PromptedCLIP", clip: Params, prompts: Prompts, *args: PyTree, **keywords: PyTree
) -> PyTree:
    """Call a method of a model with its parameters, those of CLIP and the prompts."""
    return model.apply({"params": {"clip": clip, "prompts": prompts}}, *args, **keywords)


class PromptedCLIP(nn.Module):
    """A frozen CLIP and learned prompts.

    Its parameters are {"clip": frozen, "prompts": learned}; `init_prompts` makes the latter.

    Attributes:
      clip_config: sizes of the CLIP.
      config: the prompts, and their sizes.
      dtype: compute dtype.
      remat: what the backward pass saves, a key of clip.blocks.REMAT_POLICIES.
    """

    clip_config: CLIPConfig
    config: PromptConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self.clip = CLIP(self.clip_config, self.dtype, self.remat)
        self.prompts = LearnedPrompts(self.clip_config, self.config)

    @jax.default_matmul_precision(EXACT)
    def __call__(
        self,
        images: OptionalArray,
        texts: Texts,
        zero_shot: ZeroShot | None = None,
        keys: Array | None = None,
    ) -> Outputs:
        """Classify images.

        Args:
          images: (B, H, W, 3), uint8, or already normalised floats. With `zero_shot`, a method
            without visual parts needs none.
          texts: the classes, see `texts`.
          zero_shot: the outputs of frozen CLIP for these images, if known.
          keys: (B,), dropout keys, one per image; None for no dropout.
        """
        if zero_shot is None:
            zero_shot = self.zero_shot(images, texts)
        z, s = zero_shot.features, self.temperature()
        vision = PromptedVision(z, zero_shot.attention)
        learned = self._learned_texts(texts, z)
        if self.config.learns_images:
            vision = self._encode(images, learned, zero_shot, keys)
            vision = vision._replace(features=normalize(vision.features))
        learned = normalize(learned)
        return Outputs(
            logits=self._logits(vision.features, texts, learned),
            text_logits=cosines(s * z, learned),
            image_logits=s * vision.features @ texts.frozen.T,
            learned_texts=learned,
            zero_shot=zero_shot,
            **vision._asdict(),
            target_texts=texts.target,
            target_logits=None if texts.target is None else s * z @ texts.target.T,
        )

    def _logits(self, features: Array, texts: Texts, learned: Array) -> Array:
        """Return the prediction (B, C) for f̂ (B, E), by the classifier once it is trained."""
        params: Params | None = self.prompts.get_variable("params", "classifier")
        if params is not None:
            classifier = CLASSIFIERS[self.config.classifier]
            return classifier.logits(params, features, self.class_texts(texts))
        return cosines(self.temperature() * features, learned)

    def _learned_texts(self, texts: Texts, features: Array) -> Array:
        """Return t (C, E), or (B, C, E) if the context depends on images with these features."""
        if self.config.conditioned:
            return self.encode_text_for_images(texts.packed, features)
        learned: Array = texts.learned
        return learned

    @jax.default_matmul_precision(EXACT)
    def zero_shot(self, images: Array, texts: Texts) -> ZeroShot:
        """Return the outputs of frozen CLIP for images (B, H, W, 3), see `__call__`."""
        features, attention = self.clip.vision(self._pixels(images))
        return self.zero_shot_of(normalize(features), texts)._replace(attention=attention)

    @jax.default_matmul_precision(EXACT)
    def zero_shot_of(self, features: Array, texts: Texts) -> ZeroShot:
        """Return the outputs of frozen CLIP for images with known features z (B, E)."""
        logits = self.temperature() * features @ texts.frozen.T
        k = min(self.config.top_k, texts.frozen.shape[0])
        return ZeroShot(features, logits, jax.lax.top_k(logits, k)[1] if k else None)

    @jax.default_matmul_precision(EXACT)
    def encode_image(self, images: Array) -> Array:
        """Return the frozen features z (B, E) of images, normalised."""
        return normalize(self.clip.vision(self._pixels(images)).features)

    @jax.default_matmul_precision(EXACT)
    def image_features(self, images: Array, texts: Texts) -> Array:
        """Return the features (B, E) of images in the method's image tower, not normalised."""
        if not self.config.learns_images:
            return self.clip.vision(self._pixels(images)).features
        zero_shot = self.zero_shot(images, texts)
        learned = self._learned_texts(texts, zero_shot.features)
        return self._encode(images, learned, zero_shot, None).features

    def texts(self, texts: Texts, axis: str | None = None, key: Array | None = None) -> Texts:
        """Encode the learned texts, and normalise the features of the others.

        axis, key: see `encode_text`.
        """
        learned = texts.frozen
        if self.config.learns_texts and not self.config.conditioned:
            learned = self.encode_text(texts.packed, axis, key)
        target = None if texts.target is None else normalize(texts.target)
        return texts._replace(frozen=normalize(texts.frozen), target=target, learned=learned)

    def class_texts(self, texts: Texts) -> ClassTexts:
        """Return the texts that a classifier starts from: the learned ones, if there are any."""
        raw = texts.learned if self.config.learns_texts or texts.mean is None else texts.mean
        return ClassTexts(normalize(texts.learned), raw, self.temperature())

    def temperature(self) -> Array:
        """Return s."""
        return jnp.exp(self.clip.logit_scale.astype(jnp.float32))

    @jax.default_matmul_precision(EXACT)
    def encode_text(
        self, texts: PackedTexts, axis: str | None = None, key: Array | None = None
    ) -> Array:
        """Return features (C, E) of texts, with their context if they have one; not normalised.

        Args:
          texts: the packed texts.
          axis: the mapped axis of devices that share the work, see TextTower.
          key: random key of dropout, None for none. Every token of every text draws its own mask,
            so pack the texts without a shared prefix.
        """
        context = self.prompts.text() if self.config.text_length else None
        keys = None if key is None else keys_of_rows(key, texts, axis)
        return self._towers(text=keys).text(texts, context, axis)

    @jax.default_matmul_precision(EXACT)
    def encode_text_for_images(self, texts: PackedTexts, features: Array) -> Array:
        """Return features (B, C, E) of texts in the context of each image (CoCoOp).

        features: z (B, E). Images do not interact, so any number is encoded at a time.
        """
        context, offsets = self.prompts.text(), self.prompts.meta_net(features)
        tower, variables = self._towers().text.unbind()

        def encode(offset: Array) -> Array:
            own = jnp.concatenate([context[:1] + offset, context[1:]])
            return jnp.asarray(tower.apply(variables, texts, own))

        part = max(1, TOKENS_AT_A_TIME // texts.tokens.size)
        images = features.shape[0]  # symbolic in a program exported for any number of images
        if not isinstance(images, int) or images <= part:
            return jax.vmap(encode)(offsets)
        return jax.lax.map(encode, offsets, batch_size=part)

    def visual_tokens(self) -> Array:
        """Return P (J_v, n_v, D_v) of a method with a visual prompt, float32, before ln_pre."""
        own = self.prompts
        tokens: Array = own.coupling(own.text()) if self.config.coupled else own.visual()
        return tokens

    def merge(self) -> Prompts:
        """Return the prompts with learned weights merged into CLIP's, for an evaluation.

        "merged" replaces "weights", and has CLIP's learned parameters by path. The model takes
        either; with "merged" it costs what CLIP costs.
        """
        prompts, weights = dict(self.prompts.variables["params"]), self.config.weights
        frozen = self.clip.variables["params"]
        prompts["merged"] = merged(weights, self.clip_config, frozen, prompts.pop("weights"))
        return prompts

    def _towers(self, **keys: Array | None) -> CLIP:
        """Return CLIP with the learned weights.  keys: of dropout, see prompts.weights.adapted."""
        config = self.config.weights
        if not config.kind:
            return self.clip
        prompts, frozen = self.prompts.variables["params"], self.clip.variables["params"]
        variables: dict[str, Any]
        if "merged" in prompts:
            variables = {"params": over(frozen, prompts["merged"])}
        else:
            variables = adapted(config, self.clip_config, frozen, prompts["weights"], keys)
        return CLIP(self.clip_config, self.dtype, self.remat, parent=None).bind(variables)

    def _encode(
        self, images: Array, learned: Array, zero_shot: ZeroShot, keys: Array | None
    ) -> PromptedVision:
        """Encode images by the prompted image tower.  learned: t (C, E) or (B, C, E)."""
        config, tower = self.config, self._towers(vision=keys).vision
        layers = self.clip_config.vision.layers
        last, before_cavpt = layers - 1, visual_layers(self.clip_config, config)
        x, extra_kv, layer = tower.embed(self._pixels(images)), None, 0
        if config.visual_length and before_cavpt:
            tokens = self.visual_tokens()[:, None].astype(self.dtype)  # for all images
            if config.ln_pre:
                tokens = tokens.at[0].set(tower.ln_pre(tokens[0]))
            # Tokens whose outputs are dropped before the next layer are extra key/value tokens.
            # Those of layer J_v that stay join the sequence. Only the class token leaves the last
            # layer, so tokens of that layer need not join.
            stay = 0 < config.visual_depth < layers
            layer = min(len(tokens) - stay, last)
            x = tower.blocks(x, 0, layer, tokens[:layer])
            if stay:
                joining = broadcast(tokens[-1], (x.shape[0], *tokens.shape[2:]))
                x = jnp.concatenate([x, joining], axis=1)
            elif len(tokens) > last:
                extra_kv = tokens[last]
        x = tower.blocks(x, layer, min(before_cavpt, last))
        if not config.top_k:
            return PromptedVision(*tower.last_block(x, extra_kv))

        gather = jax.vmap(deterministic_gather) if learned.ndim == 3 else deterministic_gather
        likeliest = gather(learned, zero_shot.indices)
        auxiliary, class_attention = [], []
        for layer in range(before_cavpt, last + 1):
            prompts = self._class_prompts(layer - before_cavpt, x, likeliest)
            auxiliary.append(prompts.auxiliary_logits)
            class_attention.append(prompts.attention)
            if layer < last:
                x = tower.blocks(x, layer, layer + 1, prompts.tokens[None])
        outputs = tower.last_block(x, prompts.tokens)
        return PromptedVision(*outputs, jnp.stack(auxiliary, 1), jnp.stack(class_attention, 1))

    def _class_prompts(self, index: int, x: Array, features: Array) -> ClassPrompts:
        """Return the class prompts of the layer with this index among those with CAVPT."""
        stacked: Params = self.prompts.get_variable("params", "cavpt")
        params = jax.tree.map(lambda w: w[index], stacked)
        # The classes of the training, which need not be those of this evaluation.
        classes = params["classifier"]["kernel"].shape[-1]
        module = ClassAwarePrompt(classes, self.dtype, parent=None)
        return jax.jit(module.apply)({"params": params}, x, features)

    def _pixels(self, images: Array) -> Array:
        return self.clip_config.preprocessing.normalize(images)


class LearnedPrompts(nn.Module):
    """The learned parts: a submodule each, and arrays of CAVPT, the weights and the classifier."""

    clip_config: CLIPConfig
    config: PromptConfig

    def setup(self) -> None:
        for name, module in part_modules(self.clip_config, self.config).items():
            setattr(self, name, module)


def part_modules(clip: CLIPConfig, config: PromptConfig) -> dict[str, nn.Module]:
    """Return the modules of the learned parts, except CAVPT's, by parameter name."""
    parts: dict[str, nn.Module] = {}
    text_width, depth = clip.text.width, visual_depth(clip, config)
    if config.text_length:
        classes = config.classes if config.class_specific else None
        parts["text"] = TextPrompt(config.text_length, config.text_depth, text_width, classes)
    if config.coupled:
        parts["coupling"] = Coupling(depth, text_width, clip.vision.width)
    elif config.visual_length and depth:
        parts["visual"] = VisualPrompt(depth, config.visual_length, clip.vision.width)
    if config.conditioned:
        parts["meta_net"] = MetaNet(clip.embed_dim, text_width)
    return parts


def init_prompts(
    model: PromptedCLIP,
    key: Array,
    context_start: np.ndarray | None = None,
    frozen: Params | None = None,
) -> Prompts:
    """Return new prompts, float32.

    Args:
      key: a key of jax.random.
      context_start: (n, D_t), embeddings of the words that the first layer's context starts from.
      frozen: CLIP's layer norms, which learned ones start from, see `init_weights`.
    """
    clip, config = model.clip_config, model.config
    text_key, visual_key, cavpt_key = jax.random.split(key, 3)
    z = jnp.zeros((1, clip.embed_dim))
    arguments = {
        "text": (text_key,),
        "visual": (visual_key,),
        "coupling": (visual_key, jnp.zeros((config.text_depth, 1, clip.text.width))),
        "meta_net": (jax.random.fold_in(text_key, 1), z),
    }
    prompts: Prompts = {
        name: module.init(*arguments[name])["params"]
        for name, module in part_modules(clip, config).items()
    }
    if context_start is not None and config.text_length:
        context = prompts["text"]["context"]
        prompts["text"] = {"context": context.at[0].set(jnp.asarray(context_start, context.dtype))}
    if config.top_k:
        x = jnp.zeros((1, 1, clip.vision.width))
        module = ClassAwarePrompt(config.classes)
        keys = jax.random.split(cavpt_key, clip.vision.layers - visual_layers(clip, config))
        prompts["cavpt"] = jax.vmap(lambda k: module.init(k, x, z[None])["params"])(keys)
    if config.weights.kind:
        own = jax.random.fold_in(key, 3)
        prompts["weights"] = init_weights(config.weights, clip, own, frozen)
    # Also if JAX's default is float64.
    float32: Prompts = jax.tree.map(lambda x: x.astype(jnp.float32), prompts)
    return float32


def visual_layers(clip: CLIPConfig, config: PromptConfig) -> int:
    """Return the number of leading layers with visual tokens: those before CAVPT."""
    return config.first_layer - 1 if config.top_k else clip.vision.layers


def visual_depth(clip: CLIPConfig, config: PromptConfig) -> int:
    """Return J_v, the number of leading layers with visual tokens of their own."""
    return config.visual_depth or visual_layers(clip, config)


def keys_of_rows(key: Array, texts: PackedTexts, axis: str | None) -> Array:
    """Return a key for each row of packed texts that this device encodes, see `local_rows`."""
    rows, first = texts.tokens.shape[0], jnp.int32(0)
    if axis is not None:
        rows = -(-rows // jax.lax.axis_size(axis))
        first = rows * jax.lax.axis_index(axis)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def cosines(images: Array, texts: Array) -> Array:
    """Return the products (B, C) of images (B, E) and texts (C, E), or (B, C, E) of each image."""
    return images @ texts.T if texts.ndim == 2 else jnp.einsum("be,bce->bc", images, texts)
