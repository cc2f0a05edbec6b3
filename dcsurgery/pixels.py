"""Decoded pictures as RGB pixels: what a person sees of a PIL image, whatever its mode.

PIL's own convert("RGB") uncovers what is hidden under transparency, cuts deep grey off at 255, and
knows nothing of colour profiles.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# What Pillow raises over a broken file, besides OSError.
BROKEN = (
    ArithmeticError, EOFError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
# Pillow knows these by their first bytes; it has nothing to draw them with, or runs a program.
UNDRAWN = {
    "EPS": "PostScript, a drawing", "WMF": "a drawing", "EMF": "a drawing", "MPEG": "a video",
    "FITS": "a table of measurements", "BUFR": "weather data", "GRIB": "weather data",
    "HDF5": "a data file",
}  # fmt: skip
ORIENTATION = 0x0112
SUBFILE_TYPE, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 262, 339  # TIFF 6.0, section 8 and 19
Turn = Image.Transpose
# EXIF 2.3, 4.6.4 A: what makes the stored pixels upright.
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90,
}  # fmt: skip
UNDONE = TURNS | {6: Turn.ROTATE_90, 8: Turn.ROTATE_270}
# Where none of these is present, an RGB picture is what its numbers say.
TOLD = {"transparency", "icc_profile", "gamma"}
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
UNSEEN = 2  # levels of 255: what two writings of the same profile differ by


def as_seen(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Return a new RGB image: the first frame, turned upright, transparency on white, in sRGB.

    `upright` False keeps the rows and columns as the file stores them. Raises ValueError where the
    picture has no evident look (see `needs_decoding`), and what Pillow raises over a broken file.
    """
    needs_decoding(image)
    # Pillow turns a TIFF while it decodes it, and takes the tag away.
    before = orientation(image) if image.format == "TIFF" else 1
    tile = next(iter(getattr(image, "tile", ())), None)
    image.load()
    after = orientation(image)
    if image.mode == "RGB" and not TOLD & image.info.keys():
        seen = image.convert("RGB")
    else:
        seen = _on_white(image, "" if tile is None else str(tile[3]))
    if image.format == "GIF" and tile is not None and tile[1] != (0, 0, *image.size):
        seen = _framed(seen, tile[1])
    seen.info = {}
    turn = TURNS.get(after) if upright else UNDONE.get(before) if before != after else None
    return seen if turn is None else seen.transpose(turn)


def needs_decoding(image: Image.Image) -> bool:
    """Tell whether only a picture's values can say that it has an evident look.

    Raises ValueError where its header says that it has none.
    """
    if not image.width or not image.height:
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    if image.format in UNDRAWN:
        raise ValueError(f"{image.format} is {UNDRAWN[image.format]}: export it as PNG")
    tags = getattr(image, "tag_v2", {})
    if image.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("signed 8-bit values have no evident black: save it as 8-bit grey")
    if tags.get(SUBFILE_TYPE, 0) & 1:
        raise ValueError("its first page is a preview only, as in camera raw: export it as JPEG")
    return image.mode == "F" or (image.mode == "I" and _white(image) is None)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION)
    except (OSError, *BROKEN):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def levels(values: NDArray[Any], white: int | None = None) -> NDArray[np.uint8]:
    """Return brightness values of any shape as 8-bit levels.

    `white` is the largest value where that is known, as it is of unsigned 8 and 16 bits. Else
    floats of 0..1 are shares of white, and whole numbers of 0..255 are levels. Raises ValueError
    for any others, because nothing says what is black and what is white in them.
    """
    kind, low, high = values.dtype.kind, values.min(), values.max()
    if white is None and kind in "bu" and values.itemsize < 4:
        white = 1 if kind == "b" else np.iinfo(values.dtype).max
    elif white is None and low >= 0 and kind == "f" and high <= 1:
        white = 1
    elif white is None and low >= 0 and high <= 255 and bool((values % 1 == 0).all()):
        white = 255
    if white is None:  # for NaN too, which compares false with everything
        raise ValueError(
            f"values {low:g} to {high:g} have no evident black and white: save it as 8- or 16-bit "
            "grey"
        )
    found: NDArray[np.uint8] = np.rint(values.astype(np.float32) * (255 / white)).astype(np.uint8)
    return found


