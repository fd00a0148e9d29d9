"""Images of every kind become RGB as they look, or are named; none turns black or white."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dpt_jax.clip import preprocessing
from dpt_jax.data import records
from dpt_jax.data.records import UnreadableImageError, read_image, to_rgb

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
GREY = RAMP / 257
EIGHT_BIT_RAMP = GREY.astype(np.uint8)


def written(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def grey_of(file):
    """The grey of an image that has no colour."""
    pixels = np.asarray(read_image(file, "it"))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind):
    np.testing.assert_allclose(grey_of(written(Image.fromarray(RAMP), kind)), GREY, atol=1)


@pytest.mark.parametrize(
    ("mode", "order"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")]
)
def test_sixteen_bits_of_any_byte_order_are_scaled(mode, order):
    image = Image.frombytes(mode, (8, 8), RAMP.astype(order).tobytes())
    np.testing.assert_allclose(np.asarray(to_rgb(image))[..., 0], GREY, atol=1)


def test_sixteen_bits_of_a_format_that_says_so_may_come_as_32():
    """As older versions of PIL open such a PNG."""
    image = Image.fromarray(RAMP.astype(np.int32))
    image.format = "PNG"
    np.testing.assert_allclose(np.asarray(to_rgb(image))[..., 0], GREY, atol=1)


def with_tag(content, tag, value):
    """A little-endian TIFF in which a tag of one short number has another value."""
    at = content.index(struct.pack("<HHI", tag, 3, 1))
    return content[: at + 8] + struct.pack("<I", value) + content[at + 12 :]


def test_a_tiff_whose_white_is_zero_is_not_a_negative():
    content = with_tag(written(Image.fromarray(RAMP), "TIFF").getvalue(), 262, 0)
    np.testing.assert_allclose(grey_of(io.BytesIO(content)), 255 - GREY, atol=1)


def test_twelve_bits_reach_white():
    """Two pixels, 0 and 4095, in three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 10 * 12 + 4),
            (277, 1), (278, 1), (279, 3), (284, 1)]  # fmt: skip
    content = b"II*\0" + struct.pack("<IH", 8, len(tags))
    content += b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    content += struct.pack("<I", 0) + bytes([0x00, 0x0F, 0xFF])
    assert grey_of(io.BytesIO(content)).tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "P", "CMYK", "YCbCr", "RGBX", "RGBa", "La"])
def test_eight_bits_look_the_same_in_any_mode(mode):
    grey = Image.fromarray(EIGHT_BIT_RAMP)
    if mode in ("RGBa", "La"):
        image = grey.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode in ("YCbCr", "CMYK"):
        image = grey.convert("RGB").convert(mode)
    else:
        image = grey.convert("P").convert("PA") if mode == "PA" else grey.convert(mode)
    expected = grey.convert("1") if mode == "1" else grey
    pixels = np.asarray(to_rgb(image)).astype(int)
    assert (abs(pixels - np.asarray(expected.convert("RGB"))) <= 2).all()


@pytest.mark.parametrize(
    "array", [RAMP.astype(np.int32), GREY.astype(np.int32), -RAMP.astype(np.int32)]
)
def test_32_bits_are_named(array):
    """Whether 255, 65535 or 2147483647 is white, a TIFF does not say."""
    with pytest.raises(UnreadableImageError, match=r"it cannot be read .*32-bit"):
        read_image(written(Image.fromarray(array), "TIFF"), "it")


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_floats_are_named(scale, kind):
    image = Image.fromarray((GREY / 255 * scale).astype(np.float32))
    with pytest.raises(UnreadableImageError, match="floating-point"):
        read_image(written(image, kind), "it")


def test_a_radiance_file_is_named(tmp_path):
    (tmp_path / "sky.hdr").write_bytes(
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\1\1\1\x80"
    )
    with pytest.raises(UnreadableImageError, match=r"sky\.hdr cannot be read"):
        read_image(tmp_path / "sky.hdr")


def test_a_table_of_transparencies_is_dropped_without_a_warning(recwarn):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    file = written(image, "PNG", transparency=b"\xff\x10")
    assert read_image(file, "it").getpixel((0, 0)) == (10, 200, 30)
    assert not recwarn.list


def test_a_large_image_is_reported_once_in_our_words(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    records._report_large.cache_clear()
    Image.new("RGB", (15, 10)).save(tmp_path / "large.png")
    for _ in range(3):
        assert read_image(tmp_path / "large.png").size == (15, 10)
    assert capfd.readouterr().err.count("large.png is large, 15 x 10 pixels") == 1
    Image.new("RGB", (21, 10)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match=r"bomb\.png cannot .* make it smaller"):
        read_image(tmp_path / "bomb.png")


def test_pil_does_not_warn_of_a_large_image_in_its_own_words(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    code = (
        "import sys; from dpt_jax.data.records import read_image; "
        "print(read_image(sys.argv[1]).size)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "(10000, 10000)\n"
    assert done.stderr.count("\n") == 1
    assert "0.3 GiB" in done.stderr


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 2), (1, 400), (20_000, 1)])
def test_a_thin_image_takes_no_more_memory_than_a_square(size):
    """Resized whole, one pixel beside 60,000 is 9 GB."""
    image = Image.new("RGB", size, (200, 10, 10))
    pixels = preprocessing.test_transform(image, 224)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == [200, 10, 10]).all()


@pytest.mark.parametrize("size", [(20, 370), (370, 20), (7, 300), (301, 9), (33, 900)])
def test_the_middle_of_a_thin_image_is_that_of_the_whole_one(size, monkeypatch):
    """But for the rounding between PIL's two passes, whose order depends on the sizes."""
    drawn = np.random.default_rng(0).integers(64, 192, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(drawn)
    middle = preprocessing.test_transform(image, 32).astype(int)
    monkeypatch.setattr(preprocessing, "THIN", 10**9)
    whole = preprocessing.test_transform(image, 32)
    assert abs(middle - whole).max() <= 2
