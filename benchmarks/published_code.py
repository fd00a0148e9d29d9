"""Where the published PyTorch code of each method is, and its configuration of our settings.

That code is not part of this repository: a user clones it, and `benchmarks/README.md` says how.
"""

import pathlib
import types
from typing import NamedTuple

from ml_collections import ConfigDict

from benchmarks.random_clip import SIZES
from dpt_jax.errors import UserError
from dpt_jax.methods import PromptConfig


class Published(NamedTuple):
    """The code of one method.

    repository: on GitHub. commit: the one that was tried. module: of the trainer, in `folder` of
    the repository. texts: where the built model has plain CLIP's texts; "" if it has none.
    """

    repository: str
    commit: str
    module: str
    trainer: str
    texts: str = ""
    folder: str = ""

    @property
    def clone(self) -> str:
        """Return what `git clone` calls the folder."""
        return self.repository.rpartition("/")[2]


_COOP = "KaiyangZhou/CoOp", "ff61507c790454bce7c5052c3ac39e60772f1f89"
_MAPLE = "muzairkhattak/multimodal-prompt-learning", "69bce21ae8eda80ad6187534b2dce09cf6c59e17"
_PROMPTSRC = "muzairkhattak/PromptSRC", "bb95c77b634d63488f2cad81ff4a72d53bdd06d5"
_KGCOOP = "htyao89/KgCoOp", "c43ccc32c8739f64b165cfa205fcc6c0f5bb5b17"
_DPT = "fanrena/DPT", "11fef9084e2d0c0271612bb750fcbcba0ff80781"
PUBLISHED = {
    "coop": Published(*_COOP, "trainers.coop", "CoOp"),
    "cocoop": Published(*_COOP, "trainers.cocoop", "CoCoOp"),
    "kgcoop": Published(
        *_KGCOOP, "trainers.kgcoop", "KgCoOp", "prompt_learner.text_features", "KgCoOp"
    ),
    "vpt": Published(*_DPT, "trainers.VPT", "VPT", "text_features"),
    "vlp": Published(*_DPT, "trainers.VLP", "VLP", "text_features"),
    "ivlp": Published(*_MAPLE, "trainers.independentVL", "IVLP"),
    "promptsrc": Published(
        *_PROMPTSRC, "trainers.promptsrc", "PromptSRC", "prompt_learner.fixed_embeddings"
    ),
    "maple": Published(*_MAPLE, "trainers.maple", "MaPLe"),
    "dpt": Published(*_DPT, "trainers.DPT", "DPT", "text_features"),
}
# What the published codes call a CLIP of SIZES.
BACKBONES = {"vit-b-32": "ViT-B/32", "vit-b-16": "ViT-B/16", "vit-l-14": "ViT-L/14"}


def find(clone: pathlib.Path, method: str, clip: str, batch: int) -> pathlib.Path:
    """Return the folder of a clone that the trainer's module is imported from.

    Raise UserError where the method's code is not there, or cannot take such a step.
    """
    code, sizes = PUBLISHED[method], SIZES[clip]
    folder = clone / code.folder
    file = folder / f"{code.module.replace('.', '/')}.py"
    lacking = "is missing"
    if file.is_file():
        trains = f"class {code.trainer}(" in file.read_text(encoding="utf-8")
        lacking = "" if trains else f"has no trainer {code.trainer}"
    if lacking:
        raise UserError(
            f"{file} {lacking}, so this is not the published code of {method}: clone "
            f"https://github.com/{code.repository} and name its folder."
        )
    if method == "maple" and (sizes.text.width, sizes.vision.width) != (512, 768):
        raise UserError(
            f"--clip={clip}: the published code of maple has widths of 512 and 768 written into "
            "it; give vit-b-16 or vit-b-32."
        )
    if code.repository == _DPT[0] and batch == 1:
        raise UserError(
            f"--batch=1: the published code of {method} writes the attention of a single image to "
            "a file in every block, which would be timed too; give 2 or more."
        )
    return folder.resolve()


class Branch(types.SimpleNamespace):
    """A branch of their configuration, with what they call of yacs."""

    def clone(self) -> "Branch":
        """Return a copy, whose values may be set without the others'."""
        return Branch(**vars(self))

    def defrost(self) -> None:
        """Do nothing: all values may be set."""

    def freeze(self) -> None:
        """Do nothing: nobody sets a value by mistake."""


def configuration(config: ConfigDict, prompted: PromptConfig, clip: str) -> Branch:
    """Return our settings under the names of all the published codes, in float32.

    prompted: what `config` asks for on that CLIP of SIZES.
    """
    text, visual, loss, train = config.text_prompt, config.visual_prompt, config.loss, config.train
    words = {"CTX_INIT": text.init, "PREC": "fp32"}
    context = Branch(
        N_CTX=text.length,
        CSC=text.class_specific,
        CLASS_TOKEN_POSITION=text.class_position,
        W=loss.text_consistency,
        PROMPT_DEPTH=text.depth,
        **words,
    )
    both = Branch(
        N_CTX_TEXT=text.length,
        N_CTX_VISION=visual.length,
        PROMPT_DEPTH_TEXT=text.depth,
        PROMPT_DEPTH_VISION=visual.depth,
        TEXT_LOSS_WEIGHT=loss.text_consistency,
        IMAGE_LOSS_WEIGHT=loss.image_consistency,
        GPA_MEAN=train.average_mean,
        GPA_STD=train.average_deviation,
        **words,
    )
    size = SIZES[clip].image_size
    return Branch(
        TRAINER=Branch(
            COOP=context,
            COCOOP=context,
            MAPLE=context,
            IVLP=both,
            PROMPTSRC=both,
            VPT=Branch(N_CTX=visual.length),
            SELECTED_COVPT=Branch(CPN=prompted.top_k),
            TOPDOWN_SECOVPT=Branch(BOTTOMLIMIT=prompted.first_layer),
            ALPHA=loss.alpha,
        ),
        PRETRAIN=Branch(C=loss.guidance_epochs),
        # All but DPT's code has one rate; there the text prompt's is written into it.
        OPTIM=Branch(
            LR=train.visual_lr if visual.length else train.text_lr, MAX_EPOCH=train.epochs
        ),
        MODEL=Branch(BACKBONE=Branch(NAME=BACKBONES.get(clip, clip)), INIT_WEIGHTS=""),
        INPUT=Branch(SIZE=(size, size)),
        DATASET=Branch(NAME="ImageNet"),
    )
