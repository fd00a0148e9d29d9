"""DPT: text prompt, visual prompt and class-aware visual prompt.  All defaults are here."""

from ml_collections import ConfigDict, config_dict

from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED
from dpt_jax.errors import UserError


def get_config(dataset: str = "emoji") -> ConfigDict:
    """The published settings on a dataset: "emoji" and "emoji_noto" (embedded), "folder" (your own) or one of
    the paper's."""
    config = ConfigDict()
    config.seed = 1
    config.dtype = "auto"  # float32 on CPU, bfloat16 on GPU and TPU
    config.init_from = ""  # a workdir whose prompts this run starts from

    config.clip = ConfigDict()
    config.clip.weights = "openai/clip-vit-base-patch32"

    config.dataset = ConfigDict()
    config.dataset.name = dataset
    config.dataset.source = (
        "folder"  # of the paper's datasets: "coop" (its directory layout) or "tfds"
    )
    config.dataset.root = ""
    config.dataset.shots = 16  # images a class, -1 for all
    config.dataset.classes = "all"  # or "base", "new": a half of them
    config.dataset.template = "a photo of a {}."  # several, between "|", are averaged
    config.dataset.on_error = "raise"  # or "skip": leave out images that cannot be read
    config.dataset.workers = 0  # loader processes; 0: threads of this one

    config.text_prompt = ConfigDict()
    config.text_prompt.length = 16
    config.text_prompt.depth = 1  # layers that get context tokens of their own
    config.text_prompt.class_specific = False
    config.text_prompt.class_position = "end"  # or "middle", "front"
    config.text_prompt.init = ""  # words to start from; they set the length

    config.visual_prompt = ConfigDict()
    config.visual_prompt.length = 10

    config.cavpt = ConfigDict()
    config.cavpt.top_k = 10
    config.cavpt.first_layer = -1  # 1-based; -1 is the last layer, as published

    config.loss = ConfigDict()
    config.loss.alpha = 0.3
    config.loss.guidance_epochs = 30

    config.train = ConfigDict()
    config.train.batch_size = 32
    config.train.epochs = 60
    config.train.augment = True
    config.train.visual_lr = 0.01
    config.train.text_lr = 0.002
    config.train.warmup_epochs = 10
    config.train.schedule_epochs = config_dict.placeholder(int)  # None: epochs
    config.train.microbatch = (
        0  # images a device takes at a time, 0 for all: less memory, the same result
    )
    config.train.remat = (
        "auto"  # what the backward pass keeps: "none" (all of it), "matmuls" or "blocks" (least)
    )

    config.train.skip_nonfinite = (
        False  # leave out steps whose loss or gradient is not finite, instead of stopping
    )

    config.eval = ConfigDict()
    config.eval.batch_size = 100
    config.eval.save_logits = False

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.every_minutes = 10.0  # and after so many minutes; 0: by steps alone
    config.checkpoint.keep = 2

    if dataset in EMBEDDED:
        config.clip.weights = "tiny-clip"
        config.dataset.template = "a drawing of a {}."
        config.dataset.shots = 8
        # Measured on 64-pixel drawings: the published crops, down to 8 % of the area, leave too little of
        # them to learn from, and a random context is not worth the words in eight examples a class.
        config.text_prompt.init = "a drawing of a"
        config.train.augment = False
    elif dataset in CATALOGUE:
        benchmark = CATALOGUE[dataset]
        config.dataset.source = "coop"
        config.dataset.template = benchmark.template
        config.train.epochs = benchmark.epochs
        config.train.warmup_epochs = benchmark.warmup_epochs
        config.loss.guidance_epochs = benchmark.guidance_epochs
    elif dataset != "folder":
        raise UserError(
            f"configs: no dataset {dataset!r}; choose {' or '.join(EMBEDDED)} (embedded), folder (your own, with "
            f"--config.dataset.root=DIR) or one of {', '.join(CATALOGUE)}."
        )
    return config
