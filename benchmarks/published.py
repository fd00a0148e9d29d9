"""The published PyTorch code of each method: where it is, its settings, and our loss of its step.

That code is not part of this repository; benchmarks/README.md lists the clones and commits.
"""

import functools
import math
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from benchmarks.random_clip import SIZES, openai_tokenizer, published_settings
from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.files import Tensors, params_of, read_tensors
from dpt_jax.clip.packing import pack
from dpt_jax.config import prompt_config, templates
from dpt_jax.convert.reference import prompts_from_published
from dpt_jax.errors import UserError
from dpt_jax.model import PromptedCLIP, Texts, init_prompts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.text import context_tokens, plain_layout, prompted_texts
from dpt_jax.training.losses import Rows, count, losses


class Published(NamedTuple):
    """The code of one method.

    Attributes:
      repository: On GitHub.
      commit: The one that was tried.
      module: Of the trainer, in `folder` of the repository.
      trainer: Its class, or the function that trains.
      texts: Attribute of the built model with frozen CLIP's text features; "" if none.
      folder: Import root within the repository.
    """

    repository: str
    commit: str
    module: str
    trainer: str
    texts: str = ""
    folder: str = ""

    @property
    def clone(self) -> str:
        """Return the folder name that `git clone` chooses."""
        return self.repository.rpartition("/")[2]


_COOP = "KaiyangZhou/CoOp", "ff61507c790454bce7c5052c3ac39e60772f1f89"
_MAPLE = "muzairkhattak/multimodal-prompt-learning", "69bce21ae8eda80ad6187534b2dce09cf6c59e17"
_PROMPTSRC = "muzairkhattak/PromptSRC", "bb95c77b634d63488f2cad81ff4a72d53bdd06d5"
_KGCOOP = "htyao89/KgCoOp", "c43ccc32c8739f64b165cfa205fcc6c0f5bb5b17"
_DPT = "fanrena/DPT", "11fef9084e2d0c0271612bb750fcbcba0ff80781"
_CLIPLORA = "MaxZanella/CLIP-LoRA", "358f0d7361f59e66c0b2d0b672a3dafb143a759b"
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
    "cliplora": Published(*_CLIPLORA, "lora", "run_lora"),
}
# Names that the published code has for SIZES.
BACKBONES = {"vit-b-32": "ViT-B/32", "vit-b-16": "ViT-B/16", "vit-l-14": "ViT-L/14"}


def find(clone: pathlib.Path, method: str, clip: str, batch: int) -> pathlib.Path:
    """Return the import root of a clone.

    Raises:
      UserError: If the method's code is not there, or cannot take such a step.
    """
    code, sizes = PUBLISHED[method], SIZES[clip]
    folder = clone / code.folder
    file = folder / f"{code.module.replace('.', '/')}.py"
    if not file.is_file() or f" {code.trainer}(" not in file.read_text(encoding="utf-8"):
        raise UserError(
            f"{file} has no trainer {code.trainer}: clone https://github.com/{code.repository} "
            "and name its folder by --code."
        )
    if method == "maple" and (sizes.text.width, sizes.vision.width) != (512, 768):
        raise UserError(
            f"--clip={clip}: the published code of maple works only with widths of 512 and 768; "
            "give vit-b-16 or vit-b-32."
        )
    if code.repository == _DPT[0] and batch == 1:
        raise UserError(
            f"--batch=1: the published code of {method} writes the attention of a single image to "
            "a file, which would be timed too; give 2 or more."
        )
    return folder.resolve()


class Branch(types.SimpleNamespace):
    """A branch of a published configuration, with the methods of yacs that trainers call."""

    def clone(self) -> "Branch":
        """Return a copy."""
        return Branch(**vars(self))

    def defrost(self) -> None:
        """Do nothing: values can always be set."""

    def freeze(self) -> None:
        """Do nothing."""


