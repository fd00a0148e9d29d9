"""One page of a run: training, answers with heat maps, scores, features, words, settings.

It has its pictures inside and needs no network. The template is page.html.
"""

import base64
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jinja2
import numpy as np
from etils import epath

from dpt_jax.config import flat
from dpt_jax.data.records import Dataset
from dpt_jax.evaluation.metrics import softmax
from dpt_jax.evaluation.results import read_current
from dpt_jax.io import write_whole
from dpt_jax.logging import Progress
from dpt_jax.methods import ROWS
from dpt_jax.predictor.explain import describe, nearest_words
from dpt_jax.predictor.predictor import Predictor, prompts_of
from dpt_jax.report import one_run
from dpt_jax.report.figures import Cloud, draw_clouds, draw_sight
from dpt_jax.training.setup import prepare
from dpt_jax.training.workdir import load_config

PAGE_FILE = "report.html"
ANSWERS = 4  # of the correct ones and of the wrong ones
NEAREST = 3  # words


class Answers(NamedTuple):
    """Outputs for N test images.

    Attributes:
        probability: (N, C).
        zero_shot: Class indices (N,) that zero-shot CLIP predicts.
        label: True class indices (N,).
        row: Indices (N,) of the dataset's test examples.
        before: Frozen image features (N, E).
        after: Prompted image features (N, E).
    """

    probability: np.ndarray
    zero_shot: np.ndarray
    label: np.ndarray
    row: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Return which answers are correct, (N,) bool."""
        return self.probability.argmax(-1) == self.label


def write_page(workdir: epath.Path) -> epath.Path:
    """Write report.html into a workdir and return its path.

    Raises:
        UserError: The run has no results, or its data or CLIP cannot be loaded.
    """
    results = read_current(workdir)
    config = load_config(workdir)
    experiment = prepare(config)
    batch = -(
        -min(config.eval.batch_size, len(experiment.dataset.test)) // jax.local_device_count()
    )
    predictor = Predictor(experiment, prompts_of(experiment, workdir), batch)
    answers = classify(predictor, experiment.dataset)
    parts, words = predictor.model.config, []
    if "text" in predictor.prompts and not parts.conditioned:
        words = nearest_words(predictor, NEAREST)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    page = environment.get_template("page.html").render(
        title=one_run.title(results),
        in_words=one_run.in_words(results),
        training=one_run.draw_training(workdir),
        answers=[*pictures(predictor, experiment.dataset, answers)],
        class_header=one_run.CLASS_HEADER,
        class_rows=one_run.class_rows(results),
        confused_header=one_run.CONFUSED_HEADER,
        confused_rows=one_run.confused_rows(results),
        confusion=one_run.draw_confusion(results),
        reliability=one_run.draw_reliability(results),
        features=draw_features(predictor, answers),
        words=words,
        conditioned=parts.conditioned,
        settings=flat(config.to_dict()),
    )
    write_whole(workdir / PAGE_FILE, page.encode(errors="backslashreplace"))
    return workdir / PAGE_FILE


def classify(predictor: Predictor, dataset: Dataset) -> Answers:
    """Classify the readable test images."""
    paths = [example.path for example in dataset.test]
    labels = np.array([example.label for example in dataset.test])
    parts = []
    with Progress("report", -(-len(paths) // predictor.rows)) as progress:
        for batch, outputs in predictor.answers(paths, dataset.read, skip_unreadable=True):
            found = Answers(
                probability=softmax(outputs.logits),
                zero_shot=outputs.zero_shot.logits.argmax(-1),
                label=labels[batch["index"]],
                row=batch["index"],
                before=outputs.zero_shot.features,
                after=outputs.features,
            )
            parts.append(Answers(*(column[batch["weight"] > 0] for column in found)))
            progress.advance()
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def pictures(
    predictor: Predictor, dataset: Dataset, answers: Answers
) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Yield headings, each with heat maps and captions of the most confident answers.

    With prompts, the correct answers are those that zero-shot CLIP gets wrong.
    """
    parts, names = predictor.model.config, predictor.classnames
    heading, correct = "Correct", answers.correct
    if parts.learns:
        heading, correct = (
            "Correct where zero-shot CLIP is wrong",
            correct & (answers.zero_shot != answers.label),
        )
    for title, among in ((heading, correct), ("Wrong", ~answers.correct)):
        chosen, drawn = most_confident(answers, among), []
        paths = [dataset.test[answers.row[i]].path for i in chosen]
        images = [dataset.read(path) for path in paths]
        sights = describe(predictor, images)
        for i, path, sight in zip(chosen, paths, sights, strict=True):
            caption = f"{path}: {names[answers.label[i]]}"
            if not answers.correct[i]:
                caption += f", predicted {sight.classes[0]}"
            elif parts.learns:
                caption += f", zero-shot CLIP predicts {names[answers.zero_shot[i]]}"
            drawn.append((draw_sight(sight, path, parts.method), caption))
        yield f"{title}, most confident first", drawn


def most_confident(answers: Answers, among: np.ndarray) -> list[int]:
    """Return the most confident answers of a mask (N,), one of each class before a second."""
    confidence = answers.probability.max(-1)
    order = [int(i) for i in np.argsort(-confidence, kind="stable") if among[i]]
    first: dict[int, int] = {}
    for i in order:
        first.setdefault(int(answers.label[i]), i)
    return [*first.values(), *(i for i in order if i not in first.values())][:ANSWERS]


def draw_features(predictor: Predictor, answers: Answers) -> bytes:
    """Draw the principal components of the features, frozen and prompted."""
    parts = predictor.model.config
    clouds = {"before: zero-shot CLIP": principal_axes(answers.before, predictor.texts.frozen)}
    if not parts.conditioned:  # otherwise each image has its own texts, without common axes
        after = principal_axes(answers.after, predictor.encode_text())
        clouds[f"after: {ROWS[parts.method].label}"] = after
    return draw_clouds(clouds, answers.label, predictor.classnames)


def principal_axes(images: np.ndarray, texts: np.ndarray) -> Cloud:
    """Project image features (N, E) and text features (C, E) on the images' principal axes."""
    centred = images - images.mean(0)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    two, variance = np.zeros((2, images.shape[1]), images.dtype), np.zeros(2)
    two[: len(axes[:2])] = axes[:2]
    variance[: len(deviations[:2])] = deviations[:2] ** 2 / (float((deviations**2).sum()) or 1.0)
    return Cloud(centred @ two.T, (texts - texts.mean(0)) @ two.T, variance)
