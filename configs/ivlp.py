"""IVLP: separate context and visual tokens in the first layers of both towers.

python main.py --config=configs/ivlp.py

The default, 16 shots of the bundled digits, gets 28.4 ± 4.0 % (five seeds). See
docs/measurements.md. The paper's datasets have not been measured.

Values from muzairkhattak/multimodal-prompt-learning, MaPLe's repository. PromptSRC's has
text_prompt.length=4, visual_prompt.length=4, both depths 9, both learning rates 0.0025, and
train.epochs=20.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "ivlp"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.text_prompt.init = "a photo of a"
    config.text_prompt.length = 2
    config.text_prompt.depth = 12
    config.text_prompt.fixed_words = True
    config.visual_prompt.length = 2
    config.visual_prompt.depth = 12
    config.visual_prompt.ln_pre = True
    config.loss.guidance_epochs = 0
    config.train.batch_size = 4
    config.train.epochs = 5
    config.train.text_lr = 0.0035
    config.train.visual_lr = 0.0035
    config.train.warmup_epochs = 1
    return common.on_dataset(config, dataset)
