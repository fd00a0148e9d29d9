"""A trained classifier as one compiled function in a file, which runs without this package."""

import importlib.resources
import json
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax import distributed
from dpt_jax.io import write_whole
from dpt_jax.model import Outputs

if TYPE_CHECKING:
    from dpt_jax.predictor.predictor import Predictor

PROGRAM, ABOUT, EXAMPLE = "classifier.jax", "classifier.json", "classify.py"
PLATFORMS = ("cpu", "cuda", "tpu")
_INPUT = {
    "crop": "shorter side to image_size, then the centre square",
    "squash": "both sides to image_size",
}


def export(predictor: "Predictor") -> jax.export.Exported:
    """Compile the classifier for any of PLATFORMS and any batch size b.

    Image tower, prompts and text features are constants. Only if the texts depend on the image, it
    has a text tower.

    Returns:
      From images (b, size, size, 3) uint8 to probabilities (b, C) float32.

    Raises:
      UserError: The classifier's logits are not finite.
    """
    model = predictor.model
    size = model.clip_config.image_size
    predictor.predict_proba(np.zeros((1, size, size, 3), np.uint8))  # checks that it is finite
    used = ["vision", "logit_scale", *(["text"] if model.config.conditioned else [])]
    clip = {name: predictor.pretrained.params[name] for name in used}
    params = {"clip": distributed.to_host(clip), "prompts": predictor.merged_prompts}
    params, texts = jax.tree.map(jnp.asarray, (params, predictor.texts))

    def probabilities(images: jax.Array) -> jax.Array:
        outputs: Outputs = model.apply({"params": params}, images, texts)  # type: ignore[assignment]
        return jax.nn.softmax(outputs.logits)

    shape = jax.export.symbolic_shape(f"b, {size}, {size}, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)


def write(predictor: "Predictor", folder: epath.Path) -> list[epath.Path]:
    """Write the program, a description, and an example that runs it; return the files."""
    preprocessing = predictor.model.clip_config.preprocessing
    about = {
        "classnames": list(predictor.classnames),
        "image_size": predictor.model.clip_config.image_size,
        "method": predictor.config.method,
        "backbone": predictor.config.clip.weights,
        "dtype": np.dtype(predictor.model.dtype).name,
        # The promise of jax.export: https://docs.jax.dev/en/latest/export/export.html
        "read_by": f"JAX {jax.__version__} and releases of the half year after it",
        "preprocessing": preprocessing.to_dict(),
        "input": f"uint8 (b, image_size, image_size, 3), RGB: {_INPUT[preprocessing.resize]}; the "
        "program normalises by mean and std",
        "output": "float32 (b, classes), probabilities in the order of classnames",
    }
    example = importlib.resources.files("dpt_jax") / "assets" / EXAMPLE
    contents = {
        PROGRAM: bytes(export(predictor).serialize()),
        # A name that is not Unicode becomes one of JSON's escapes.
        ABOUT: f"{json.dumps(about, indent=2, ensure_ascii=False)}\n".encode(
            errors="backslashreplace"
        ),
        EXAMPLE: example.read_bytes(),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]
