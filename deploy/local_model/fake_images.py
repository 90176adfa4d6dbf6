"""Pictures without a model: the prompt on a card, which says that it is a drawing. In the shape of OpenAI's images API."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import io
import re
import textwrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from models.content import token_estimate

MODEL = "drawing-card"
NOTE = "A drawing made by a program, not a picture made by a model."
FORMATS = ("png", "jpeg", "webp")
QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max")
SIDE_PX = range(256, 2049)
MOST_CHARACTERS = 32_000
# What OpenAI counts for a square picture of low quality: so that budgets and bills have something to add up.
TOKENS_PER_CARD = 272

JsonObject = dict[str, Any]


class Impossible(Exception):
    """The request asks for what cannot be drawn."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


def generate(body: JsonObject, *, now: int) -> JsonObject:
    """The answer to POST /v1/images/generations. Raises Impossible, which names the parameter."""
    prompt, count, form = body.get("prompt"), body.get("n") or 1, body.get("output_format") or "png"
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MOST_CHARACTERS:
        raise Impossible(f"`prompt` must be a text of 1 to {MOST_CHARACTERS} characters.", param="prompt")
    if body.get("model", MODEL) != MODEL:
        raise Impossible(f"The only images model here is `{MODEL}`.", param="model")
    if type(count) is not int or not 1 <= count <= 10:
        raise Impossible("`n` must be a whole number from 1 to 10.", param="n")
    if form not in FORMATS:
        raise Impossible(f"`output_format` must be one of {', '.join(FORMATS)}.", param="output_format")
    if (quality := body.get("quality") or "auto") not in QUALITIES:
        raise Impossible(f"`quality` must be one of {', '.join(QUALITIES)}.", param="quality")
    if body.get("stream"):
        raise Impossible("A drawing is done at once: `stream` is not supported here.", param="stream")
    width, height = _size(body.get("size") or "auto")
    cards = [base64.b64encode(card(prompt, (width, height), number=n, form=form)).decode() for n in range(1, count + 1)]
    return {
        "created": now, "data": [{"b64_json": each} for each in cards], "background": "opaque", "output_format": form,
        "quality": "low" if quality == "auto" else quality, "size": f"{width}x{height}", "usage": _usage(prompt, count),
    }  # fmt: skip


def card(prompt: str, size: tuple[int, int], *, number: int, form: str) -> bytes:
    """The same prompt and number give the same picture."""
    width, height = size
    hue = hashlib.sha256(f"{number} {prompt}".encode(errors="replace")).digest()[0] / 255
    picture = Image.new("RGB", size, _colour(hue, 0.25, 0.97))
    draw = ImageDraw.Draw(picture)
    edge = min(size) // 16
    draw.rounded_rectangle((edge, edge, width - edge, height - edge), radius=edge, fill="white", outline=_colour(hue, 0.7, 0.6), width=6)
    draw.ellipse((width - 4 * edge, 2 * edge, width - 2 * edge, 4 * edge), fill=_colour(hue + 0.5, 0.5, 0.95))
    letter = min(size) // 18
    columns = max(8, int((width - 4 * edge) / (letter * 0.55)))
    rows = max(1, int((height - 9 * edge) / (letter * 1.3)))
    text = textwrap.fill(_drawable(prompt), columns, max_lines=rows, placeholder=" …")
    draw.multiline_text((2 * edge, 5 * edge), text, font=ImageFont.load_default(letter), fill="black", spacing=letter * 0.3)
    small = ImageFont.load_default(max(9, min(size) // 40))
    draw.text((2 * edge, height - 2 * edge), NOTE, font=small, fill="black", anchor="ls")
    file = io.BytesIO()
    picture.save(file, form.upper(), **({"optimize": True} if form == "png" else {}))
    return file.getvalue()


def _size(text: object) -> tuple[int, int]:
    if text == "auto":
        return 1024, 1024
    found = re.fullmatch(r"([0-9]{3,4})x([0-9]{3,4})", text) if isinstance(text, str) else None
    if not found or int(found[1]) not in SIDE_PX or int(found[2]) not in SIDE_PX:
        raise Impossible(f"`size` must be `auto` or `WxH`, each side from {SIDE_PX[0]} to {SIDE_PX[-1]}.", param="size")
    return int(found[1]), int(found[2])


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _drawable(prompt: str) -> str:
    # A lone surrogate has no glyph, and the font's library refuses it; the built-in font has no dashes either.
    return " ".join(prompt.encode("utf-8", "replace").decode().translate({0x2013: "-", 0x2014: "-"}).split())


def _usage(prompt: str, count: int) -> JsonObject:
    text, image = token_estimate.estimate_text(prompt), TOKENS_PER_CARD * count
    return {
        "input_tokens": text, "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
        "output_tokens": image, "total_tokens": text + image,
    }  # fmt: skip
