"""A picture as a page of its own: the canvas, its picture packed inside, and nothing that is loaded."""

from __future__ import annotations

import base64
import gzip
import html
import json

from dualpipe_rs._core import Picture
from dualpipe_rs.drawing.block import block
from dualpipe_rs.drawing.options import Options
from dualpipe_rs.drawing.script import script

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
html {{ color-scheme: light dark; }}
body {{ margin: 0; padding: 8px; }}
</style>
</head>
<body>
<noscript>The timeline is drawn by a script in this file; no address is loaded.</noscript>
<script type="application/octet-stream" id="picture">{picture}</script>
<script type="module">
{script}
const view = new View(document.body, {{ wheel: true }});
view.setOptions({options});
view.set(await unpack(document.getElementById("picture").textContent));
document.body.style.background = view.colours.paper;
document.body.dataset.ready = "true";
requestAnimationFrame(() => requestAnimationFrame(() => {{ window.drawnAt = performance.now(); }}));
</script>
</body>
</html>
"""


def page(picture: Picture, options: Options) -> str:
    """The whole page; the same text for the same picture."""
    # No time stamp: the same picture gives the same bytes.
    packed = gzip.compress(block(picture), compresslevel=6, mtime=0)
    return _PAGE.format(
        title=html.escape(picture.title()),
        picture=base64.b64encode(packed).decode(),
        script=script(),
        options=json.dumps(options.turnable),
    )
