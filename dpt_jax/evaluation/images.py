"""The test images of an evaluation, read once for all evaluations of a process."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL

from dpt_jax import distributed
from dpt_jax.data import loader
from dpt_jax.data.dataset import Dataset, digest_of_examples
from dpt_jax.evaluation.kept import KeptBatch, KeptImages
from dpt_jax.evaluation.kept_on_disk import KeptOnDisk
from dpt_jax.training.digests import digest
from dpt_jax.training.setup import Experiment

FORMAT = 1  # of what is kept on the disk: another one where plain CLIP is computed in another way

# (parameters of CLIP, images (devices, b, H, W, 3)) -> z (devices, b, E) of plain CLIP
Look = Callable[[Any, np.ndarray], jax.Array]


def read_test_images(
    experiment: Experiment, rows: int, steps: int, look: Look
) -> Iterator[KeptBatch]:
    """Yield this host's test images in so many batches of `rows`, and keep them.

    They are kept in this process, where the experiment says so, and without pixels on the disk,
    where eval.cache_mb does.

    What is kept already is not read again, but where a method needs pixels that are no longer
    there. All hosts have the same number of batches, with the last images missing on some.
    """
    disk = _on_disk(experiment)
    if experiment.kept is None and disk is None:
        yield from _read(experiment, rows, steps, look)
        return
    kept = experiment.kept or KeptImages(limit=0)
    key = _key(experiment, rows)
    known = kept.get(key)
    lasting = ""
    if disk and known is None:
        lasting = _lasting_key(experiment, key)
        known = disk.get(lasting)
    # All hosts compute features together, so that none may know them alone.
    if not distributed.on_all_hosts(known is not None):
        known = None
    pixels = known is not None and all(batch.images is not None for batch in known)
    if known and distributed.on_all_hosts(pixels or not experiment.model.prompts.sees_prompts):
        if lasting:
            kept.keep(key, known)
        yield from known
        return
    read: list[KeptBatch] = []
    for batch in _read(experiment, rows, steps, look, known):
        read.append(batch)
        yield batch
        if kept.too_large(read):
            read = [one._replace(images=None) for one in read]
    kept.keep(key, read)
    if disk and lasting and not known:
        disk.keep(lasting, read)


def _read(
    experiment: Experiment,
    rows: int,
    steps: int,
    look: Look,
    known: Sequence[KeptBatch] | None = None,
) -> Iterator[KeptBatch]:
    """Yield the batches as they are read.  known: the same ones, of which features are taken."""
    for step, batch in enumerate(_batches(experiment, rows, steps)):
        images = loader.shard(batch, rows, jax.local_device_count())["image"]
        features = known[step].features if known else look(experiment.frozen.clip, images)
        labels = {name: batch[name] for name in ("label", "index", "weight")}
        yield KeptBatch(labels, images, features)


def _batches(experiment: Experiment, rows: int, steps: int) -> Iterator[loader.Batch]:
    """Yield so many batches of this host's images, the last ones perhaps of none."""
    config, dataset, clip = experiment.config, experiment.dataset, experiment.model.clip
    batches = loader.test_batches(
        loader.Loading(
            read=dataset.read,
            examples=dataset.test,
            size=clip.image_size,
            preprocessing=clip.preprocessing,
            batch_size=rows,
            workers=config.dataset.workers,
            skip_unreadable=config.dataset.on_error == "skip",
            host=jax.process_index(),
            hosts=jax.process_count(),
        )
    )
    nothing = loader.no_images(clip.image_size)
    for _ in range(steps):
        yield next(batches, nothing)


def _key(experiment: Experiment, rows: int) -> Hashable:
    """Return what tells the batches of one evaluation from those of another.

    The backbone by its name, since the runs of a process that name the same one have the same one.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    data = config.dataset
    return (
        *(data.source, data.name, data.root, data.on_error, _digest(dataset)),
        *(config.clip.weights, model.dtype, model.clip, rows),
    )


def _on_disk(experiment: Experiment) -> KeptOnDisk | None:
    """Return where features are kept for other processes, None for nowhere."""
    limit = experiment.config.eval.cache_mb * 10**6
    return KeptOnDisk(limit) if limit else None


def _lasting_key(experiment: Experiment, key: Hashable) -> str:
    """Return what a key says, and all else that the features depend on, for another process.

    That is the weights themselves, not by their name, and whatever decides on a bit.
    """
    parts = {
        "format": FORMAT,
        "key": key,
        "weights": digest(distributed.to_host(experiment.frozen.clip["vision"])),
        "decoder": PIL.__version__,
        **distributed.arithmetic(),
    }
    return repr(parts)


def _digest(dataset: Dataset) -> str:
    """Return what tells the test images: their names and labels, and the state of their files."""
    state = dataset.read.state(example.path for example in dataset.test)
    return f"{digest_of_examples(dataset.test)} {state}"
