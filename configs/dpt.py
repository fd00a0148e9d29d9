"""DPT: text prompt, visual prompt and class-aware visual prompt.  All defaults are here."""

from ml_collections import ConfigDict, config_dict

from dpt_jax.data.catalogue import settings_of


def get_config(dataset: str = "emoji") -> ConfigDict:
    """Return the published settings on a dataset: "emoji" and "emoji_noto" (embedded), "folder"
    (your own) or one of the paper's."""
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
    config.dataset.sample = ""  # a file that lists the images to train on, instead of drawing them
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

    config.update_from_flattened_dict(settings_of(dataset))
    return config
