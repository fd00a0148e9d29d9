"""Which prompts fit which CLIP: its layers, its places for tokens, and each other."""

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.errors import UserError
from dpt_jax.methods import PromptConfig

OTHER_TOKENS = 4  # of a text with a learned context: its start, a name, the full stop, its end


def check_fit(
    clip: CLIPConfig, prompts: PromptConfig, visual_layers: int, visual_depth: int
) -> None:
    """Raise UserError where a CLIP has no such layers or places, or two parts do not go together.

    visual_layers: those before CAVPT. visual_depth: those of them that have tokens of their own.
    """
    layers, text_layers = clip.vision.layers, clip.text.layers
    if prompts.top_k and not 1 <= prompts.first_layer <= layers:
        raise UserError(
            f"cavpt.first_layer is {prompts.first_layer}, "
            f"but this CLIP's vision tower has layers 1 to {layers}."
        )
    if prompts.visual_length and prompts.visual_depth > visual_layers:
        raise UserError(
            f"visual_prompt.depth is {prompts.visual_depth}, but this CLIP's vision tower has "
            f"layers 1 to {layers}, and those before the class-aware prompts are {visual_layers}."
        )
    if prompts.text_length and not 1 <= prompts.text_depth <= text_layers:
        raise UserError(
            f"text_prompt.depth is {prompts.text_depth}, "
            f"but this CLIP's text tower has layers 1 to {text_layers}."
        )
    if prompts.coupled:
        _check_coupling(prompts, visual_depth)
    if prompts.text_length > clip.context_length - OTHER_TOKENS:
        raise UserError(
            f"text_prompt.length is {prompts.text_length} (with text_prompt.init, as many as its "
            f"words have tokens), but this CLIP's text tower takes {clip.context_length} tokens, "
            f"of which at least {OTHER_TOKENS} are not the prompt's."
        )


def _check_coupling(prompts: PromptConfig, visual_depth: int) -> None:
    if prompts.visual_length != prompts.text_length:
        raise UserError(
            "visual_prompt.coupled makes a visual token of each context token, but "
            f"visual_prompt.length is {prompts.visual_length} and the context has "
            f"{prompts.text_length}: give the same number."
        )
    if visual_depth != prompts.text_depth:
        raise UserError(
            "visual_prompt.coupled makes the visual tokens of a layer of the context of that "
            f"layer, but {visual_depth} layers have visual tokens and text_prompt.depth is "
            f"{prompts.text_depth}: give the same number."
        )
