"""The loss of every method as PyTorch code usually computes it, for timing beside this package.

Written from the mathematics of docs/method.md, with the work that the published codes do: prompts
are tokens among the others, whose outputs are dropped or replaced; each class text has all its 77
tokens in every step; a context that depends on the image takes one image after the other. What
does not depend on learned parameters is computed once: target texts and embeddings of the names.

Shapes: B images, C classes, T tokens, D width, E joint embedding, K likeliest classes.
Prompts are the tree of `dpt_jax.prompts.Prompts`, of torch tensors.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dpt_jax.prompts import COSINE, PromptConfig
from dpt_jax.prompts.visual import ATTENTION_WIDTH


class Twin:
    """A frozen CLIPModel of transformers with the prompts of a PromptConfig."""

    def __init__(
        self,
        model: Any,
        config: PromptConfig,
        tokens: Tensor,
        frozen: Tensor,
        target: Tensor | None = None,
        alpha: float = 0.0,
        guided: bool = False,
    ) -> None:
        """Store the inputs, and compute what does not change in training.

        tokens: (C, 77), with any token in the context's places. frozen: Z (C, E), and target:
        t̄ (C, E), both of unit length. alpha, guided: see `dpt_jax.training.losses.losses`.
        """
        self._model, self._config = model, config
        self._text, self._vision = model.text_model, model.vision_model
        self._names = self._text.embeddings.token_embedding(tokens)
        self._ends = tokens.argmax(-1)  # end-of-text has the largest id
        hidden = torch.full((tokens.shape[1],) * 2, float("-inf"), device=tokens.device)
        self._mask = hidden.triu(1).to(self._names.dtype)[None, None]
        self._frozen, self._target, self._alpha = frozen, target, alpha
        self._guided = bool(guided and config.text_length and config.learns_images)
        self._scale = model.logit_scale.exp()

    def loss(self, prompts: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of images (B, 3, H, W), normalised, and their labels (B,)."""
        config, scale = self._config, self._scale
        with torch.no_grad():
            z = self._frozen_features(images) if self._needs_frozen else None
        if config.conditioned:
            return self._conditioned_loss(prompts, z, labels)
        t = self._texts(prompts["text"]["context"]) if config.text_length else None
        texts = self._frozen if t is None else F.normalize(t, dim=-1)
        features, auxiliary = z, None
        if config.learns_images:
            features, auxiliary = self._prompted(prompts, images, z, t)
        assert features is not None
        logits = scale * features @ texts.T
        total = F.cross_entropy(logits, labels)
        if self._guided:
            assert z is not None
            towers = (scale * z @ texts.T, scale * features @ self._frozen.T)
            total = 0.1 * total + sum(F.cross_entropy(each, labels) for each in towers)
        if auxiliary is not None:
            total = total + self._alpha * self._auxiliary_loss(auxiliary, z, labels)
        return total + self._consistency(texts, features, logits, z)

    @property
    def _needs_frozen(self) -> bool:
        config = self._config
        guided = self._guided or config.top_k or config.consistency.image
        return bool(guided or config.consistency.logits or not config.learns_images)

    def _conditioned_loss(self, prompts: Any, z: Any, labels: Tensor) -> Tensor:
        """Return the cross-entropy if the context, and so each of C texts, depends on the image."""
        net, context = prompts["meta_net"], prompts["text"]["context"]
        hidden = torch.relu(_linear(net["linear1"], z))
        logits = []
        for one, added in zip(z, _linear(net["linear2"], hidden), strict=True):
            texts = F.normalize(self._texts(context + added), dim=-1)
            logits.append(self._scale * one @ texts.T)
        return F.cross_entropy(torch.stack(logits), labels)

    def _texts(self, context: Tensor) -> Tensor:
        """Return t (C, E) of a context (depth, n, D), or (depth, C, n, D) of each class."""
        text = self._text
        x = self._with_context(self._names, context[0])
        x = x + text.embeddings.position_embedding.weight
        for layer, block in enumerate(text.encoder.layers):
            if 0 < layer < len(context):
                x = self._with_context(x, context[layer])
            x = block(x, self._mask)
        x = text.final_layer_norm(x)[torch.arange(len(x)), self._ends]
        return self._model.text_projection(x)

    @staticmethod
    def _with_context(x: Tensor, context: Tensor) -> Tensor:
        """Return texts (C, T, D) with this context after the start token of each."""
        n = context.shape[-2]
        return torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)

    def _frozen_features(self, images: Tensor) -> Tensor:
        """Return z (B, E)."""
        x = self._vision.pre_layrnorm(self._vision.embeddings(images))
        for block in self._vision.encoder.layers:
            x = block(x, None)
        return self._feature(x)

    def _prompted(
        self, prompts: Any, images: Tensor, z: Tensor | None, t: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return f̂ (B, E), and CAVPT's logits (B, layers, K, C), None without CAVPT."""
        config, vision = self._config, self._vision
        layers = len(vision.encoder.layers)
        before = config.first_layer - 1 if config.top_k else layers
        own = self._visual_tokens(prompts)
        x = vision.embeddings(images)
        own_tokens, auxiliary = x.shape[1], []
        if config.ln_pre:
            x = vision.pre_layrnorm(torch.cat([x, own[0].expand(len(x), -1, -1)], dim=1))
        else:
            x = vision.pre_layrnorm(x)
        for layer, block in enumerate(vision.encoder.layers):
            if layer >= before:
                x = x[:, :own_tokens]
                made, logits = self._class_prompts(prompts["cavpt"], layer - before, x, z, t)
                x = torch.cat([x, made], dim=1)
                auxiliary.append(logits)
            elif layer < len(own) and (layer or not config.ln_pre):
                x = torch.cat([x[:, :own_tokens], own[layer].expand(len(x), -1, -1)], dim=1)
            x = block(x, None)
        return self._feature(x), torch.stack(auxiliary, dim=1) if auxiliary else None

    def _visual_tokens(self, prompts: Any) -> Any:
        """Return P (J, n_v, D); empty without a visual prompt."""
        if self._config.coupled:
            coupling, context = prompts["coupling"], prompts["text"]["context"]
            pairs = zip(coupling["kernel"], coupling["bias"], context, strict=True)
            return [rows @ kernel + bias for kernel, bias, rows in pairs]
        return prompts["visual"]["tokens"] if "visual" in prompts else []

    def _feature(self, x: Tensor) -> Tensor:
        """Return the features (B, E), of unit length, of the outputs of the last block."""
        pooled = self._vision.post_layernorm(x[:, 0])
        return F.normalize(self._model.visual_projection(pooled), dim=-1)

    def _class_prompts(
        self, cavpt: Any, layer: int, x: Tensor, z: Any, t: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the class prompts (B, K, D) of one CAVPT layer and their logits (B, K, C)."""
        own = _slice(cavpt, layer)
        text = self._frozen if t is None else t
        c = _linear(own["class_projection"], text[self._classes(z)])
        m = torch.cat([x.detach(), own["global_tokens"].expand(len(x), -1, -1)], dim=1)
        scores = _linear(own["query"], c) @ _linear(own["key"], m).transpose(1, 2)
        a = torch.softmax(scores * ATTENTION_WIDTH**-0.5, dim=-1)
        o = a @ _linear(own["value"], m)
        auxiliary = _linear(own["classifier"], _layer_norm(own["ln_classifier"], o))
        return _layer_norm(own["ln_prompt"], o + c), auxiliary

    def _classes(self, z: Tensor) -> Tensor:
        """Return the K likeliest classes (B, K) of frozen CLIP."""
        logits = z @ self._frozen.T
        return logits.topk(min(self._config.top_k, logits.shape[1])).indices

    def _auxiliary_loss(self, auxiliary: Tensor, z: Any, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the class prompts of true classes."""
        hits = (self._classes(z) == labels[:, None])[:, None].expand(auxiliary.shape[:-1])
        if not hits.any():
            return torch.zeros(())
        wanted = labels[:, None, None].expand(auxiliary.shape[:-1])
        return F.cross_entropy(auxiliary[hits], wanted[hits])

    def _consistency(
        self, texts: Tensor, features: Tensor, logits: Tensor, z: Any
    ) -> Tensor | float:
        """Return the terms that regularise texts, images and logits towards frozen CLIP's."""
        weights, total = self._config.consistency, torch.zeros((), device=logits.device)
        if not self._config.has_consistency:
            return total
        assert self._target is not None
        if weights.text and weights.text_distance == COSINE:
            total = total + weights.text * (1 - (texts * self._target).sum(-1).mean())
        elif weights.text:
            total = total + weights.text * F.l1_loss(texts, self._target)
        if weights.image:
            total = total + weights.image * F.l1_loss(features, z)
        if weights.logits:
            log_q = F.log_softmax(self._scale * z @ self._target.T, dim=-1)
            log_p = F.log_softmax(logits, dim=-1)
            divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
            total = total + weights.logits * divergence / logits.numel()
        return total


def _linear(layer: Any, x: Tensor) -> Tensor:
    made = x @ layer["kernel"]
    return made + layer["bias"] if "bias" in layer else made


def _layer_norm(layer: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], layer["scale"], layer["bias"])


def _slice(tree: Any, layer: int) -> Any:
    """Return one layer of a tree whose tensors have a leading axis of layers."""
    if isinstance(tree, dict):
        return {name: _slice(branch, layer) for name, branch in tree.items()}
    return tree[layer]
