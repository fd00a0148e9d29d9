"""MaPLe: a context in the first layers, and visual tokens that are computed from it.

python main.py --config=configs/maple.py

The default, 16 shots of the bundled digits, gets 28.8 ± 4.2 % (five seeds). See
docs/measurements.md. The paper's datasets have not been measured.

Values from muzairkhattak/multimodal-prompt-learning.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, protocol = common.parse(arg)
    config = common.get_config()
    config.method = "maple"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.text_prompt.init = "a photo of a"
    config.text_prompt.length = 2
    config.text_prompt.depth = 9
    config.text_prompt.fixed_words = True
    config.visual_prompt.length = 2
    config.visual_prompt.depth = 9
    config.visual_prompt.ln_pre = True
    config.visual_prompt.coupled = True
    config.loss.guidance_epochs = 0
    config.train.batch_size = 4
    config.train.epochs = 5
    config.train.text_lr = 0.0035
    config.train.visual_lr = 0.0035
    config.train.warmup_epochs = 1
    if protocol == common.CROSS_DATASET:
        config.text_prompt.depth = 3
        config.visual_prompt.depth = 3
        config.train.epochs = 2
        config.train.text_lr = 0.0026
        config.train.visual_lr = 0.0026
    return common.on_dataset(config, dataset)
