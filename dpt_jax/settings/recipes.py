"""The published settings of each method, where they are not the schema's defaults (DPT's)."""

from collections.abc import Mapping

from dpt_jax.data.catalogue import EMBEDDED, settings_of
from dpt_jax.methods import METHODS
from dpt_jax.settings.keys import Value

# Of everything that adapts ViT-B/16 with the trainer of CoOp's code: one learning rate for all
# that is learned, an epoch of warm-up, and no loss but that of the logits.
RELATIVE: Mapping[str, Value] = {
    "clip.weights": "openai/clip-vit-base-patch16",
    "text_prompt.init": "a photo of a",
    "loss.guidance_epochs": 0,
    "train.warmup_epochs": 1,
}
# Tokens of their own in the first layers of both towers, as MaPLe's code has them for its methods.
JOINT: Mapping[str, Value] = {
    **RELATIVE,
    "text_prompt.length": 2,
    "text_prompt.fixed_words": True,
    "visual_prompt.length": 2,
    "visual_prompt.ln_pre": True,
    "train.batch_size": 4,
    "train.epochs": 5,
    "train.text_lr": 0.0035,
    "train.visual_lr": 0.0035,
}
RECIPES: dict[str, Mapping[str, Value]] = {
    "ivlp": {**JOINT, "text_prompt.depth": 12, "visual_prompt.depth": 12},
}
# The bundled CLIP has three and four layers where the published settings are for twelve.
QUARTERED = ("text_prompt.depth", "visual_prompt.depth")


def published(method: str, dataset: str) -> dict[str, Value]:
    """Return the settings by key of a method on a dataset that are not the defaults.

    Raise UserError for a name that no dataset has.
    """
    recipe = dict(RECIPES.get(method, {}))
    if dataset in EMBEDDED:
        for key in QUARTERED:
            if key in recipe:
                recipe[key] = max(1, round(int(recipe[key] or 0) / 4))
    return {**recipe, **settings_of(dataset), **METHODS[method].switched_off}
