"""PromptedCLIP: one frozen CLIP and the prompts that are switched on.

Zero-shot, CoOp, VPT, VLP and DPT are this model with parts on or off.
Symbols as in the paper: t̂ and Z learned and frozen text features, z and f̂
image features of the plain and the prompted tower, s the temperature.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.preprocessing import normalize_pixels
from dpt_jax.clip.rows import take_rows
from dpt_jax.clip.text import TextLayout, share
from dpt_jax.clip.vision import LayerPrompts, Seen, VisionTower, no_memory
from dpt_jax.methods import PromptConfig
from dpt_jax.model.outputs import Held, Outputs, Plain, Texts, cosines
from dpt_jax.model.precision import exact
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.cavpt import ClassAwarePrompt
from dpt_jax.prompts.conditioning import MetaNet, conditioned, images_at_a_time
from dpt_jax.prompts.fit import check_fit
from dpt_jax.prompts.text import TextPrompt, initializer
from dpt_jax.prompts.visual import Coupling, VisualPrompt, layer_prompts

Array = jax.Array
Params = dict[str, Any]  # {"clip": frozen parameters, "prompts": learned ones}


@dataclasses.dataclass(frozen=True)
class PromptedCLIP:
    """Pure functions of params = {"clip": frozen parameters, "prompts": learned ones}."""

    clip: CLIPConfig
    prompts: PromptConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"  # what the backward pass keeps, see clip.blocks.KEPT

    def __post_init__(self) -> None:
        check_fit(self.clip, self.prompts, self.visual_layers, self.visual_depth)

    @property
    def visual_layers(self) -> int:
        """Return how many layers, from the first on, see P_l: those before CAVPT, or all."""
        return self.prompts.first_layer - 1 if self.prompts.top_k else self.clip.vision.layers

    @property
    def visual_depth(self) -> int:
        """Return how many layers, from the first on, have a P_l."""
        return self.prompts.visual_depth or self.visual_layers

    @property
    def joined_layers(self) -> int:
        """Return how many layers, up to the last one, have the visual tokens among the image's."""
        # Of the last layer the class token alone goes on, so there is nothing to carry on to.
        after = self.clip.vision.layers - self.prompts.visual_depth
        return after + 1 if self.prompts.visual_depth and after else 0

    @property
    def cavpt_layers(self) -> int:
        """Return how many layers, up to the last one, see class-aware prompts."""
        return self.clip.vision.layers - self.visual_layers

    def init(self, key: Array, context_start: np.ndarray | None = None) -> Prompts:
        """Return new prompts, float32.  context_start: (n, D_t), embeddings of words."""
        text_key, visual_key, cavpt_key = jax.random.split(key, 3)
        prompts: Prompts = {}
        config = self.prompts
        if config.text_length:
            prompts["text"] = self._text_prompt(initializer(context_start)).init(text_key)["params"]
        if config.coupled:
            context = jnp.zeros((config.text_depth, 1, self.clip.text.width))
            prompts["coupling"] = self._coupling().init(visual_key, context)["params"]
        elif config.visual_length and self.visual_layers:
            module = VisualPrompt(self.visual_depth, config.visual_length, self.clip.vision.width)
            prompts["visual"] = module.init(visual_key)["params"]
        if config.conditioned:
            z = jnp.zeros((1, self.clip.embed_dim))
            prompts["meta_net"] = self._meta_net().init(jax.random.fold_in(text_key, 1), z)[
                "params"
            ]
        if config.top_k:
            x = jnp.zeros((1, 1, self.clip.vision.width))
            t = jnp.zeros((1, 1, self.clip.embed_dim))
            keys = jax.random.split(cavpt_key, self.cavpt_layers)
            one_layer = ClassAwarePrompt(config.classes)
            prompts["cavpt"] = jax.vmap(lambda k: one_layer.init(k, x, t)["params"])(keys)
        return prompts

    def encode_texts(
        self,
        params: Params,
        layout: TextLayout,
        frozen: Array,
        axis: str | None = None,
        held: Array | None = None,
    ) -> Texts:
        """Return the text features of the classes.

        layout: the learned prompt's (ignored where there is no text prompt);
        frozen: (C, E) un-normalised features of the templates, see encode_plain.
        axis: the mapped axis of the devices that share the work. held: (C, E),
        un-normalised, what a loss holds the learned ones to.
        """
        plain, held = normalize(frozen), None if held is None else normalize(held)
        if self.prompts.conditioned:
            return Texts(plain, None, held, layout)
        learned = self.encode_learned(params, layout, axis) if self.prompts.text_length else frozen
        return Texts(plain, learned, held)

    @exact
    def encode_learned(self, params: Params, layout: TextLayout, axis: str | None = None) -> Array:
        """Return un-normalised features (C, E) of texts in the context, of no image."""
        context = self._text_prompt().apply({"params": params["prompts"]["text"]})
        return self._encode(params, layout, context, axis)

    @exact
    def encode_plain(self, params: Params, layout: TextLayout, axis: str | None = None) -> Array:
        """Return un-normalised text features (C, E) of the frozen CLIP.  axis: see encode_texts."""
        return self._encode(params, layout, None, axis)

    @exact
    def encode_for_images(self, params: Params, layout: TextLayout, features: Array) -> Array:
        """Return un-normalised features (B, C, E) of texts in the context of each image.

        features: (B, E), those of plain CLIP, of unit length. Images do not meet here, so any
        number of them may be taken at a time.
        """
        prompts = params["prompts"]
        added = jnp.asarray(self._meta_net().apply({"params": prompts["meta_net"]}, features))
        context = jnp.asarray(self._text_prompt().apply({"params": prompts["text"]}))
        contexts = conditioned(context, added)

        def encode(context: Array) -> Array:
            return self._encode(params, layout, context, None)

        images = features.shape[0]  # no number in a program that is exported for any
        at_a_time = images_at_a_time(images, layout.tokens.size)
        if at_a_time == images:
            return jax.vmap(encode)(contexts)
        return jax.lax.map(encode, contexts, batch_size=at_a_time)

    @exact
    def plain(self, params: Params, images: Array, texts: Texts) -> Plain:
        """Return what plain CLIP sees in images (B, H, W, 3): uint8, or float, normalised."""
        seen = self._clip(params, lambda clip: clip.vision(self.preprocess(images)))
        plain = self.plain_of(params, normalize(seen.features), texts)
        return plain._replace(attention=seen.attention)

    @exact
    def plain_features(self, params: Params, images: Array) -> Array:
        """Return z (B, E) alone of what `plain` returns, which no prompt and no class changes."""
        seen = self._clip(params, lambda clip: clip.vision(self.preprocess(images)))
        return normalize(seen.features)

    @exact
    def plain_of(self, params: Params, features: Array, texts: Texts) -> Plain:
        """Return what plain CLIP makes of images whose features z (B, E) are known."""
        logits = _scale(params) * features @ texts.frozen.T
        k = min(self.prompts.top_k, texts.frozen.shape[0])
        return Plain(features, logits, jax.lax.top_k(logits, k)[1] if k else None, None)

    @exact
    def __call__(
        self, params: Params, images: Array | None, texts: Texts, plain: Plain | None = None
    ) -> Outputs:
        """Return the outputs for images (B, H, W, 3).

        plain: what plain CLIP sees in them, if that is known already; where the image tower has no
        prompts, that is all of them that is needed, and images may be None.
        """
        config = self.prompts
        if plain is None:
            assert images is not None
            plain = self.plain(params, images, texts)
        scale = _scale(params)
        prompted, attention, auxiliary, class_attention = (
            plain.features,
            plain.attention,
            None,
            None,
        )
        own = texts.learned
        if own is None:
            assert texts.layout is not None
            own = self.encode_for_images(params, texts.layout, plain.features)
        if config.sees_prompts:
            assert images is not None

            def look(clip: CLIP) -> Seen:
                visual = self._visual_prompts(params["prompts"], clip.vision)
                classes = self._class_prompts(params, own, plain)
                return clip.vision(self.preprocess(images), [*visual, *classes])

            seen = self._clip(params, look)
            prompted, attention = normalize(seen.features), seen.attention
            if config.top_k:
                auxiliary, class_attention = (jnp.moveaxis(made, 0, 1) for made in seen.made[-1])
        learned = normalize(own)
        held = None
        if texts.held is not None:
            to_logits = scale * plain.features @ texts.held.T
            held = Held(learned, texts.held, plain.features, to_logits)
        return Outputs(
            logits=cosines(scale * prompted, learned if config.text_length else texts.frozen),
            zero_shot_logits=plain.logits,
            text_logits=cosines(scale * plain.features, learned),
            image_logits=scale * prompted @ texts.frozen.T,
            auxiliary_logits=auxiliary,
            indices=plain.indices,
            features=prompted,
            attention=attention,
            class_attention=class_attention,
            held=held,
        )

    def visual_tokens(self, prompts: Prompts) -> Array:
        """Return P (J_v, n_v, D_v) of a model with a visual prompt, float32, before ln_pre."""
        if not self.prompts.coupled:
            return prompts["visual"]["tokens"]
        params = {"params": prompts["coupling"]}
        return jnp.asarray(self._coupling().apply(params, prompts["text"]["context"]))

    def _visual_prompts(self, prompts: Prompts, tower: VisionTower) -> list[LayerPrompts]:
        """Return what the layers before CAVPT see of the visual prompt."""
        config = self.prompts
        if not self.visual_layers:
            return []
        if not config.visual_length:
            return [LayerPrompts(self.visual_layers, no_memory)]
        tokens = self.visual_tokens(prompts).astype(self.dtype)
        if config.ln_pre:
            tokens = tokens.at[0].set(tower.ln_pre(tokens[0]))
        return layer_prompts(tokens, self.visual_layers, carry_on=self.joined_layers > 0)

    def _class_prompts(self, params: Params, learned: Array, plain: Plain) -> list[LayerPrompts]:
        """Return what the layers from F on see of the class-aware prompts.

        learned: t (C, E), or (B, C, E).
        """
        if not self.prompts.top_k:
            return []
        take = jax.vmap(take_rows) if learned.ndim == 3 else take_rows
        looked_at = take(learned, plain.indices)
        cavpt = params["prompts"]["cavpt"]
        # Those of the training, which need not be the classes of this evaluation.
        classes = cavpt["classifier"]["kernel"].shape[-1]
        make = jax.jit(ClassAwarePrompt(classes, self.dtype).apply)
        return [
            LayerPrompts(self.cavpt_layers, lambda p, x: make({"params": p}, x, looked_at), cavpt)
        ]

    def _encode(self, params: Params, layout: TextLayout, context: Any, axis: str | None) -> Array:
        if axis is None:
            return self._clip(params, lambda clip: clip.text(layout, context))
        # Each device encodes some of the rows: with many classes and few images a device, texts
        # are most of a step.
        own = self._clip(params, lambda clip: clip.text.rows(share(layout, axis), context))
        ends = jax.lax.all_gather(own, axis, tiled=True)
        return ends.reshape(-1, ends.shape[-1])[jnp.asarray(layout.order)]

    def _coupling(self) -> Coupling:
        return Coupling(self.visual_depth, self.clip.text.width, self.clip.vision.width)

    def _meta_net(self) -> MetaNet:
        return MetaNet(self.clip.embed_dim, self.clip.text.width)

    def _text_prompt(self, init: Any = None) -> TextPrompt:
        config = self.prompts
        classes = config.classes if config.class_specific else None
        extra = {} if init is None else {"context_init": init}
        return TextPrompt(
            config.text_length, config.text_depth, self.clip.text.width, classes, **extra
        )

    def preprocess(self, images: Array) -> Array:
        """Return uint8 images (B, H, W, 3) as the CLIP takes them; float images as they are."""
        return normalize_pixels(images, self.clip.preprocessing)

    def _clip(self, params: Params, function: Any) -> Any:
        return CLIP(self.clip, self.dtype, self.remat).apply(
            {"params": params["clip"]}, method=function
        )


def _scale(params: Params) -> Array:
    return jnp.exp(params["clip"]["logit_scale"].astype(jnp.float32))