class Counterpart:
    """A method of this package with its published settings, on a CLIP of SIZES."""

    def __init__(self, method: str, clip: str, names: Sequence[str]) -> None:
        """Set up the method.  names: of the classes."""
        self._clip, self._sizes = clip, SIZES[clip]
        self._config, tokenizer = published_settings(method, clip), openai_tokenizer()
        words = context_tokens(self._config.text_prompt.init, tokenizer)
        self._prompts = prompt_config(
            self._config, len(names), self._sizes.vision.layers, len(words)
        )
        if length := self._prompts.text_length:
            self._packed = pack(prompted_texts(names, tokenizer, length, fixed=words[length:]))
        else:
            template = templates(self._config)[0]
            self._packed = plain_layout([template.format(name) for name in names], tokenizer)
        self._model = PromptedCLIP(self._sizes, self._prompts)

    def configuration(self) -> Branch:
        """Return the settings under the names of each published code, in float32."""
        config, prompts = self._config, self._prompts
        text, visual, loss = config.text_prompt, config.visual_prompt, config.loss
        train = config.train
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
        backbone = BACKBONES.get(self._clip, self._clip)
        # Only DPT's code has two rates; there the text prompt's is a constant of the code.
        rate = train.visual_lr if visual.length else train.text_lr
        return Branch(
            TRAINER=Branch(
                COOP=context,
                COCOOP=context,
                MAPLE=context,
                IVLP=both,
                PROMPTSRC=both,
                VPT=Branch(N_CTX=visual.length),
                SELECTED_COVPT=Branch(CPN=prompts.top_k),
                TOPDOWN_SECOVPT=Branch(BOTTOMLIMIT=prompts.first_layer),
                ALPHA=loss.alpha,
            ),
            PRETRAIN=Branch(C=loss.guidance_epochs),
            OPTIM=Branch(LR=rate, MAX_EPOCH=train.epochs),
            MODEL=Branch(BACKBONE=Branch(NAME=backbone), INIT_WEIGHTS=""),
            INPUT=Branch(SIZE=(self._sizes.image_size,) * 2),
            DATASET=Branch(NAME="ImageNet"),
        )

    def learned(self) -> int:
        """Return the number of learned values."""
        return sum(math.prod(shape.shape) for shape in jax.tree.leaves(jax.eval_shape(self._new)))

    def _new(self) -> Prompts:
        return init_prompts(self._model, jax.random.key(0))

    def loss(
        self,
        weights: pathlib.Path,
        modules: dict[str, Tensors],
        texts: np.ndarray | None,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> float:
        """Return the loss of the first epoch.

        Args:
          weights: A file of CLIP with OpenAI's tensor names.
          modules: Learned tensors of each published module, by its name. None of CLIP-LoRA,
            whose changes start at zero.
          texts: Frozen CLIP's (C, E), or None if the loss needs none.
          images: (B, 3, H, W), float32, normalised.
          labels: (B,).
        """
        file, config = epath.Path(weights), self._prompts
        params = {
            "clip": params_of(read_tensors(file), self._sizes, file),
            "prompts": prompts_from_published(modules) if modules else self._new(),
        }
        frozen = jnp.ones((config.classes, self._sizes.embed_dim)) if texts is None else texts
        target = jnp.asarray(frozen) if config.has_consistency else None
        guidance = self._config.loss.guidance_epochs > 0
        terms = losses(config, self._config.loss.alpha, guidance)

        def total(params: Params, images: Array, labels: Array) -> Array:
            apply: Any = functools.partial(self._model.apply, {"params": params})
            texts = apply(Texts(self._packed, jnp.asarray(frozen), target), method="texts")
            outputs, weights = apply(images, texts), jnp.ones(len(labels))
            counts = count(outputs.zero_shot.indices, labels, weights)
            rows = Rows(labels, weights, *counts, guidance)
            return jnp.asarray(sum(loss(outputs, rows) for loss in terms.values()))

        return float(jax.jit(total)(params, images.transpose(0, 2, 3, 1), labels))
