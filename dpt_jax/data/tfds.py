"""The published datasets from tensorflow-datasets, prepared on first use and read by position.

TFDS's splits are not the published ones: results compare with each other, not with the papers. The
catalogue says how each split is used. Prepared data are read without TensorFlow.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import multiprocessing
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.records import Dataset, Example, Source, read_image
from dpt_jax.data.sampling import published_split
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, local_copy, reading, write_whole
from dpt_jax.logging import Progress, say


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Reads images of a prepared dataset by the path SPLIT/NUMBER.

    Attributes:
        directory: folder of the prepared dataset.
        sources: the serialised records of each split.
        features: parses the encoded image, or the encoded frames of a video, from a record.
    """

    directory: str
    sources: Mapping[str, Sequence[bytes]]
    features: Any

    def key(self, path: str) -> Hashable:
        """Return what identifies an image: the prepared dataset and its number there."""
        return self.directory, path

    def read(self, path: str) -> Image.Image:
        """Return an image as RGB, of a video the middle frame."""
        split, _, number = path.partition("/")
        (encoded,) = self.features.deserialize_example_np(self.sources[split][int(number)]).values()
        if not isinstance(encoded, bytes):
            encoded = encoded[len(encoded) // 2]
        name = f"{self.directory}, image {path},"
        return read_image(io.BytesIO(encoded), name, upright=False)


def read_tfds(name: str, root: str) -> Dataset:
    """Return a dataset of the catalogue.

    Args:
        name: name of the dataset.
        root: TFDS's data directory, or "" for TFDS's default.

    Raises:
        UserError: TFDS does not have the dataset, or it cannot be prepared.
    """
    use = CATALOGUE[name].tfds
    if use is None:
        raise UserError(f"tensorflow-datasets has no {name}: use --config.dataset.source=coop.")
    import tensorflow_datasets as tfds

    splits = [split for split in (use.train, use.val, use.test) if split]
    builder = _prepared(use.builder, _on_this_disk(use.builder, root, splits))
    features = builder.info.features
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    with reading(builder.data_dir, f"ArrayRecord data with the splits {', '.join(splits)}"):
        sources = {x: builder.as_data_source(x, deserialize_method=raw) for x in splits}
    labels: dict[str, list[int]] = {"": []}
    labels |= {split: _labels(builder, split, sources[split]).tolist() for split in splits}

    label_names = features["label"].names
    # ImageNet-A and -R have images of some labels only.
    present = {label_names[label] for own in labels.values() for label in own}
    named = use.classnames(label_names).items()
    classname_of = {label: classname for label, classname in named if label in present}
    order = {label_names.index(label): i for i, label in enumerate(classname_of)}
    train, val, test = (
        [Example(f"{split}/{i}", order[x]) for i, x in enumerate(labels[split]) if x in order]
        for split in (use.train, use.val, use.test)
    )
    if not use.test:
        train, val, test = published_split(train)
    # Images and frames are stored as bytes. As Text they stay encoded, and are left to PIL.
    encoded = tfds.features.Text()
    parse = (
        {"video": tfds.features.Sequence(encoded)} if "video" in features else {"image": encoded}
    )
    read = Records(str(builder.data_dir), sources, tfds.features.FeaturesDict(parse))
    return Dataset(read, tuple(classname_of.values()), train, val, test)


def _on_this_disk(name: str, root: str, splits: Sequence[str]) -> str:
    """Return the data directory, or a copy of its needed files from a bucket.

    array_record only reads from disks.
    """
    if not root or not is_remote(root):
        return str(as_path(root)) if root else ""
    folder = name.partition(":")[0]
    parts = {part for split in splits for part in split.split("+")}

    def wanted(path: str) -> bool:
        record = re.search(r"-(\w+)\.\w+-\d+-of-\d+$", path)
        return path.startswith(f"{folder}/") and (record is None or record[1] in parts)

    if not (as_path(root) / folder).is_dir():
        raise UserError(
            f"{root} has no {folder}: prepare it on a disk, and copy it there with `gcloud storage "
            f"cp -r ~/tensorflow_datasets/{folder} {root}`."
        )
    return str(local_copy(as_path(root), wanted, say))


def _prepared(name: str, root: str) -> Any:
    """Return the builder, after downloading and preparing its data if they are missing."""
    if name.startswith("ucf101"):  # TFDS asks TensorFlow for the type of a video's pixels
        _need_tensorflow(name)
        # The accelerators are JAX's.
        importlib.import_module("tensorflow").config.set_visible_devices([], "GPU")
    try:
        builder = _builder(name, root)
        if builder.is_prepared():
            return builder
        _need_tensorflow(name)  # before the download
        say(f"tensorflow-datasets downloads and prepares {name}.")
        # In another process, since TensorFlow takes the memory of accelerators for itself.
        with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(_prepare, name, root).result()
        return _builder(name, root)
    except UserError:
        raise
    except Exception as reason:  # no network, a moved page, a full disk: many types
        first_line = str(reason).strip().split("\n")[0][:200]
        raise UserError(
            f"tensorflow-datasets cannot prepare {name} in {root or '~/tensorflow_datasets'} "
            f"({type(reason).__name__}: {first_line}): it needs the network, for some datasets "
            "opencv-python, and for some archives that you put into downloads/manual there; "
            "--config.dataset.source=coop takes a download that you have."
        ) from reason


def _prepare(name: str, root: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _builder(name, root).download_and_prepare(file_format="array_record")


def _builder(name: str, root: str) -> Any:
    import tensorflow_datasets as tfds

    if name.startswith("ucf101"):  # TFDS does not find videos by name
        importlib.import_module("tensorflow_datasets.video.ucf101")
    return tfds.builder(name, data_dir=root or None)


def _need_tensorflow(name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tensorflow-datasets needs tensorflow for {name}: `pip install tensorflow`."
        )


def _labels(builder: Any, split: str, records: Sequence[bytes]) -> np.ndarray:
    """Return TFDS's label of every record, (N,) int32.

    Labels are inside the records, so this reads all of the data once. Then they are cached beside
    the data, if that folder is writable.
    """
    import tensorflow_datasets as tfds

    file = as_path(builder.data_dir) / f"labels-{split}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        if cached.shape == (len(records),):
            return cached
    only_label = tfds.features.FeaturesDict({"label": builder.info.features["label"]})
    labels = np.zeros(len(records), np.int32)
    with Progress(f"labels of {builder.name}, {split}", len(records)) as progress:
        for i in range(len(records)):
            labels[i] = only_label.deserialize_example_np(records[i])["label"]
            progress.advance()
    buffer = io.BytesIO()
    np.save(buffer, labels)
    with contextlib.suppress(UserError):
        write_whole(file, buffer.getvalue())
    return labels
