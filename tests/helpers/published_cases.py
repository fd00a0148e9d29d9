"""Parts and prompts of the published code's golden files, in the form of this package."""

from dpt_jax.convert.published import CAVPT, COUPLED, JOINT, TEXT, VISUAL, prompts_from_published
from dpt_jax.prompts.config import Consistency, PromptConfig


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


def config_of(meta):
    """Return the parts of a case, by the names that its code has for them."""
    kind = meta["kind"]
    if kind in ("DPT", "CoOp"):
        own = {"text_length": meta["n_ctx_text"], "class_specific": meta["csc"]}
        if kind == "DPT":
            own |= {"visual_length": meta["n_ctx_visual"], "top_k": meta["cpn"]}
            own["first_layer"] = meta["bottom_limit"]
    elif kind == "KgCoOp":
        own = {"text_length": meta["N_CTX"], "consistency": Consistency(text=meta["W"])}
    elif kind == "CoCoOp":
        own = {"text_length": meta["N_CTX"], "conditioned": True}
    elif kind == "MaPLe":
        length, depth = meta["N_CTX"], meta["PROMPT_DEPTH"]
        own = {"text_length": length, "text_depth": depth, "visual_length": length}
        own |= {"visual_depth": depth, "ln_pre": True, "coupled": True}
    else:
        own = {
            "text_length": meta["N_CTX_TEXT"],
            "text_depth": meta["PROMPT_DEPTH_TEXT"],
            "visual_length": meta["N_CTX_VISION"],
            "visual_depth": meta["PROMPT_DEPTH_VISION"],
            "ln_pre": True,
        }
    if kind == "PromptSRC":
        text, image = meta["TEXT_LOSS_WEIGHT"], meta["IMAGE_LOSS_WEIGHT"]
        own["consistency"] = Consistency(text, "l1", image, logits=1.0)
    return PromptConfig(classes=meta["C"], **own)
