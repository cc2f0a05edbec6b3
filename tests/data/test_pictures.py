"""Every picture as a person sees it, or refused by name; never silently something else."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from dcsurgery import pixels
from dcsurgery.data import rows
from dcsurgery.data.conversations import Row
from dcsurgery.data.pictures import ImageSource, RowError, image_source, open_images, sample_photo
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Prompter
from dcsurgery.errors import RequestError
from tests.data.picture_files import gif, grey_profile, png, saved, tiff
from tests.training.pictures import answer, picture, user

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHAS = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
RAMP = np.arange(256, dtype=np.uint16)[None] * 257


def seen(content: bytes, **options: Any) -> np.ndarray:
    """The pixels [H, W, 3] that the package sees in a file, after the look before training."""
    source = ImageSource("a file", data=content)
    source.check()
    image = source.open(**options)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels: Any) -> np.ndarray:
    """Levels [W] as an RGB picture [1, W, 3]."""
    return np.repeat(np.asarray(levels, np.uint8)[None, :, None], 3, axis=2)


def same(found: np.ndarray, wanted: Any) -> None:
    np.testing.assert_array_equal(found, np.asarray(wanted))


def on_white(image: Image.Image) -> np.ndarray:
    """PIL's own composite of any image with opacity."""
    whole = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, whole).convert("RGB"))


# --- orientation ---

# What stands where in EXIF 2.3, 4.6.4 A: row 0 and column 0 of the stored pixels.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def tagged(value: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(Image.fromarray(COLOURS), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("value", UPRIGHT)
def test_pictures_are_turned_as_their_tag_says(value: int, kind: str) -> None:
    content = tagged(value, kind, **LOSSLESS[kind])
    same(seen(content), UPRIGHT[value](COLOURS))
    same(seen(content, orientation="raw"), COLOURS)


@pytest.mark.parametrize("value", UPRIGHT)
def test_turned_jpegs_are_those_of_transformers(value: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(tagged(value))
    stored = np.asarray(Image.open(path).convert("RGB"))
    same(UPRIGHT[value](stored), load_image(str(path)))
    for source in (
        ImageSource("a path", path=path),
        ImageSource("bytes", data=path.read_bytes()),
        ImageSource("a PIL image", picture=Image.open(path)),
        image_source({"bytes": path.read_bytes(), "path": None}, None),
    ):
        for _ in range(2):
            same(source.open(), load_image(str(path)))
            same(source.open("raw"), stored)
    same(open_images([path])[0], load_image(str(path)))
    same(open_images([path], "raw")[0], stored)


def test_a_picture_is_turned_once_only() -> None:
    once = ImageSource("a file", data=tagged(6)).open()
    same(ImageSource("again", picture=once).open(), once)
    assert once.info == {}


def test_a_tag_in_xmp_counts_as_for_transformers() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    content = saved(Image.fromarray(COLOURS), "PNG")
    head, tail = content[:33], content[33:]
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    chunk = png((1, 1), 8, 0, [b"\0"], iTXt=text)[33:]
    content = head + chunk[: 12 + len(text)] + tail
    same(seen(content), UPRIGHT[6](COLOURS))
    same(seen(content), load_image(Image.open(io.BytesIO(content))))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif",
    {
        "no TIFF": b"Exif\0\0nonsense",
        "cut": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        "a rational over zero": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\x1a\0\0\0"
        + b"\0" * 12,
        "orientation 9": tagged(9)[24:],
    }.values(),
)
def test_a_broken_tag_turns_nothing_and_refuses_nothing(exif: bytes) -> None:
    content = saved(Image.fromarray(COLOURS), "PNG", exif=exif)
    same(seen(content), COLOURS)


def test_an_unknown_orientation_is_refused() -> None:
    with pytest.raises(RequestError, match="--orientation up is unknown"):
        open_images([], "up")


