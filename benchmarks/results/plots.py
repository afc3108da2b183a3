"""The plots that the page shows, copied next to it in few bytes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

LIMIT = 200_000
_COLOURS = (128, 64, 32)


def shown(source: Path, docs: Path, what: str) -> list[str]:
    """A plot as an image of the page."""
    _shrink(source, docs / source.name)
    return ["", f"![{what}]({source.name})", ""]


def _shrink(source: Path, target: Path) -> None:
    """In a palette of ever fewer colours, then in ever fewer points, until it is below the limit."""
    image = Image.open(source).convert("RGB")
    while True:
        for colours in _COLOURS:
            image.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)
            if target.stat().st_size < LIMIT:
                return
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)
