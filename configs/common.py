"""Every configuration key with its default. The defaults are DPT's published values.

A method's file begins with `get_config`, sets the method's own values, and ends with `on_dataset`,
which sets those of a dataset. `dpt-jax settings` prints the keys and comments below.
"""

from ml_collections import ConfigDict

from dpt_jax.data.catalogue import DEFAULT_DATASET, EMBEDDED, settings_of
from dpt_jax.errors import UserError
from dpt_jax.io import ASSETS

FEW_SHOT, BASE_TO_NEW = "few-shot", "base-to-new"
CROSS_DATASET, DOMAIN_SHIFT = "cross-dataset", "domain-generalization"
PROTOCOLS = (FEW_SHOT, BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT)

# Tip-Adapter's ImageNet templates, which other methods use too, and its alpha for each dataset.
TIP_TEMPLATES = (
    "itap of a {}.|a bad photo of the {}.|a origami {}.|a photo of the large {}."
    "|a {} in a video game.|art of the {}.|a photo of the small {}."
)
TIP_ALPHAS = {
    **dict.fromkeys(("dtd", "eurosat"), 2.0),
    **dict.fromkeys(("caltech101", "stanford_cars", "ucf101"), 3.0),
    "fgvc_aircraft": 5.0,
    "oxford_flowers": 10.0,
}

# Learning rates of classifiers on the bundled CLIP. Its temperature is 14, and published rates are
# for 100: a step of SGD changes logits by the square of the temperature.
TINY_CLIP_LR = {
    "zslp": 5.0,
    "clip_adapter": 0.1,
    "taskres": 0.1,
    "tip_adapter_f": 0.01,
}


