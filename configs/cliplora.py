"""CLIP-LoRA: low-rank changes to the query, key and value matrices of both towers.

python main.py --config=configs/cliplora.py

The default, 16 shots of the bundled digits, gets 48.7 ± 3.5 %, and emoji at 4 shots
34.8 ± 2.2 % (five seeds each). See docs/measurements.md. The paper's datasets have not been
measured.

Values from MaxZanella/CLIP-LoRA, which uses "a photo of a NAME." on every dataset. Training grows
with the shots, so --config.dataset.shots=-1 needs --config.train.steps_per_shot=0 and epochs.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "cliplora"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.loss.guidance_epochs = 0
    common.train_weights(config)
    config.train.steps_per_shot = 500
    return common.of_photos(common.on_dataset(config, dataset))
