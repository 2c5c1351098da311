"""Decoding: every kind of raster picture to upright RGB, and nothing dangerous decoded."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from core.data.pictures import PictureError, decode_picture, encode_png

# A smooth picture, so that lossy formats come close to it.
ROWS, COLUMNS = np.mgrid[0:24, 0:32]
PIXELS = np.stack([ROWS * 10, COLUMNS * 7, 255 - ROWS * 5], axis=2).astype(np.uint8)


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "tolerance"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("WEBP", 12), ("JPEG", 12)]
)
def test_a_colour_picture_decodes_to_its_pixels(format: str, tolerance: int) -> None:
    options = {"quality": 95} if tolerance else {}  # the tolerance is for the lossy formats' chroma at that quality
    decoded = decode_picture(_encode(Image.fromarray(PIXELS), format, **options))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - PIXELS).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_pixel_kinds_convert_as_pillow_does_without_a_warning(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_picture(_encode(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.fromarray(PIXELS).convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_picture(_encode(image, "PNG", transparency=bytes([0, 128, 255])))
    assert np.array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_composited() -> None:
    transparent = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert np.array_equal(np.asarray(decode_picture(_encode(Image.fromarray(transparent), "PNG"))), PIXELS)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    decoded = decode_picture(_encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_not_clipped(format: str) -> None:
    values = np.array([[0, 257, 1000, 128 * 257, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_picture(_encode(Image.fromarray(values), format)))
    assert decoded[0, :, 0].tolist() == [0, 1, 4, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(dtype: type) -> None:
    values: np.ndarray = np.array([[-5, 70_000]], dtype=dtype)
    with pytest.raises(PictureError, match="range is not known"):
        decode_picture(_encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    # The oracle stores the upright picture turned as EXIF 2.3 says, by numpy alone.
    stored = {
        1: lambda upright: upright,
        2: lambda upright: upright[:, ::-1],
        3: lambda upright: upright[::-1, ::-1],
        4: lambda upright: upright[::-1],
        5: lambda upright: upright.swapaxes(0, 1),
        6: lambda upright: np.rot90(upright, 1),
        7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
        8: lambda upright: np.rot90(upright, -1),
    }[orientation](PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    data = _encode(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    decoded = np.asarray(decode_picture(data)).astype(int)
    assert decoded.shape == PIXELS.shape
    assert np.abs(decoded - PIXELS).max() <= (12 if format == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(20)])
def test_damaged_metadata_does_not_cost_the_picture(exif: bytes) -> None:
    data = _encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode_picture(data).size == (32, 24)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_picture_cut_short_is_refused(format: str) -> None:
    data = _encode(Image.fromarray(PIXELS), format)
    with pytest.raises(PictureError, match="damaged"):
        decode_picture(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" + bytes(100)])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="cannot be decoded"):
        decode_picture(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
def test_damage_anywhere_in_a_file_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        data = _encode(Image.fromarray(PIXELS), format)
        for _ in range(60):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 4):
                damaged[position] = rng.integers(0, 256)
            with contextlib.suppress(PictureError):
                decode_picture(bytes(damaged), max_pixels=100_000)


def _png_header(width: int, height: int) -> bytes:
    """A PNG whose header announces so many pixels, and whose data would inflate without end of use."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the bomb was decoded"))
    with pytest.raises(PictureError, match="pixels"):
        decode_picture(_png_header(width, height))


def test_the_pixel_limit_is_inclusive_and_can_be_set() -> None:
    data = encode_png(PIXELS)
    assert decode_picture(data, max_pixels=24 * 32).size == (32, 24)
    with pytest.raises(PictureError, match="32 x 24 pixels, more than the limit of 767"):
        decode_picture(data, max_pixels=24 * 32 - 1)


@pytest.mark.parametrize("format", ["EPS", "PCX", "ICO"])
def test_a_format_that_is_not_named_is_not_opened(format: str) -> None:
    with pytest.raises(PictureError, match="none of PNG"):
        decode_picture(_encode(Image.fromarray(PIXELS), format))


def test_png_of_the_same_pixels_has_the_same_bytes(tmp_path: Path) -> None:
    assert encode_png(PIXELS) == encode_png(PIXELS.copy())
    assert np.array_equal(np.asarray(decode_picture(encode_png(PIXELS))), PIXELS)