def get_config() -> ConfigDict:
    """Return all keys at their defaults."""
    config = ConfigDict()
    # Method, which decides what is learned. Each file of configs/ sets its own.
    config.method = "dpt"
    # Seed of the few-shot sample, the initial prompts and the augmentation.
    config.seed = 1
    # Data type of the computation: auto, float32 or bfloat16. auto is float32 on a CPU and bfloat16
    # on other devices.
    config.dtype = "auto"
    # Workdir or prompt file whose prompts the training starts from.
    config.init_from = ""

    config.clip = ConfigDict()
    # CLIP: a hub id, OpenAI's name (ViT-B/16), a folder, a weight file, or the bundled tiny-clip.
    config.clip.weights = "openai/clip-vit-base-patch32"

    config.dataset = ConfigDict()
    # Dataset: digits, emoji or emoji_noto (bundled), folder (your own images), or one of the
    # paper's. --config=configs/METHOD.py:NAME sets it.
    config.dataset.name = "digits"
    # Layout of the images: folder (class folders), coop (CoOp's DATASETS.md) or tfds
    # (tensorflow-datasets).
    config.dataset.source = "folder"
    # Folder of the images, or a zip or tar archive of it, or a .csv or .jsonl list of your own
    # (path, label, perhaps split); data_dir of tensorflow-datasets.
    config.dataset.root = ""
    # Fraction of each class of your own images for testing, if they have no split; the same for
    # validation. 1 tests on all images.
    config.dataset.test_fraction = 0.2
    # List of your own images (path, label, split) instead of a random split, such as the split.csv
    # of another workdir.
    config.dataset.split = ""
    # Whether your own images are refused if they would give wrong accuracies: a class without
    # test images, or a test file that is also in training or validation.
    config.dataset.strict = True
    # File that lists the training images, instead of a random sample.
    config.dataset.sample = ""
    # Training images per class; -1 takes all.
    config.dataset.shots = 16
    # Whether the sample keeps the imbalance of the training images: one image of each class, and
    # the others at random, shots * classes in all. Otherwise each class has the same number.
    config.dataset.natural = False
    # Classes: all, base (the first half of them) or new (the other half).
    config.dataset.classes = "all"
    # Text of a class for frozen CLIP. Features of several texts, separated by |, are averaged.
    config.dataset.template = "a photo of a {}."
    # JSON file of texts of each class, {class name: [text, …]}, instead of dataset.template and
    # loss.template. Their normalised features are averaged. A run keeps the file's content.
    config.dataset.descriptions = ""
    # Unreadable images: raise ends the run, skip leaves them out.
    config.dataset.on_error = "raise"
    # Processes that decode images; 0 uses threads, one per core.
    config.dataset.workers = 0
    # GB of decoded images kept in memory, so that later epochs only crop and resize them. -1 is
    # half of the free memory, at most 16.
    config.dataset.cache_gb = -1.0

    config.text_prompt = ConfigDict()
    # Context tokens of a class.
    config.text_prompt.length = 16
    # Text layers with context tokens of their own; later layers reuse the last ones.
    config.text_prompt.depth = 1
    # Whether each class has a context of its own.
    config.text_prompt.class_specific = False
    # Whether a small network adds an offset to the context, computed from the image (CoCoOp).
    config.text_prompt.conditioned = False
    # Position of the class name in the text: end, middle or front.
    config.text_prompt.class_position = "end"
    # Words that the context is initialised from; their number of tokens sets its length.
    config.text_prompt.init = ""
    # Whether only the first text_prompt.length of these tokens are learned and the others fixed.
    config.text_prompt.fixed_words = False

    config.visual_prompt = ConfigDict()
    # Visual tokens of a layer.
    config.visual_prompt.length = 10
    # Image layers with visual tokens of their own; later layers reuse the last ones. -1 is all
    # layers before the class-aware prompts; these tokens are not reused.
    config.visual_prompt.depth = -1
    # Whether the first layer's tokens pass the layer norm before the first block, as patches do.
    config.visual_prompt.ln_pre = False
    # Whether the visual tokens are computed from the context, by one linear layer per layer
    # (MaPLe).
    config.visual_prompt.coupled = False

    config.cavpt = ConfigDict()
    # Number of the likeliest classes that class-aware prompts are computed for.
    config.cavpt.top_k = 10
    # First layer with class-aware prompts, counted from 1; -1 is the last.
    config.cavpt.first_layer = -1

    config.weights = ConfigDict()
    # Weights of CLIP that are learned: lora (low-rank changes), norms (layer norms of blocks) or
    # all_norms (all layer norms).
    config.weights.kind = "lora"
    # Rank of lora's changes.
    config.weights.rank = 2
    # Lora's changes are scaled by alpha / sqrt(rank).
    config.weights.alpha = 1.0
    # Matrices of attention that lora changes: some of q, k, v and o.
    config.weights.matrices = "qkv"
    # Dropout on the input of lora's changes, in training.
    config.weights.dropout = 0.25
    # Image layers with learned weights: all, none, or a range such as 1-4.
    config.weights.image_layers = "all"
    # Text layers with learned weights: all, none, or a range such as 1-4.
    config.weights.text_layers = "all"

    config.classifier = ConfigDict()
    # Classifier on the features, trained after the other parts: clap, clip_adapter, linear (2SFS),
    # lpplus, sstext, sstext_plus, sstext_confidence, taskres, tip_adapter, tip_adapter_f or zslp.
    # Empty for cosines with the texts.
    config.classifier.name = ""
    # Views of each training image that are encoded once; 0 encodes the image without augmentation.
    # train.augment and train.shift define a view.
    config.classifier.views = 0
    # Additional views that the epochs take in turn; -1 is one per epoch, and 0 reuses those above.
    config.classifier.train_views = 0
    # Smallest fraction of the area of an image that a view shows.
    config.classifier.least_area = 0.08
    # Epochs; 0 is the published number for these shots.
    config.classifier.epochs = 0
    # Steps per shot (dataset.shots), instead of classifier.epochs; 0 counts epochs.
    config.classifier.steps_per_shot = 0
    # Images per step; 0 takes all.
    config.classifier.batch_size = 256
    # Peak learning rate (lpplus computes its own).
    config.classifier.lr = 0.1
    # Cosine schedule: epochs (constant within an epoch, after one at 1e-5) or steps (from the peak
    # at the first step).
    config.classifier.schedule = "epochs"
    # Learning rate at the end of a schedule by steps.
    config.classifier.last_lr = 0.0
    # Weight decay.
    config.classifier.weight_decay = 0.0
    # Weight of the cache (tip_adapter, tip_adapter_f).
    config.classifier.alpha = 1.17
    # Sharpness of the cache.
    config.classifier.beta = 1.0
    # Weight of the adapted feature, mixed with CLIP's (clip_adapter).
    config.classifier.ratio = 0.2
    # Scale of the residual (taskres).
    config.classifier.residual_scale = 0.5
    # How settings are chosen: none takes those above; support holds out one image per class, takes
    # the best settings of a small grid (docs/method.md), and retrains on all images.
    config.classifier.select = "none"

    config.loss = ConfigDict()
    # Weight of the auxiliary loss of the class-aware prompts.
    config.loss.alpha = 0.3
    # Epochs in which each tower is also trained against the other tower's frozen features.
    config.loss.guidance_epochs = 30
    # Weight of the distance between learned and frozen texts.
    config.loss.text_consistency = 0.0
    # That distance: cosine (1 - cosine) or l1 (mean absolute difference).
    config.loss.text_distance = "cosine"
    # Weight of the mean absolute difference between prompted and frozen image features.
    config.loss.image_consistency = 0.0
    # Weight of the KL divergence between prompted and frozen predictions, averaged over classes.
    config.loss.logit_consistency = 0.0
    # Text of a class in frozen CLIP for these losses; features of several texts, separated by |,
    # are averaged unnormalised. Empty for dataset.template.
    config.loss.template = ""

    config.train = ConfigDict()
    # Optimizer: sgd (momentum 0.9) or adamw.
    config.train.optimizer = "sgd"
    # Weight decay of the learned parts.
    config.train.weight_decay = 0.0005
    # Images per step, over all devices.
    config.train.batch_size = 32
    # Whether an incomplete last batch of an epoch is kept.
    config.train.keep_partial = False
    # Epochs.
    config.train.epochs = 60
    # Steps per shot (dataset.shots), instead of train.epochs; 0 counts epochs.
    config.train.steps_per_shot = 0
    # Whether training images are cropped and mirrored at random.
    config.train.augment = True
    # Training images are shifted at random by up to this many pixels, at the model's input size, in
    # each direction; the edge is repeated.
    config.train.shift = 0
    # Peak learning rate of visual and class-aware prompts.
    config.train.visual_lr = 0.01
    # Peak learning rate of the text prompt.
    config.train.text_lr = 0.002
    # Peak learning rate of weights of CLIP.
    config.train.weights_lr = 0.0002
    # Cosine schedule: epochs (constant within an epoch, after the warm-up), or steps (from the peak
    # at the first step to 1e-6 at the last, without warm-up).
    config.train.schedule = "epochs"
    # Warm-up epochs of visual and class-aware prompts.
    config.train.warmup_epochs = 10
    # Epochs of the cosine schedule; 0 for train.epochs.
    config.train.schedule_epochs = 0
    # Centre, in epochs, of the Gaussian average that replaces the prompts at the end.
    config.train.average_mean = 0.0
    # Its standard deviation in epochs; 0 disables averaging.
    config.train.average_deviation = 0.0
    # Final prompts: last, or best (the epoch with the highest validation accuracy).
    config.train.keep = "last"
    # Images that a device takes at a time; 0 takes all. Fewer need less memory, and give the same
    # result.
    config.train.microbatch = 0
    # What the backward pass recomputes: none, matmuls (all except matrix products) or blocks (all
    # except the inputs of blocks, which needs the least memory).
    config.train.remat = "matmuls"
    # Whether a step with a non-finite loss, gradient or result is skipped instead of ending the
    # run.
    config.train.skip_nonfinite = False

    config.eval = ConfigDict()
    # Test images per batch, over all devices.
    config.eval.batch_size = 100
    # Whether predictions.npz is written.
    config.eval.save_logits = False

    config.checkpoint = ConfigDict()
    # Steps between checkpoints.
    config.checkpoint.every_steps = 100
    # Minutes between checkpoints; 0 counts only steps.
    config.checkpoint.every_minutes = 10.0
    # Number of newest checkpoints that are kept.
    config.checkpoint.keep = 2
    return config


