"""Class texts: a shared beginning encoded once, the rest packed in rows, shared by devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.clip import packing
from dpt_jax.clip.model import CLIP
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.prompts.text import plain_layout, prompted_texts
from tests.helpers.models import packed_prompts
from tests.helpers.plain_towers import CLOSE, NAMES, normal, plain_rows, plain_text_features

pytestmark = pytest.mark.compiles


@pytest.mark.parametrize(
    ("position", "class_specific", "depth", "row"),
    [
        *(("end", True, 3, 30), ("end", False, 2, 12)),
        *(("middle", False, 1, 64), ("front", False, 3, 30), ("front", True, 2, 12)),
    ],
)
def test_text_tower(clip, position, class_specific, depth, row, monkeypatch):
    """The shared beginning encoded once, own tokens packed in rows: as the written-out tower."""
    monkeypatch.setattr(packing, "ROW_TOKENS", row)
    length, width = 5, clip.config.text.width
    own = (len(NAMES),) if class_specific else ()
    context = jnp.asarray(normal(6, depth, *own, length, width, scale=0.3))
    each = (
        context
        if class_specific
        else jnp.broadcast_to(context[:, None], (depth, len(NAMES), length, width))
    )
    layout = packed_prompts(NAMES, clip.tokenizer, length, position, class_specific)
    model = CLIP(clip.config)
    actual = jax.jit(
        lambda p: model.apply({"params": p}, method=lambda m: m.text(layout, context))
    )(clip.params)
    expected = plain_text_features(clip, plain_rows(clip, NAMES, length, position), each)
    np.testing.assert_allclose(actual, expected, **CLOSE)


def test_prefix_is_as_long_as_it_can_be(clip):
    """The whole shared context is encoded once, but only if it is the same for all classes."""
    assert len(packed_prompts(NAMES, clip.tokenizer, 16, "end").prefix_tokens) == 17
    assert len(packed_prompts(NAMES, clip.tokenizer, 16, "middle").prefix_tokens) == 9
    assert (
        len(packed_prompts(NAMES, clip.tokenizer, 16, "end", class_specific=True).prefix_tokens)
        == 1
    )
    assert (
        len(plain_layout([f"a photo of a {n}." for n in NAMES], clip.tokenizer).prefix_tokens) == 5
    )
    assert packed_prompts(["dog"], clip.tokenizer, 4).tokens.shape == (1, 1)


def test_classes_of_one_text_are_found(clip):
    """CLIP ignores case; with a context of its own, each class has a different text."""
    names = ["A", "b", "a", "sea_horse", "Sea Horse", "ab"]
    found = [
        packing.duplicates(prompted_texts(names, clip.tokenizer, 2, class_specific=specific))
        for specific in (False, True)
    ]
    assert found == [[[0, 2], [3, 4]], []]


def test_a_thousand_names_cost_what_their_tokens_cost(clip):
    """Few tokens of ImageNet's packed names are padding, unlike the published 77 per class."""
    layout = packed_prompts(imagenet_classnames(), clip.tokenizer, 16)
    assert (layout.segment_ids >= 0).mean() > 0.95
    assert layout.tokens.size < 0.1 * 77 * len(layout.eot_index)
