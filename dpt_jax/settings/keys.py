"""Every settings key, once: default, range, help, and whether a run may change it."""

import enum
from typing import NamedTuple

from dpt_jax.data.catalogue import DEFAULT_DATASET
from dpt_jax.methods import COSINE, L1, METHODS

Value = int | float | bool | str | None


class Resume(enum.Enum):
    """Whether a run that has started may go on with another value of a key."""

    FREE = "yes"  # its result does not depend on it
    ASKED = "with --allow_changes"
    BOUND = "no"  # the prompts are made for it


class Key(NamedTuple):
    """One key. least: the smallest value of a number."""

    name: str
    default: Value
    help: str
    least: float | None = None
    choices: tuple[str, ...] = ()
    resume: Resume = Resume.ASKED

    @property
    def kind(self) -> type:
        """Return the type of its values; the key without a default is a whole number."""
        return int if self.default is None else type(self.default)

    @property
    def range(self) -> str:
        """Return the values that the key takes, in words."""
        if self.choices:
            return ", ".join(self.choices)
        kind = {int: "whole number", float: "number", bool: "true or false", str: "text"}[self.kind]
        return kind if self.least is None else f"{kind}, at least {self.least:g}"


FREE, BOUND = Resume.FREE, Resume.BOUND

SCHEMA: tuple[Key, ...] = (
    Key(
        "method",
        "dpt",
        "Method, which says what is learned; set by --config=configs/METHOD.py.",
        choices=tuple(METHODS),
        resume=BOUND,
    ),
    Key("seed", 1, "Seed of the few-shot sample, the first prompts and the augmentation.", least=0),
    Key(
        "dtype",
        "auto",
        "Type that the model computes in; auto is float32 on CPU, else bfloat16.",
        choices=("auto", "float32", "bfloat16"),
    ),
    Key("init_from", "", "Workdir or prompt file whose prompts the run starts from.", resume=BOUND),
    Key(
        "clip.weights",
        "openai/clip-vit-base-patch32",
        "CLIP: a hub id, a folder, a weight file, or tiny-clip, which is bundled.",
        resume=FREE,
    ),
    Key(
        "dataset.name",
        DEFAULT_DATASET,
        "Dataset; set by --config=configs/METHOD.py:NAME.",
        resume=BOUND,
    ),
    Key(
        "dataset.source",
        "folder",
        "Layout of the images: class folders, CoOp's, or TFDS's.",
        choices=("folder", "coop", "tfds"),
    ),
    Key("dataset.root", "", "Folder of the images (of TFDS: its data_dir).", resume=FREE),
    Key("dataset.sample", "", "File that lists the images to train on, instead of a drawn sample."),
    Key("dataset.shots", 16, "Training images per class; -1 takes all."),
    Key(
        "dataset.classes",
        "all",
        "All classes, or the base or the new half of them.",
        choices=("all", "base", "new"),
        resume=BOUND,
    ),
    Key(
        "dataset.template",
        "a photo of a {}.",
        "Text of a class for plain CLIP; several, separated by |, are averaged.",
    ),
    Key(
        "dataset.on_error",
        "raise",
        "What an unreadable image does: stop the run, or be left out.",
        choices=("raise", "skip"),
        resume=FREE,
    ),
    Key(
        "dataset.workers", 0, "Processes that decode images; 0 uses threads.", least=0, resume=FREE
    ),
    Key(
        "text_prompt.length",
        16,
        "Context tokens of the text prompt.",
        least=1,
        resume=BOUND,
    ),
    Key(
        "text_prompt.depth",
        1,
        "Text layers that get context tokens of their own; the last carry on through those behind.",
        least=1,
        resume=BOUND,
    ),
    Key("text_prompt.class_specific", False, "Learn one context per class.", resume=BOUND),
    Key(
        "text_prompt.conditioned",
        False,
        "Add to the context what a small network computes from the image.",
        resume=BOUND,
    ),
    Key(
        "text_prompt.class_position",
        "end",
        "Place of the class name in the text.",
        choices=("end", "middle", "front"),
        resume=BOUND,
    ),
    Key(
        "text_prompt.init",
        "",
        "Words that the context starts from; they set its length.",
        resume=BOUND,
    ),
    Key(
        "text_prompt.fixed_words",
        False,
        "Learn text_prompt.length of these words only, the first; the others stay as they are.",
        resume=BOUND,
    ),
    Key(
        "visual_prompt.length",
        10,
        "Visual prompt tokens per layer.",
        least=1,
        resume=BOUND,
    ),
    Key(
        "visual_prompt.depth",
        -1,
        "Image layers that get tokens of their own, of which the last carry on through the layers "
        "behind; -1 is all before the class-aware prompts, and none carries on.",
        resume=BOUND,
    ),
    Key(
        "visual_prompt.ln_pre",
        False,
        "Pass the first layer's tokens through the layer norm before the first block, as patches.",
        resume=BOUND,
    ),
    Key(
        "visual_prompt.coupled",
        False,
        "Compute the visual tokens from the context, by a linear layer for each layer.",
        resume=BOUND,
    ),
    Key(
        "cavpt.top_k",
        10,
        "Classes that class-aware prompts are computed for.",
        least=1,
        resume=BOUND,
    ),
    Key(
        "cavpt.first_layer",
        -1,
        "First layer with class-aware prompts, from 1; -1 is the last.",
        resume=BOUND,
    ),
    Key("loss.alpha", 0.3, "Weight of the auxiliary loss of the class-aware prompts.", least=0),
    Key(
        "loss.guidance_epochs",
        30,
        "Epochs in which text and image are also trained apart.",
        least=0,
    ),
    Key(
        "loss.text_consistency",
        0.0,
        "Weight of the distance of the texts in the learned context to plain CLIP's.",
        least=0,
    ),
    Key(
        "loss.text_distance",
        COSINE,
        "That distance: 1 - cosine, or the mean over the absolute differences (l1).",
        choices=(COSINE, L1),
    ),
    Key(
        "loss.image_consistency",
        0.0,
        "Weight of the mean absolute difference of image features, prompted and plain.",
        least=0,
    ),
    Key(
        "loss.logit_consistency",
        0.0,
        "Weight of the divergence of the answers from plain CLIP's, divided by the classes.",
        least=0,
    ),
    Key(
        "loss.template",
        "",
        "Text of a class in plain CLIP for the consistencies; several, separated by |, are "
        "averaged as they are; none takes dataset.template.",
    ),
    Key("train.batch_size", 32, "Images per step, on all devices together.", least=1),
    Key("train.epochs", 60, "Epochs.", least=1),
    Key("train.augment", True, "Crop and mirror training images at random."),
    Key(
        "train.shift",
        0,
        "Most pixels by which training images, at the model's input size, are shifted at random, "
        "to each side; the edge is repeated.",
        least=0,
    ),
    Key(
        "train.visual_lr", 0.01, "Highest learning rate of visual and class-aware prompts.", least=0
    ),
    Key("train.text_lr", 0.002, "Highest learning rate of the text prompt.", least=0),
    Key("train.warmup_epochs", 10, "Epochs of warm-up of the visual side.", least=0),
    Key(
        "train.schedule_epochs",
        None,
        "Length of the cosine schedule; None is train.epochs.",
        least=1,
    ),
    Key(
        "train.average_mean",
        0.0,
        "Epoch around which the average lies that takes the place of the prompts at the end.",
        resume=BOUND,
    ),
    Key(
        "train.average_deviation",
        0.0,
        "Epochs that it spreads over, the deviation of its weights; 0 takes no average.",
        least=0,
        resume=BOUND,
    ),
    Key(
        "train.microbatch",
        0,
        "Images that a device takes at a time; 0 takes all: less memory, the same result.",
        least=0,
        resume=FREE,
    ),
    Key(
        "train.remat",
        "auto",
        "What the backward pass keeps: none recomputes nothing, blocks the most.",
        choices=("auto", "none", "matmuls", "blocks"),
        resume=FREE,
    ),
    Key(
        "train.skip_nonfinite",
        False,
        "Leave out a step whose loss, gradient or result is not finite, instead of stopping.",
        resume=FREE,
    ),
    Key(
        "eval.batch_size",
        100,
        "Test images per batch, on all devices together.",
        least=1,
        resume=FREE,
    ),
    Key("eval.save_logits", False, "Write predictions.npz.", resume=FREE),
    Key("checkpoint.every_steps", 100, "Steps between checkpoints.", least=1, resume=FREE),
    Key(
        "checkpoint.every_minutes",
        10.0,
        "Minutes between checkpoints; 0 goes by steps alone.",
        least=0,
        resume=FREE,
    ),
    Key("checkpoint.keep", 2, "Checkpoints that are kept, the newest.", least=1, resume=FREE),
)
KEYS: dict[str, Key] = {key.name: key for key in SCHEMA}
