"""Names of the emoji in the npm packages emoji-datasource-*, shared by both recipes.

The captions of the pre-training and the class folders of the data set take their words from one
table, so that a class name means the same thing in both.
"""

import json
import pathlib
import re
from typing import Any, NamedTuple

from dpt_jax.errors import UserError

# The classes of the data set: subcategories that one can tell by eye, with 16 images or more.
DATASET_CLASSES = {
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-mammal": "mammal",
    "animal-marine": "sea animal",
    "clothing": "clothing",
    "country-flag": "country flag",
    "drink": "drink",
    "food-fruit": "fruit",
    "food-prepared": "prepared food",
    "food-vegetable": "vegetable",
    "heart": "heart",
    "place-building": "building",
    "plant-other": "plant",
    "sky & weather": "sky and weather",
    "sport": "sport",
    "time": "clock",
    "tool": "tool",
    "transport-ground": "ground transport",
}
# Other subcategories whose names nobody would write in a caption.
OTHER_WORDS = {
    "alphanum": "letter sign",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile",
    "arts & crafts": "art and craft",
    "av-symbol": "media button",
    "award-medal": "medal",
    "book-paper": "book or paper",
    "cat-face": "cat face",
    "currency": "money symbol",
    "emotion": "emotion symbol",
    "face-affection": "loving face",
    "face-concerned": "worried face",
    "face-costume": "costume face",
    "face-glasses": "face with glasses",
    "face-hand": "face with hand",
    "face-hat": "face with hat",
    "face-negative": "angry face",
    "face-neutral-skeptical": "neutral face",
    "face-sleepy": "sleepy face",
    "face-smiling": "smiling face",
    "face-tongue": "face with tongue",
    "face-unwell": "sick face",
    "food-asian": "asian food",
    "food-sweet": "dessert",
    "gender": "gender symbol",
    "geometric": "geometric shape",
    "hand-fingers-closed": "hand with closed fingers",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "hand sign",
    "hand-prop": "hand holding something",
    "hand-single-finger": "pointing hand",
    "household": "household object",
    "light & video": "light and video",
    "math": "math symbol",
    "medical": "medical object",
    "music": "music symbol",
    "office": "office object",
    "other-object": "object",
    "other-symbol": "symbol",
    "person-activity": "person doing something",
    "person-fantasy": "fantasy person",
    "person-gesture": "person making a gesture",
    "person-resting": "resting person",
    "person-role": "person at work",
    "person-sport": "person doing sport",
    "person-symbol": "person symbol",
    "phone": "telephone",
    "place-geographic": "landscape",
    "place-map": "map",
    "place-other": "place",
    "place-religious": "religious building",
    "plant-flower": "flower",
    "punctuation": "punctuation mark",
    "religion": "religious symbol",
    "science": "science tool",
    "sound": "sound symbol",
    "subdivision-flag": "regional flag",
    "transport-air": "air transport",
    "transport-sign": "public sign",
    "transport-water": "water transport",
    "warning": "warning sign",
    "writing": "writing tool",
    "zodiac": "zodiac sign",
}


class Emoji(NamedTuple):
    """One drawing: its names in plain lower-case words, the full name first, and its PNG file."""

    names: tuple[str, ...]
    short_name: str
    subcategory: str
    image: pathlib.Path


def class_words(subcategory: str) -> str:
    """Return a subcategory in plain words: "animal-mammal" -> "mammal"."""
    words = {**DATASET_CLASSES, **OTHER_WORDS}
    return words.get(subcategory, re.sub(r"[^a-z]+", " ", subcategory.lower()).strip())


def read_emoji(package: str, image_set: str) -> list[Emoji]:
    """Return the emoji that both Noto ("google") and Twemoji ("twitter") have, in Unicode's order.

    package: the unpacked npm package emoji-datasource-{image_set}. Raises UserError for
    another folder.
    """
    root = pathlib.Path(package)
    images = root / "img" / image_set / "64"
    try:
        entries = json.loads((root / "emoji.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise UserError(
            f"{package} is not the unpacked package emoji-datasource-{image_set} ({reason})."
        ) from reason
    if not images.is_dir():
        raise UserError(
            f"{package} has no folder img/{image_set}/64: it is not emoji-datasource-{image_set}."
        )
    return [
        Emoji(_names(e), e["short_name"], e["subcategory"], images / e["image"])
        for e in sorted(entries, key=lambda e: e["sort_order"])
        if e["has_img_google"] and e["has_img_twitter"] and (images / e["image"]).exists()
    ]


def _names(entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the full name and the short names as words, each once: "tiger2" -> "tiger"."""
    # A flag's short name is a country code, which says nothing in a caption.
    short = (
        []
        if entry["subcategory"] == "country-flag"
        else [re.sub(r"\d+$", "", s) for s in entry["short_names"]]
    )
    plain = (
        re.sub(r"[^a-z0-9']+", " ", name.lower().replace("’", "'")).strip()
        for name in [entry["name"], *short]
    )
    return tuple(dict.fromkeys(name for name in plain if name))
