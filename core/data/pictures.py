"""Picture files: encoded bytes to RGB and back."""

import io

import numpy as np
from PIL import Image

# Raster formats only: others of Pillow's formats run interpreters (EPS) or open further files.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_ORIENTATION_TAG = 0x0112
# EXIF 2.3, tag Orientation: what brings the stored rows and columns to the upright picture.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """One picture cannot be decoded; the message says why, the caller knows which."""


def decode_picture(data: bytes, *, max_pixels: int = 50_000_000) -> Image.Image:
    """The picture in `data` as an upright 8-bit RGB image.

    Greyscale, palette, alpha and CMYK go through Pillow's conversion to RGB, as in CLIP's own preprocessing (alpha is
    dropped); 16-bit greyscale is scaled to 8 bits; of an animation the first frame is taken. A header that announces
    more than `max_pixels` pixels is refused before anything is decoded. Raises PictureError.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
        if image.width * image.height > max_pixels:
            raise PictureError(
                f"its header announces {image.width} x {image.height} pixels, more than the limit of {max_pixels}; "
                "scale it down"
            )
        image.load()
        # After load(): Pillow's TIFF reader turns the picture upright itself, and then drops the tag.
        upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
        rgb = _to_8_bits(image).convert("RGB")
        return rgb if upright is None else rgb.transpose(upright)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"its header announces too many pixels, scale it down: {error}") from error
    except Exception as error:
        # Pillow's readers meet damaged files with whatever their parsing runs into: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, IndexError, EOFError ...
        formats = ", ".join(PICTURE_FORMATS)
        raise PictureError(
            f"it cannot be decoded, it is damaged, cut short or none of {formats} ({type(error).__name__}: {error})"
        ) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits brought to 8: Pillow's own conversion clips it at 255, which turns it white."""
    if image.mode == "F":
        raise PictureError("it holds floating-point pixels, whose range is not known; save it with 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # the same colours as straight to RGB, where Pillow warns
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError("it holds 32-bit pixels, whose range is not known; save it with 8 bits a channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG of uint8 pixels [H, W, 3]: the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
