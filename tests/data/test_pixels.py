"""Images of every kind become the RGB that they show, or are refused; none turns black or white."""

import errno
import io
import struct
import subprocess

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dpt_jax.data import records
from dpt_jax.data.folder import is_image_name
from dpt_jax.data.records import Files, UnreadableImageError, read_image, to_rgb
from dpt_jax.errors import UserError

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


@pytest.mark.parametrize("array", [RAMP.astype(np.int32), RAMP.astype(np.float32)])
def test_pixels_without_a_known_white_are_named(array):
    """A TIFF does not say whether 1, 255 or 65535 is white."""
    with pytest.raises(UnreadableImageError, match="it cannot be read"):
        read_image(written(Image.fromarray(array), "TIFF"), "it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_a_photo_of_a_phone_is_turned_upright(kind, tmp_path):
    """In every format of phones, unless the published pixels are requested."""
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    file = written(image, kind, exif=exif)
    upright = read_image(file, "it")
    assert upright.size == (8, 16)
    top, bottom = (upright.getpixel((4, y)) for y in (2, 13))
    assert top[0] > 200 > top[2] and bottom[2] > 200 > bottom[0]
    assert to_rgb(Image.open(file)).size == (8, 16)
    if kind != "TIFF":  # which Pillow itself turns
        assert read_image(file, "it", upright=False).size == (16, 8)
        (tmp_path / "1.jpg").write_bytes(file.getvalue())
        sizes = [Files(tmp_path, upright)("1.jpg").size for upright in (True, False)]
        assert sizes == [(8, 16), (16, 8)]  # and the cache tells them apart


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_tag_is_ignored():
    image = written(Image.new("RGB", (16, 8)), "JPEG", exif=b"Exif\0\0MM\0*nonsense")
    assert read_image(image, "it").size == (16, 8)


def test_other_formats_of_phones_are_read_or_explained(tmp_path, monkeypatch):
    Image.new("RGB", (16, 8), "red").save(tmp_path / "1.avif")
    pillow_heif.from_pillow(Image.new("RGB", (16, 8), "red")).save(tmp_path / "1.heic")
    for name in ("1.avif", "1.heic"):
        assert is_image_name(name)
        assert read_image(tmp_path / name).size == (16, 8)
    monkeypatch.setattr(records, "HEIF", False)
    with pytest.raises(UnreadableImageError, match="pip install pillow-heif"):
        read_image(tmp_path / "1.heic")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and then nothing", b"<html>"])
def test_a_broken_image_is_named(tmp_path, content):
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        read_image(file)
    with pytest.raises(UnreadableImageError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


def test_postscript_never_starts_a_program(tmp_path, monkeypatch):
    file = tmp_path / "drawing.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: pytest.fail(str(args)))
    with pytest.raises(UnreadableImageError, match=r"drawing\.png"):
        read_image(file)


@pytest.mark.parametrize("reason", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_system_error_is_not_an_unreadable_image(reason, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise reason

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match=r"1\.png.*\(.+\)") as found:
        read_image(tmp_path / "1.png")
    assert not isinstance(found.value, UnreadableImageError)


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """One bit per pixel, 20,000 on a side: 50 kB of file."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
