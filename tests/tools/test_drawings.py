"""The picture of the method."""

from PIL import Image

from tools import draw_method


def test_the_picture_of_the_method_is_drawn(tmp_path):
    draw_method.main(str(tmp_path / "method.png"))
    with Image.open(tmp_path / "method.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    # A part of the legend that is missing would leave its colour out.
    for wanted in (draw_method.TEXT, draw_method.VISUAL, draw_method.CLASS_AWARE):
        assert tuple(bytes.fromhex(wanted[1:])) in colours