# --- transparency ---


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(COLOURS)
    image.putalpha(Image.fromarray(ALPHAS))
    if mode == "PA":
        flat = Image.fromarray(COLOURS).quantize(64).convert("PA")
        flat.putalpha(Image.fromarray(ALPHAS))
        return flat
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_put_on_white(mode: str) -> None:
    image = with_alpha(mode)
    found = np.asarray(ImageSource("drawn", picture=image).open())
    same(found, on_white(image))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    assert np.abs(found - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 1


def test_premultiplied_grey_is_put_on_white() -> None:
    image = with_alpha("LA").convert("La")
    same(ImageSource("drawn", picture=image).open(), on_white(image.convert("LA")))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "ICO", {"sizes": [(8, 6)]}),
        ("RGBA", "TGA", {}),
        ("RGBA", "JPEG2000", {}),
        ("LA", "PNG", {}),
        ("LA", "TIFF", {}),
        ("P", "PNG", {"transparency": 3}),
        ("P", "PNG", {"transparency": bytes(range(0, 255, 5))}),
        ("P", "GIF", {"transparency": 3}),
        ("L", "PNG", {"transparency": int(ALPHAS[0, 0])}),
        ("RGB", "PNG", {"transparency": tuple(int(level) for level in COLOURS[0, 0])}),
    ],
)
def test_files_with_transparency_are_those_of_transformers(
    mode: str, kind: str, options: dict[str, Any]
) -> None:
    drawn = {
        "P": Image.fromarray(COLOURS).quantize(40),
        "L": Image.fromarray(ALPHAS),
        "RGB": Image.fromarray(COLOURS),
    }
    content = saved(drawn.get(mode) or with_alpha(mode), kind, **options)
    with Image.open(io.BytesIO(content)) as opened:
        wanted = convert_to_rgb(opened, return_numpy=True)
        flat = np.asarray(opened.convert("RGBA").convert("RGB"))
    assert (wanted != flat).any(), "nothing is transparent"
    same(seen(content), wanted)


def test_a_palette_with_its_own_opacity() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 255, 0, 255, 0, 0, 0, 0, 255, 128], "RGBA")
    image.putdata([0, 1, 2])
    wanted = [[[255, 0, 0], [255, 255, 255], [127, 127, 255]]]
    same(ImageSource("drawn", picture=image).open(), wanted)


KEYED = {
    "1 bit": (1, [0b01000000], 0, [255, 255]),
    "2 bits": (2, [0b00011011], 1, [0, 255, 170, 255]),
    "4 bits": (4, [0x12], 1, [255, 34]),
    "8 bits": (8, [7, 8], 7, [255, 8]),
}


@pytest.mark.parametrize("name", KEYED)
def test_a_transparent_grey_counts_in_the_files_own_bits(name: str) -> None:
    depth, row, key, wanted = KEYED[name]
    content = png((len(wanted), 1), depth, 0, [bytes(row)], tRNS=struct.pack(">H", key))
    same(seen(content), grey(wanted))


def test_a_transparent_colour_of_16_bits() -> None:
    colours = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 4, 5, 0xFF00)
    key = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    wanted = [[[255, 255, 255], [0, 0, 255]]]
    same(seen(png((2, 1), 16, 2, [colours], tRNS=key)), wanted)
    greys = struct.pack(">3H", 1000, 1001, 65535)
    same(seen(png((3, 1), 16, 0, [greys], tRNS=struct.pack(">H", 1000))), grey([255, 4, 255]))


def test_a_gif_frame_that_does_not_fill_its_screen_stands_on_white() -> None:
    wanted = np.full((3, 4, 3), 255)
    wanted[1, 1:3] = (0, 255, 0)
    same(seen(gif((4, 3), (1, 1), (2, 1))), wanted)


# --- deep grey ---

