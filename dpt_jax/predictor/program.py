"""A trained classifier as one function in a JAX or ONNX file, which runs without this package."""

import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.io import ASSETS, write_whole
from dpt_jax.model import Outputs
from dpt_jax.predictor import Predictor

PROGRAM, ABOUT, EXAMPLE = "classifier.jax", "classifier.json", "classify.py"
PLATFORMS = ("cpu", "cuda", "tpu")
_INPUT = {
    "crop": "shorter side to image_size, then the centre square",
    "squash": "both sides to image_size",
}


def classifier_of(
    predictor: Predictor, dtype: DTypeLike
) -> tuple[Callable[[jax.Array], jax.Array], jax.ShapeDtypeStruct]:
    """Return a function from images to probabilities (b, C) float32, and the images' shape.

    Image tower, prompts and text features are constants. It has a text tower only if the texts
    depend on the image. The shape is (b, size, size, 3) uint8, for any b.
    """
    model = predictor.model.clone(dtype=dtype)
    size = model.clip_config.image_size
    predictor.predict_proba(np.zeros((1, size, size, 3), np.uint8))  # checks that it is finite
    used = ["vision", "logit_scale", *(["text"] if model.config.conditioned else [])]
    clip = {name: predictor.pretrained.params[name] for name in used}
    params = distributed.to_host({"clip": clip, "prompts": predictor.merged_prompts})
    params, texts = jax.tree.map(jnp.asarray, (params, predictor.texts))

    def probabilities(images: jax.Array) -> jax.Array:
        outputs: Outputs = model.apply({"params": params}, images, texts)  # type: ignore[assignment]
        return jax.nn.softmax(outputs.logits)

    shape = jax.export.symbolic_shape(f"b, {size}, {size}, 3")
    return probabilities, jax.ShapeDtypeStruct(shape, jnp.uint8)


def write(predictor: Predictor, folder: epath.Path) -> list[epath.Path]:
    """Write a program for any of PLATFORMS, a description and an example; return the files."""
    probabilities, shape = classifier_of(predictor, predictor.model.dtype)
    exported = jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(shape)
    about = {
        **describe(predictor, np.dtype(predictor.model.dtype).name),
        # The promise of jax.export: https://docs.jax.dev/en/latest/export/export.html
        "read_by": f"JAX {jax.__version__} and releases of the half year after it",
    }
    # A name that is not Unicode becomes one of JSON's escapes.
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    contents = {
        PROGRAM: bytes(exported.serialize()),
        ABOUT: text.encode(errors="backslashreplace"),
        EXAMPLE: (ASSETS / EXAMPLE).read_bytes(),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in contents]


def write_onnx(predictor: Predictor, file: epath.Path) -> None:
    """Write `classifier_of` in float32 as an ONNX file, with its description as metadata."""
    if predictor.model.config.conditioned:
        raise UserError(
            f"convert onnx: the context of {predictor.config.method} depends on the image, which "
            "jax2onnx does not convert: use `dpt-jax convert serve`."
        )
    try:
        import onnx_ir
        from jax2onnx import to_onnx
    except ImportError as reason:
        raise UserError("convert onnx needs jax2onnx: `pip install 'dpt-jax[onnx]'`.") from reason
    # It warns, with tracebacks, about its examples that cannot be imported.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    # While tracing, jax2onnx replaces Flax's modules by its own, which lose their parameters here.
    # So it gets a program that JAX has traced.
    probabilities, shape = classifier_of(predictor, jnp.float32)
    program = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(probabilities)(shape))
    model = to_onnx(lambda images: program(images)[0], [shape], return_mode="ir")
    model.graph.inputs[0].name, model.graph.outputs[0].name = "images", "probabilities"
    for key, value in describe(predictor, "float32").items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    write_whole(file, onnx_ir.to_proto(model).SerializeToString())


def describe(predictor: Predictor, dtype: str) -> dict[str, Any]:
    """Return the content of classifier.json, and of the metadata of an ONNX file."""
    preprocessing = predictor.model.clip_config.preprocessing
    return {
        "classnames": list(predictor.classnames),
        "image_size": predictor.model.clip_config.image_size,
        "method": predictor.config.method,
        "backbone": predictor.config.clip.weights,
        "dtype": dtype,
        "preprocessing": preprocessing.to_dict(),
        "input": f"uint8 (b, image_size, image_size, 3), RGB: {_INPUT[preprocessing.resize]}; the "
        "program normalises by mean and std",
        "output": "float32 (b, classes), probabilities in the order of classnames",
    }
