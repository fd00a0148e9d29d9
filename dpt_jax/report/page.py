"""One page of a run: settings, training, scores, features, answers with heat maps.

It is self-contained: pictures are part of it, and it asks for nothing from the network.
"""

import base64
import functools
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from etils import epath

from dpt_jax import settings
from dpt_jax.data import loader
from dpt_jax.data.dataset import Dataset
from dpt_jax.evaluation.metrics import softmax
from dpt_jax.evaluation.provenance import read_current
from dpt_jax.logging import Progress
from dpt_jax.methods import ROWS
from dpt_jax.predictor import words as explain
from dpt_jax.predictor.attention import describe
from dpt_jax.predictor.predictor import Predictor, prompts_of
from dpt_jax.report import one_run as run_report
from dpt_jax.report.clouds import Cloud, draw_clouds
from dpt_jax.report.heat_maps import draw_sight
from dpt_jax.training.setup import prepare

PAGE_FILE = "report.html"
ANSWERS = 4  # of the right ones and of the wrong ones
NEAREST = 3
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
.scroll { overflow: auto; max-height: 42rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; } figcaption { color: #444; }
.columns { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
"""


class Answers(NamedTuple):
    """Of N test images: probabilities (N, C), plain CLIP's answer (N,), true class (N,), place in
    the dataset (N,), and features before and after (N, E)."""

    probability: np.ndarray
    plain: np.ndarray
    label: np.ndarray
    row: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Return which answers are right (N,)."""
        return self.probability.argmax(-1) == self.label


def write_page(workdir: epath.Path) -> epath.Path:
    """Write report.html into a workdir; return its path.

    Raise UserError where the run has no results, or its data or backbone cannot be loaded.
    """
    results = read_current(workdir)
    config = settings.load_saved(workdir)
    experiment = prepare(config)
    rows = -(-min(config.eval.batch_size, len(experiment.dataset.test)) // jax.local_device_count())
    predictor = Predictor(experiment, prompts_of(experiment, workdir), rows)
    answers = answer(predictor, experiment.dataset)
    parts = [
        f"<h1>{html.escape(run_report.title(results))}</h1>",
        f"<p>{html.escape(run_report.in_words(results))}</p>",
    ]
    if drawn := _drawn(
        lambda file: run_report.draw_training(workdir, file), "loss, accuracy and learning rates"
    ):
        parts.append(f"<h2>Training</h2>{drawn}")
    parts += ["<h2>Answers</h2>", *pictures(predictor, experiment.dataset, answers)]
    parts.append('<h2>Classes</h2><div class="columns">')
    parts.append(_table(run_report.CLASS_HEADER, run_report.class_rows(results)))
    if confused := run_report.confused_rows(results):
        parts.append(
            f"<div><p>Most often confused:</p>{_table(run_report.CONFUSED_HEADER, confused)}</div>"
        )
    parts.append("</div>")
    parts.append(_drawn(lambda file: run_report.draw_confusion(results, file), "confusion matrix"))
    if drawn := _drawn(
        lambda file: run_report.draw_reliability(results, file), "reliability diagram"
    ):
        parts.append(f"<h2>How sure the answers are</h2>{drawn}")
    parts += ["<h2>Features before and after</h2>", features(predictor, answers)]
    if "text" in predictor.prompts:
        parts += ["<h2>What the context is near to</h2>", words(predictor)]
    flat = settings.flat(config.to_dict())
    parts += [
        "<h2>Settings</h2>",
        _table(["key", "value"], [[key, str(value)] for key, value in flat.items()]),
    ]
    file = workdir / PAGE_FILE
    title = html.escape(run_report.title(results))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    file.write_text(page, encoding="utf-8", errors="backslashreplace")
    return file


def answer(predictor: Predictor, dataset: Dataset) -> Answers:
    """Return the answers to the test images that can be read."""
    size, batch = predictor.model.clip_config.image_size, predictor.rows
    parts = []
    with Progress("report", -(-len(dataset.test) // batch)) as progress:
        for rows in loader.test_batches(
            loader.Loading(
                read=dataset.read,
                examples=dataset.test,
                size=size,
                preprocessing=predictor.model.clip_config.preprocessing,
                batch_size=batch,
                skip_unreadable=True,
            )
        ):
            outputs: Any = predictor.outputs(rows["image"])
            zero_shot = outputs.zero_shot
            probability = softmax(outputs.logits)
            found = Answers(
                probability=probability,
                plain=zero_shot.logits.argmax(-1),
                label=rows["label"],
                row=rows["index"],
                before=zero_shot.features,
                after=outputs.features,
            )
            parts.append(Answers(*(column[rows["weight"] > 0] for column in found)))
            progress.advance()
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def pictures(predictor: Predictor, dataset: Dataset, answers: Answers) -> Iterable[str]:
    """Give the surest right and the surest wrong answers, of different classes, with heat maps.

    Of prompts, the right ones are those that plain CLIP gets wrong.
    """
    where, right = "", answers.right
    if predictor.model.config.has_prompts:
        where, right = " where plain CLIP is wrong", right & (answers.plain != answers.label)
    for heading, among in ((f"Right{where}", right), ("Wrong", ~answers.right)):
        yield f"<h3>{heading}, and surest of it</h3>"
        rows = surest(answers, among)
        if not rows:
            yield "<p>None.</p>"
            continue
        paths = [dataset.test[answers.row[i]].path for i in rows]
        pixels = predictor.pixels([dataset.read(path) for path in paths])
        for i, path, sight in zip(rows, paths, describe(predictor, pixels), strict=True):
            caption = f"{path}: {predictor.classnames[answers.label[i]]}"
            if not answers.right[i]:
                caption += f", taken for {sight.classes[0]}"
            elif predictor.model.config.has_prompts:
                caption += f", which plain CLIP takes for {predictor.classnames[answers.plain[i]]}"
            draw = functools.partial(draw_sight, sight, path, predictor.model.config.method)
            yield _drawn(draw, caption)


def surest(answers: Answers, among: np.ndarray) -> list[int]:
    """Return rows of the surest answers among some (N,), one of each class before a second."""
    confidence = answers.probability.max(-1)
    rows = [int(i) for i in np.argsort(-confidence, kind="stable") if among[i]]
    first: dict[int, int] = {}
    for i in rows:
        first.setdefault(int(answers.label[i]), i)
    return [*first.values(), *(i for i in rows if i not in first.values())][:ANSWERS]


def features(predictor: Predictor, answers: Answers) -> str:
    """Return the figure of the image features' principal components, before and after.

    The texts are on the same axes.
    """
    texts, prompts = predictor.texts, predictor.model.config
    clouds = {"before: plain CLIP": principal_axes(answers.before, texts.frozen)}
    if not prompts.conditioned:  # else each image has texts of its own, on no common axes
        after = principal_axes(answers.after, predictor.encode_text())
        clouds[f"after: {ROWS[prompts.method].label}"] = after
    note = (
        "The two principal components of the image features of each side; texts and images are "
        "centred apart, "
        "since CLIP keeps the two in different places."
    )
    drawn = _drawn(
        lambda file: draw_clouds(clouds, answers.label, predictor.classnames, file),
        "principal components",
    )
    return f"<p>{note}</p>{drawn}"


def principal_axes(images: np.ndarray, texts: np.ndarray) -> Cloud:
    """Return image features (N, E) on their first two principal components.

    The text features (C, E) are on the same components.
    """
    centred = images - images.mean(0)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    two = np.zeros((2, images.shape[1]), images.dtype)
    two[: len(axes[:2])] = axes[:2]
    total = float((deviations**2).sum()) or 1.0
    variance = np.zeros(2)
    variance[: len(deviations[:2])] = deviations[:2] ** 2 / total
    return Cloud(centred @ two.T, (texts - texts.mean(0)) @ two.T, variance)


def words(predictor: Predictor) -> str:
    """Return the table of `dpt-jax explain`, or why there is none."""
    if predictor.model.config.conditioned:
        return "<p>The context depends on the image, so it has no fixed words.</p>"
    found = explain.neighbours(predictor, NEAREST)
    return _table(explain.header(found), explain.rows(found))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    table = f"<thead>{line(header, 'th')}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{table}</table></div>'


def _drawn(draw: Callable[[BinaryIO], object], caption: str) -> str:
    """Return what `draw` writes to a file, as part of the page; "" where it writes nothing."""
    buffer = io.BytesIO()
    draw(buffer)
    data, text = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption)
    if not data:
        return ""
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
