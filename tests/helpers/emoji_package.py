"""A small npm package of emoji drawings, as the recipes in tools/ read it."""

import json
import pathlib

from PIL import Image, ImageDraw

# One shape a subcategory, so that a caption says something of the drawing.
SHAPES = {"food-fruit": "ellipse", "animal-bird": "rectangle", "time": "line"}


def write(root: pathlib.Path, image_set: str = "google", each: int = 4) -> pathlib.Path:
    """Write emoji-datasource-{image_set} with `each` drawings a subcategory; return its folder."""
    package = root / f"emoji-datasource-{image_set}"
    images = package / "img" / image_set / "64"
    images.mkdir(parents=True)
    entries = []
    for subcategory, shape in SHAPES.items():
        for number in range(each):
            name = f"{shape}-{number}"
            drawing = Image.new("RGBA", (64, 64))
            place = (8 + number, 8, 50, 50 + number)
            getattr(ImageDraw.Draw(drawing), shape)(place, fill=(200, 40 * (number % 6), 60, 255))
            drawing.save(images / f"{name}.png")
            entries.append(
                {
                    "name": f"{shape.upper()} {number}",
                    "short_name": name,
                    "short_names": [name],
                    "subcategory": subcategory,
                    "image": f"{name}.png",
                    "sort_order": len(entries),
                    "has_img_google": True,
                    "has_img_twitter": True,
                }
            )
    (package / "emoji.json").write_text(json.dumps(entries), encoding="utf-8")
    return package
