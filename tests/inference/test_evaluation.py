"""The loop of an evaluation."""

import numpy as np

from configs import coop
from dpt_jax.inference import evaluation
from dpt_jax.inference import experiment as experiments
from tests.helpers.golden import SMALL


class Answer:
    """An array on a device, which says when it is fetched."""

    def __init__(self, array, number, events):
        self.array, self.number, self.events = np.asarray(array), number, events
        self.shape = self.array.shape

    def __array__(self, dtype=None, copy=None):
        self.events.append(("fetch", self.number))
        return self.array


def test_a_batch_is_started_before_the_last_one_is_fetched(clip, clip_dir, monkeypatch):
    """And no more than two are on the way."""
    config = coop.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(SMALL / "images")
    config.text_prompt.length, config.eval.batch_size = 2, 5
    prepared = experiments.prepare(config, clip)
    prompts = experiments.initial_prompts(prepared)
    expected = evaluation.predict(prepared, prompts)
    events = []
    make = evaluation.make_classifier

    def recording(model):
        made = make(model)

        def classify(*arguments):
            number = sum(what == "start" for what, _ in events)
            events.append(("start", number))
            outputs, plain = made.classify(*arguments)
            return (
                outputs._replace(logits=Answer(outputs.logits, number, events)),
                plain._replace(logits=Answer(plain.logits, number, events)),
            )

        return made._replace(classify=classify)

    monkeypatch.setattr(evaluation, "make_classifier", recording)
    found = evaluation.predict(prepared, prompts)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)
    order = list(dict.fromkeys(events))
    assert order == [
        *(("start", 0), ("start", 1), ("fetch", 0), ("start", 2), ("fetch", 1)),
        *(("start", 3), ("fetch", 2), ("fetch", 3)),
    ]
