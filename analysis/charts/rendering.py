"""Vega-Lite specs → SVG and PNG, in a process of its own: reads {path without suffix: spec} from standard input.

The renderer uses one core for each process, so `drawing` starts several of these. Knows nothing of figures, and imports
nothing that takes time.
"""

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import vl_convert

SCALE = 2  # pixels of a PNG for each of the SVG


def render(stem: Path, spec: dict[str, Any]) -> None:
    """One figure as SVG, and the PNG drawn from it."""
    vega = vl_convert.vegalite_to_vega(spec)
    for legend in vega.get("legends", []):
        # Vega-Lite gives the legend's filled symbols the lines' dashes as an outline, which frays them.
        symbols = legend.setdefault("encode", {}).setdefault("symbols", {}).setdefault("update", {})
        symbols["strokeWidth"] = {"value": 0}
        symbols.pop("strokeDash", None)
        legend.pop("strokeDash", None)
    svg = vl_convert.vega_to_svg(vega)
    stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
    stem.with_suffix(".png").write_bytes(packed(vl_convert.svg_to_png(svg, scale=SCALE)))


def packed(png: bytes) -> bytes:
    """The same picture in a third of the bytes: the renderer compresses quickly rather than well."""
    found, pixels, place = [], b"", 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        pixels += data if kind == b"IDAT" else b""
        found += [(kind, data)] if kind != b"IDAT" else []
        place += 12 + size
    found.insert(-1, (b"IDAT", zlib.compress(zlib.decompress(pixels), 9)))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in found
    ]
    return png[:8] + b"".join(parts)


if __name__ == "__main__":
    for name, one in json.load(sys.stdin).items():
        render(Path(name), one)
