"""A trained classifier as one compiled function in a file, to be run without this package."""

import importlib.resources
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax import distributed
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
    """Return the program: images (b, size, size, 3) uint8 to probabilities (b, C) float32.

    It takes any b, and runs on any of PLATFORMS. Image tower, prompts and text features are
    constants of the program; it has a text tower only where the texts depend on the image.
    """
    model = predictor.model
    size = model.clip_config.image_size
    predictor.predict(np.zeros((1, size, size, 3), np.uint8))  # raises if it is not finite
    used = ["vision", "logit_scale", *(["text"] if model.config.conditioned else [])]
    clip = {name: predictor.pretrained.params[name] for name in used}
    params = {"clip": distributed.to_host(clip), "prompts": predictor.prompts}
    params, texts = jax.tree.map(jnp.asarray, (params, predictor.texts))

    def probabilities(images: jax.Array) -> jax.Array:
        outputs: Outputs = model.apply({"params": params}, images, texts)  # type: ignore[assignment]
        return jax.nn.softmax(outputs.logits)

    size = model.clip_config.image_size
    shape = jax.export.symbolic_shape(f"b, {size}, {size}, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)


def write(predictor: "Predictor", folder: epath.Path) -> list[epath.Path]:
    """Write the program, a description, and an example that runs it; return the files."""
    resize = predictor.model.clip_config.preprocessing.resize
    about: dict[str, Any] = {
        "classnames": list(predictor.classnames),
        "image_size": predictor.model.clip_config.image_size,
        "method": predictor.model.config.method,
        "backbone": predictor.config.clip.weights,
        "dtype": np.dtype(predictor.model.dtype).name,
        # What jax.export promises: https://docs.jax.dev/en/latest/export/export.html
        "read_by": f"JAX {jax.__version__} and what is released in the half year after it",
        "preprocessing": predictor.model.clip_config.preprocessing.to_dict(),
        "input": f"uint8 (b, image_size, image_size, 3), RGB: {_INPUT[resize]}; mean and std are "
        "the program's own",
        "output": "float32 (b, classes), probabilities in the order of classnames",
    }
    files = [folder / name for name in (PROGRAM, ABOUT, EXAMPLE)]
    files[0].write_bytes(export(predictor).serialize())
    files[1].write_text(
        json.dumps(about, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
        errors="backslashreplace",
    )
    example = importlib.resources.files("dpt_jax") / "assets" / EXAMPLE
    files[2].write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    return files
