"""The pictures of the methods."""

from PIL import Image

from dpt_jax.methods import METHODS
from tools import draw_family, draw_method


def colours_of(draw, file):
    """Return how often each colour is in what is drawn."""
    draw(str(file))
    with Image.open(file) as picture:
        return {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 20)}


def test_the_picture_of_the_method_is_drawn(tmp_path):
    colours = colours_of(draw_method.main, tmp_path / "method.png")
    # A part of the legend that is missing would leave its colour out.
    for wanted in (draw_method.TEXT, draw_method.VISUAL, draw_method.CLASS_AWARE):
        assert tuple(bytes.fromhex(wanted[1:])) in colours


def test_the_picture_of_the_family_has_the_tokens_of_each_method(tmp_path):
    """More tokens are more of a method's colour: a part that is not drawn would leave them out."""
    colours = colours_of(draw_family.main, tmp_path / "family.png")
    names = [name for row in draw_family.PANELS for name in row]
    area = {name: colours[tuple(bytes.fromhex(METHODS[name].colour[1:]))] for name in names}
    assert area["coop"] < area["vpt"] < area["vlp"] < area["dpt"]
    assert area["kgcoop"] < area["maple"] < area["ivlp"]