DEEP: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: saved(Image.fromarray(RAMP), "PNG"),
    "TIFF": lambda: saved(Image.fromarray(RAMP), "TIFF"),
    "TIFF, big-endian": lambda: tiff(
        (256, 1), RAMP.astype(">u2").tobytes(), {258: (16,), 262: (1,)}, order=">"
    ),
    "TIFF, white is zero": lambda: tiff(
        (256, 1), (65535 - RAMP).tobytes(), {258: (16,), 262: (0,)}
    ),
    "TIFF, 12 bits": lambda: tiff((256, 1), twelve(RAMP >> 4), {258: (12,), 262: (1,)}),
    "PGM": lambda: b"P5 256 1 65535\n" + RAMP.astype(">u2").tobytes(),
    "JPEG 2000": lambda: saved(Image.fromarray(RAMP.repeat(8, 0)), "JPEG2000"),
    "float TIFF": lambda: saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "float TIFF of levels": lambda: saved(
        Image.fromarray((RAMP // 257).astype(np.float32)), "TIFF"
    ),
    "TIFF of whole numbers": lambda: saved(Image.fromarray((RAMP // 257).astype(np.int32)), "TIFF"),
    "PFM": lambda: b"Pf\n256 1\n-1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
}


def twelve(values: np.ndarray) -> bytes:
    """Values below 4096, two in three bytes."""
    first, second = values.reshape(-1, 2).T.astype(np.uint16)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    return packed.astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_ramp_keeps_its_levels(name: str) -> None:
    same(seen(DEEP[name]())[:1], grey(range(256)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_16_bits_in_memory_are_divided_by_257(mode: str) -> None:
    values = np.array([[0, 128, 129, 1000, 40000, 65535]], np.uint16)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (6, 1), values.astype(order).tobytes())
    wanted = grey([round(value / 257) for value in values[0].tolist()])
    same(ImageSource("drawn", picture=image).open(), wanted)


UNCLEAR = {
    "depth in millimetres": np.array([[0, 400, 3000]], np.int32),
    "density of tissue": np.array([[-1000, 0, 200]], np.int32),
    "depth in metres": np.array([[0.0, 1.5, 8.0]], np.float32),
    "around zero": np.array([[-0.5, 0.5]], np.float32),
    "not a number": np.array([[0.5, np.nan]], np.float32),
    "infinite": np.array([[0.5, np.inf]], np.float32),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_values_without_an_evident_white_are_refused(name: str) -> None:
    image = Image.fromarray(UNCLEAR[name])
    for source in (
        ImageSource("depth.tif", picture=image),
        ImageSource("depth.tif", data=saved(image, "TIFF")),
    ):
        for look in (source.check, source.open):
            with pytest.raises(RowError, match=r"depth\.tif .*no evident black and white"):
                look()


# --- other colours ---


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_opaque_pictures_are_those_of_pillow(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert("RGB" if mode == "RGB" else mode)
    same(ImageSource("drawn", picture=image).open(), image.convert("RGB"))
    if mode in ("CMYK", "YCbCr", "LAB"):
        same(seen(saved(image, "TIFF")), image.convert("RGB"))


@pytest.mark.parametrize("transform", [0, 2])
def test_jpegs_of_four_colours_are_turned_over_as_adobe_writes_them(transform: int) -> None:
    """Transform 2 is YCCK."""
    content = saved(picture().convert("CMYK"), "JPEG", quality=95)
    place = content.index(b"Adobe") + 11
    content = content[:place] + bytes([transform]) + content[place + 1 :]
    same(seen(content), load_image(Image.open(io.BytesIO(content))))
    if not transform:
        assert np.abs(seen(content).astype(int) - np.asarray(picture())).mean() < 20


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_profile_of_srgb_changes_nothing() -> None:
    content = saved(Image.fromarray(COLOURS), "PNG", icc_profile=srgb())
    same(seen(content), COLOURS)
    same(open_images([])[0], load_image(str(sample_photo())))


def test_a_profile_of_other_colours_is_applied() -> None:
    """sRGB's own profile with red and green exchanged: what a viewer shows is exchanged too."""
    exchanged = srgb().replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    for kind in ("PNG", "TIFF"):
        found = seen(saved(Image.fromarray(COLOURS), kind, icc_profile=exchanged)).astype(int)
        assert np.abs(found - COLOURS[..., [1, 0, 2]]).max() <= 2
    image = with_alpha("RGBA")
    found = seen(saved(image, "PNG", icc_profile=exchanged)).astype(int)
    assert np.abs(found - on_white(image)[..., [1, 0, 2]]).max() <= 2


def test_a_profile_of_greys_is_applied() -> None:
    levels = np.arange(256)
    light = levels / 255
    wanted = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    image = Image.fromarray(levels.astype(np.uint8)[None])
    found = seen(saved(image, "PNG", icc_profile=grey_profile(1.0))).astype(int)
    assert np.abs(found - wanted.round()[None, :, None]).max() <= 1
    image.putalpha(255)
    same(seen(saved(image, "PNG", icc_profile=grey_profile(1.0))), found)


@pytest.mark.parametrize("profile", [b"nonsense", srgb()[:200], grey_profile(1.0)])
def test_a_profile_that_does_not_fit_is_left_aside(profile: bytes) -> None:
    same(seen(saved(Image.fromarray(COLOURS), "PNG", icc_profile=profile)), COLOURS)


def test_a_gamma_is_applied() -> None:
    def file(gamma: int, **more: bytes) -> bytes:
        row = [bytes([0, 10, 100, 255])]
        return png((4, 1), 8, 0, row, gAMA=struct.pack(">I", gamma), **more)

    wanted = [round(255 * (level / 255) ** (1 / 2.2)) for level in (0, 10, 100, 255)]
    same(seen(file(100000)), grey(wanted))
    for plain in (file(45455), file(0), file(100000, sRGB=b"\0")):
        same(seen(plain), grey([0, 10, 100, 255]))


# --- several frames ---


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_seen(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "MPO" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **options)
    assert np.abs(seen(content).astype(int) - (255, 0, 0)).max() <= 2


def test_the_still_picture_of_an_animated_png_is_seen() -> None:
    still, moving = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))
    content = saved(still, "PNG", save_all=True, append_images=[moving], default_image=True)
    same(seen(content), still)


# --- refusals ---

DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
BOX = b"\0\0\0\x18ftyp"
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing.png": (b"", "is empty"),
    "zeros.png": (b"\0" * 5000, "nothing but zeros"),
    "text.jpg": (b"this is no picture" * 20, "not a picture"),
    "a.svg": (DRAWING, "SVG.*export it as PNG"),
    "b.svg": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n' + DRAWING, "SVG"),
    "c.svg": (b"\xef\xbb\xbf\n" + DRAWING, "SVG"),
    "error.jpg": (b"<!DOCTYPE html>\n<html>404</html>", "a web page: the download failed"),
    "denied.jpg": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
    "phone.jpg": (BOX + b"heic\0\0\0\0mif1heic", "HEIC: convert it"),
    "live.heic": (BOX + b"mif1\0\0\0\0mif1heic", "HEIC"),
    "clip.mp4": (BOX + b"isom\0\0\2\0", "a video"),
    "page.pdf": (b"%PDF-1.7\n", "a PDF"),
    "scan.dcm": (b"\0" * 128 + b"DICM\2\0", "DICOM"),
    "new.jxl": (b"\xff\x0a\0", "JPEG XL"),
    "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "array.npy": (b"\x93NUMPY\1\0", "NumPy"),
    "light.exr": (b"v/1\1\2\0\0\0", "tone-map"),
    "light.hdr": (b"#?RADIANCE\n", "tone-map"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "all.zip": (b"PK\3\4", "an archive"),
    "wide.tif": (tiff((1, 1), bytes(8), {258: (64,), 262: (1,), 339: (3,)}), "a TIFF that"),
    "signed.tif": (tiff((1, 1), b"\x80", {258: (8,), 262: (1,), 339: (2,)}), "signed 8-bit"),
    "raw.dng": (tiff((1, 1), b"\x80", {254: (1,), 258: (8,), 262: (1,)}), "preview only"),
    "a.eps": (saved(Image.new("L", (4, 4)), "EPS"), "PostScript.*export it as PNG"),
    "a.wmf": (
        b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x10\0\x10\0\x60\0\0\0\0\0\0\0\1\0\x09\0".ljust(80, b"\0"),
        "a drawing",
    ),
    "cut.jpg": (saved(picture(256, 256), "JPEG")[:-2000], "truncated"),
    "cut.png": (saved(picture(256, 256), "PNG")[:-2000], "cannot be read"),
    "cut.gif": (saved(picture(256, 256).quantize(200), "GIF")[:-9000], "truncated|cannot be read"),
    "cut.webp": (saved(picture(256, 256), "WEBP")[:-2000], "picture that|cannot be read"),
}  # fmt: skip


def no_ghostscript(*args: Any, **options: Any) -> None:
    raise AssertionError("a picture ran a program")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_named_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", no_ghostscript)
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    source = image_source(name, tmp_path)
    for look in (source.check, source.open):
        with pytest.raises(RowError, match=f"{name} .*({reason})"):
            look()
    with pytest.raises(RequestError, match=name) as caught:
        open_images([tmp_path / name])
    assert "PNG" in caught.value.hint


def test_a_picture_in_memory_can_be_refused_too() -> None:
    for image in (Image.new("RGB", (0, 5)), Image.open(io.BytesIO(REFUSED["a.eps"][0]))):
        for look in (ImageSource("it", picture=image).check, ImageSource("it", picture=image).open):
            with pytest.raises(RowError, match=r"it cannot be read: (it is 0 x 5|EPS is)"):
                look()


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source = ImageSource("bomb.png", data=saved(picture(), "PNG"))
    for look in (source.check, source.open):
        with pytest.raises(RowError, match=r"bomb\.png .*decompression bomb"):
            look()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "."):
        with pytest.raises(RowError, match="does not exist"):
            image_source(name, tmp_path / "none").check()


def test_a_whole_picture_with_a_strange_tail_is_no_bad_one() -> None:
    seen(saved(picture(), "JPEG") + b"\0" * 100)


def test_a_picture_may_stand_in_the_row_as_text() -> None:
    import base64

    text = base64.b64encode(saved(Image.fromarray(COLOURS), "PNG")).decode()
    same(image_source(f"data:image/png;base64,{text}", None).open(), COLOURS)
    same(image_source({"url": f"data:image/png;base64,{text}"}, None).open(), COLOURS)
    for broken in ("data:image/png;base64,***", "data:image/svg+xml;utf8,<svg/>", "data:,"):
        with pytest.raises(RowError, match="no base64"):
            image_source(broken, None)


def test_a_plain_picture_is_decoded_and_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are opened thousands of times: nothing more than before may happen to a plain JPEG."""

    def refuse(*args: Any) -> None:
        raise AssertionError("a plain picture went through colours")

    monkeypatch.setattr(pixels, "_on_white", refuse)
    content = saved(picture(), "JPEG")
    same(seen(content), load_image(Image.open(io.BytesIO(content))))


# --- where pictures go ---


def test_training_and_evaluation_see_the_pixels_of_transformers(
    tiny_clip: Path, tmp_path: Path
) -> None:
    """What plain transformers answers about: load_image and the model's own processor."""
    files = {
        "turned.jpg": tagged(6),
        "clear.png": saved(with_alpha("RGBA"), "PNG"),
        "plain.png": saved(picture(), "PNG"),
    }
    processor = load_processor(tiny_clip)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        loaded = load_image(str(tmp_path / name)) if name != "clear.png" else None
        shown = loaded or Image.fromarray(on_white(with_alpha("RGBA")))
        wanted = processor.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        row = Row("1", (user(None, "what?"), answer("it")), (image_source(name, tmp_path),))
        prompter = Prompter(processor)
        prompt = prompter.prompt(row.turns[:1], prompter.open(row.images))
        assert torch.equal(prompt["pixel_values"], wanted)
        assert torch.equal(prompter.encode(row).values["pixel_values"], wanted)
    raw = Prompter(processor, orientation="raw")
    (stored,) = raw.open([image_source("turned.jpg", tmp_path)])
    same(stored, Image.open(tmp_path / "turned.jpg").convert("RGB"))


def test_cells_of_a_data_set_and_a_stream_are_turned_once() -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    found = datasets.Dataset.from_dict(
        {"image": [{"bytes": tagged(6, "PNG"), "path": None}], "question": ["What?"]}, features
    )
    for items in (found.to_iterable_dataset(), rows._Records(found)):
        (row,) = rows.Rows("cells", items, root=None, trusted=True)
        assert isinstance(row, Row)
        same(row.images[0].open(), UPRIGHT[6](COLOURS))


def test_recipes_know_the_option() -> None:
    from dcsurgery.recipes.schema import Eval, Finetune, Verify

    for section in (Verify(), Finetune(data="a"), Eval(name="a", data="b")):
        assert section.orientation == "exif"
    with pytest.raises(ValueError, match="orientation"):
        Eval(name="a", data="b", orientation=json.loads('"up"'))
