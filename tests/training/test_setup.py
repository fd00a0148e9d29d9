"""What an experiment starts from: words for the context, and texts of the classes."""

import numpy as np
import pytest

from configs import dpt, zeroshot
from dpt_jax.data import records
from dpt_jax.errors import UserError
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from tests.helpers.configs import small_config

pytestmark = pytest.mark.compiles


def make_config(clip_dir, method=dpt, **overrides):
    own = {"text_prompt__length": 4, "visual_prompt__length": 2}
    own |= {"train__epochs": 2, "train__batch_size": 6}
    return small_config(clip_dir, method, **{**own, **overrides})


@pytest.mark.parametrize("words", ["a xylophonists", "A PHOTO,_of a", "X X X X"])
def test_initial_words_set_the_length_by_their_tokens(words, clip_dir, clip):
    experiment = experiments.prepare(
        make_config(clip_dir, text_prompt__init=words, text_prompt__length=2), clip
    )
    ids = clip.tokenizer.encode(words.replace("_", " "))
    context = adoption.initial_prompts(experiment)["text"]["context"]
    np.testing.assert_array_equal(context[0], clip.params["text"]["token_embedding"][ids])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a photo of a {}.", "has a brace"),
        ("a photo of a {", "has a brace"),
        ("<|endoftext|> a", "special token"),
        ("a <|startoftext|>", "special token"),
        ("a " * 80, "is 80 .*takes 77"),
    ],
)
def test_initial_words_that_cannot_be_are_refused(words, says, clip_dir, clip):
    with pytest.raises(UserError, match=says):
        experiments.prepare(make_config(clip_dir, text_prompt__init=words), clip)


def test_the_cache_of_one_run_does_not_bind_later_ones(clip_dir, clip):
    for gigabytes, limit in ((0.5, 500_000_000), (-1.0, records.cache.default)):
        experiments.prepare(make_config(clip_dir, dataset__cache_gb=gigabytes), clip)
        assert records.cache.limit == limit


def test_several_templates_are_averaged_as_clip_does_it(clip_dir, clip):
    """The mean of the normalised features; zero-shot normalises it again."""

    def texts(template):
        experiment = experiments.prepare(
            make_config(clip_dir, zeroshot, dataset__template=template), clip
        )
        return np.asarray(experiment.frozen.texts[0])

    one, other = texts("a photo of a {}."), texts("{} texture.")
    expected = (
        one / np.linalg.norm(one, axis=1)[:, None] + other / np.linalg.norm(other, axis=1)[:, None]
    ) / 2
    np.testing.assert_allclose(
        texts("a photo of a {}.| {} texture."), expected, rtol=1e-5, atol=1e-6
    )