def _white(image: Image.Image) -> int | None:
    """Return the largest value of a deep grey image where its file says it."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS, (16,))
        return (1 << int(bits[0])) - 1
    # Pillow scales these to 16 bits.
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _on_white(image: Image.Image, raw: str) -> Image.Image:
    """Return a decoded image in sRGB on white. `raw` is Pillow's name of how its file stores it."""
    colour, alpha = _parts(image, raw)
    profile = image.info.get("icc_profile")
    transform = _to_srgb(profile, colour.mode) if profile else None
    if transform is not None:
        seen = ImageCms.applyTransform(colour, transform)
        assert seen is not None
    else:
        seen = colour.convert("RGB")
        if not profile:
            seen = _with_gamma(seen, image.info)
    if alpha is None:
        return seen
    seen.putalpha(alpha)
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


def _parts(image: Image.Image, raw: str) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours (L, RGB or CMYK) and the opacity (L, None where all is opaque)."""
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image, key)
    if key is not None and image.mode in ("L", "RGB"):
        image = image.copy()
        image.info["transparency"] = _key(key, raw)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return (image if image.mode in SPACES.values() else image.convert("RGB")), None
    whole = image.convert("RGBA")
    grey = image.mode in ("L", "LA")
    return image.getchannel("L") if grey else whole.convert("RGB"), whole.getchannel("A")


def _deep(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(image)
    found = levels(values, _white(image))
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # white is zero; Pillow minds 8 bits
        found = 255 - found
    grey = Image.fromarray(found)
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))


def _key(key: Any, raw: str) -> Any:
    """Return a PNG's transparent colour as Pillow scales pixels: its own is as the file has it."""
    if raw in ("L;2", "L;4") and isinstance(key, int):
        return key * (85 if raw == "L;2" else 17)
    if isinstance(key, tuple) and (raw == "RGB;16B" or max(key) > 255):
        return tuple(value >> 8 for value in key)
    return key


def _with_gamma(seen: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """Return an image whose PNG says that its numbers are light to the power of gamma.

    1/2.2 and near it is what screens show as it is. The PNG specification, 13.13.
    """
    gamma = info.get("gamma", 0)
    if "srgb" in info or gamma < 0.01 or abs(gamma * 2.2 - 1) < 0.05:
        return seen
    curve = (np.arange(256) / 255) ** (1 / (2.2 * gamma))
    return seen.point([round(255 * value) for value in curve] * 3)


def _framed(seen: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a GIF's first frame on its screen: where it does not reach, there is nothing yet."""
    screen = Image.new("RGB", seen.size, "white")
    screen.paste(seen.crop(box), box[:2])
    return screen


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what takes a profile's colours to sRGB.

    None where the profile is broken or another mode's, as viewers do, or where it is sRGB itself.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if SPACES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        intent = ImageCms.Intent(source.profile.rendering_intent)
        srgb = ImageCms.createProfile("sRGB")
        # lcms would draw the curve of greys with a few straight lines.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
        probe = _probe(mode)
        seen = ImageCms.applyTransform(probe, transform)
    except (OSError, ImportError, ImageCms.PyCMSError, *BROKEN):
        return None
    plain = np.asarray(probe.convert("RGB"), np.int16)
    moved = np.abs(np.asarray(seen, np.int16) - plain).max()
    return transform if moved > UNSEEN else None


def _probe(mode: str) -> Image.Image:
    """Return an image with colours from all over a mode's space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    bands = len(Image.new(mode, (1, 1)).getbands())
    grid = np.stack(np.meshgrid(*[steps] * bands), -1).reshape(1, -1, bands)
    return Image.frombytes(mode, grid.shape[1::-1], grid.tobytes())
