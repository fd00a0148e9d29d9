"""Tiny prepared copies of TFDS's datasets, with the builders' own features, labels and files.

    python -m tests.helpers.tfds_trees ROOT

A process of its own keeps TensorFlow, which preparing some of them imports, out of the tests'.
"""

import io
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dpt_jax.data.tfds import USES

PER_CLASS = 4
TWO_CLASSES = ["n01443537", "n01484850"]  # what stands for the two hundred of ImageNet-A and -R


def jpeg(shade: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (shade,) * 3).save(file, "JPEG")
    file.seek(0)
    return file


def examples(
    features: tfds.features.FeaturesDict, labels: list[str], split: str
) -> Iterator[tuple[str, dict]]:
    """PER_CLASS records of each label, as the builder's own features want them."""
    size = features["image"].shape
    for c, label in enumerate(labels):
        for i in range(PER_CLASS):
            shade, name = (7 * c + i) % 250, f"{label}/{split}_{i}.jpg"
            record = {"label": label}
            if size[0]:  # EuroSAT fixes it
                record["image"] = np.full(size, shade, np.uint8)
            else:
                record["image"] = jpeg(shade)
            for text in {"file_name", "filename", "image/file_name", "id"} & set(features):
                record[text] = name
            if "bbox" in features:
                record["bbox"] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
            if "head_bbox" in features:
                record |= {"head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "species": 0}
                record["segmentation_mask"] = np.zeros((9, 12, 1), np.uint8)
            yield name, record


def make(name: str, root: pathlib.Path) -> None:
    use = USES[name]
    builder = tfds.builder(use.builder, data_dir=root)
    features = builder.info.features
    of_two = name in ("imagenet_a", "imagenet_r")
    labels = TWO_CLASSES if of_two else features["label"].names
    splits = [
        part for split in (use.train, use.val, use.test) if split for part in split.split("+")
    ]
    builder._split_generators = lambda _: {
        split: examples(features, labels, split) for split in splits
    }
    builder.download_and_prepare(file_format="array_record")


if __name__ == "__main__":
    for dataset in USES:
        make(dataset, pathlib.Path(sys.argv[1]))
