"""Pictures to verify on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcsurgery.errors import RequestError

# What Pillow raises for a broken file, besides OSError.
BROKEN = (EOFError, IndexError, SyntaxError, ValueError, struct.error)


def sample_photo() -> Path:
    """Return the path of a real photograph that matplotlib installs (public domain, 512 x 600)."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def open_images(paths: Sequence[Path]) -> list[Any]:
    """Return RGB PIL images; the sample photograph when no path is given.

    Raises RequestError for a file that is missing or is no picture.
    """
    from PIL import Image

    images = []
    for path in paths or [sample_photo()]:
        try:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        except (OSError, Image.DecompressionBombError, *BROKEN) as error:
            raise RequestError(
                f"{path} is not a picture that can be read ({str(error)[:80]})",
                hint="pass PNG or JPEG files to --image",
            ) from None
    return images
