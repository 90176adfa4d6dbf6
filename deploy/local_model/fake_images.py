"""Fake images without a model, in the format of OpenAI's images API: a card with the prompt, labelled as a drawing."""

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
MAX_PROMPT_CHARS = 32_000
# OpenAI's count for a square image of low quality, so that budgets and bills have amounts.
TOKENS_PER_CARD = 272

JsonObject = dict[str, Any]


class InvalidImageRequest(Exception):
    """The request cannot be fulfilled."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


def generate(body: JsonObject, *, now: int) -> JsonObject:
    """Returns the response to POST /v1/images/generations. Raises InvalidImageRequest, which names the parameter."""
    prompt, count, image_format = body.get("prompt"), body.get("n") or 1, body.get("output_format") or "png"
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidImageRequest(f"`prompt` must be a text of 1 to {MAX_PROMPT_CHARS} characters.", param="prompt")
    if body.get("model", MODEL) != MODEL:
        raise InvalidImageRequest(f"The only images model here is `{MODEL}`.", param="model")
    if type(count) is not int or not 1 <= count <= 10:
        raise InvalidImageRequest("`n` must be a whole number from 1 to 10.", param="n")
    if image_format not in FORMATS:
        raise InvalidImageRequest(f"`output_format` must be one of {', '.join(FORMATS)}.", param="output_format")
    if (quality := body.get("quality") or "auto") not in QUALITIES:
        raise InvalidImageRequest(f"`quality` must be one of {', '.join(QUALITIES)}.", param="quality")
    if body.get("stream"):
        raise InvalidImageRequest("A drawing is done at once: `stream` is not supported here.", param="stream")
    width, height = _size(body.get("size") or "auto")
    cards = [base64.b64encode(card(prompt, (width, height), number=n, image_format=image_format)).decode() for n in range(1, count + 1)]
    return {
        "created": now, "data": [{"b64_json": data} for data in cards], "background": "opaque", "output_format": image_format,
        "quality": "low" if quality == "auto" else quality, "size": f"{width}x{height}", "usage": _usage(prompt, count),
    }  # fmt: skip


def card(prompt: str, size: tuple[int, int], *, number: int, image_format: str) -> bytes:
    """Draws a card; the same prompt and number give the same image."""
    width, height = size
    hue = hashlib.sha256(f"{number} {prompt}".encode(errors="replace")).digest()[0] / 255
    image = Image.new("RGB", size, _colour(hue, 0.25, 0.97))
    draw = ImageDraw.Draw(image)
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
    image.save(file, image_format.upper(), **({"optimize": True} if image_format == "png" else {}))
    return file.getvalue()


def _size(text: object) -> tuple[int, int]:
    if text == "auto":
        return 1024, 1024
    match = re.fullmatch(r"([0-9]{3,4})x([0-9]{3,4})", text) if isinstance(text, str) else None
    if not match or int(match[1]) not in SIDE_PX or int(match[2]) not in SIDE_PX:
        raise InvalidImageRequest(f"`size` must be `auto` or `WxH`, each side from {SIDE_PX[0]} to {SIDE_PX[-1]}.", param="size")
    return int(match[1]), int(match[2])


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _drawable(prompt: str) -> str:
    # The font library refuses lone surrogates, and the built-in font has no dashes.
    return " ".join(prompt.encode("utf-8", "replace").decode().translate({0x2013: "-", 0x2014: "-"}).split())


def _usage(prompt: str, count: int) -> JsonObject:
    text_tokens, image_tokens = token_estimate.estimate_text(prompt), TOKENS_PER_CARD * count
    return {
        "input_tokens": text_tokens, "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
        "output_tokens": image_tokens, "total_tokens": text_tokens + image_tokens,
    }  # fmt: skip