def parse(arg: str) -> tuple[str, str]:
    """Return dataset and protocol of the argument DATASET[:PROTOCOL] of a configuration.

    The prompts of cross-dataset are also tested on the shifted ImageNets, so domain-generalization
    has the same values.

    Raises:
      UserError: The protocol is unknown.
    """
    dataset, _, protocol = arg.partition(":")
    protocol = protocol or FEW_SHOT
    if protocol not in PROTOCOLS:
        raise UserError(
            f"--config: {protocol!r} is not a protocol; choose one of {', '.join(PROTOCOLS)}."
        )
    return dataset or DEFAULT_DATASET, CROSS_DATASET if protocol == DOMAIN_SHIFT else protocol


def on_dataset(config: ConfigDict, dataset: str) -> ConfigDict:
    """Set the values of a dataset, which take precedence over those of a method.

    Raises:
      UserError: The dataset is unknown.
    """
    own = config.dataset.template
    config.dataset.name = dataset
    config.update_from_flattened_dict(settings_of(dataset))
    if "|" in own:  # a method's own templates of this dataset
        config.dataset.template = own
    if dataset in EMBEDDED:
        # The bundled CLIP has three text and four image layers, but published depths are for
        # twelve. It also knows few words of the templates of photos.
        for prompt in (config.text_prompt, config.visual_prompt):
            if prompt.depth > 0:
                prompt.depth = max(1, round(prompt.depth / 4))
        config.loss.template = ""
        name = config.classifier.name
        config.classifier.lr = TINY_CLIP_LR.get(name, config.classifier.lr)
    return config


def train_weights(config: ConfigDict) -> None:
    """Set the training that CLIP-LoRA and 2SFS share."""
    config.train.optimizer, config.train.weight_decay = "adamw", 0.01
    config.train.schedule = "steps"
    config.train.keep_partial = True


def of_photos(config: ConfigDict) -> ConfigDict:
    """Set CLIP's general template, unless the dataset is bundled and so not of photos."""
    if config.dataset.name not in EMBEDDED:
        config.dataset.template = "a photo of a {}."
    return config


def imagenet_templates() -> str:
    """Return the 60 of OpenAI's ImageNet templates that PromptSRC uses, separated by |."""
    lines = (ASSETS / "imagenet_templates.txt").read_text(encoding="utf-8").splitlines()
    return "|".join(lines)
