"""Text on pictures."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

_MOST_LETTERS = 4000  # of a caption; more would take seconds to draw


def stamped(image: Image.Image, words: str) -> Image.Image:
    """Return a copy with the words on a black strip at the bottom, legible on any picture."""
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    font = ImageFont.load_default(max(10, image.height // 24))
    left, top, right, bottom = draw.textbbox((0, 0), words, font=font)
    strip = bottom - top + 8
    draw.rectangle((0, image.height - strip, right - left + 12, image.height), fill="black")
    draw.text((6 - left, image.height - strip + 4 - top), words, fill="white", font=font)
    return copy


def caption(words: str, width: int, size: int = 14) -> Image.Image:
    """Return a white strip of that width with the words in black, in as many lines as needed."""
    font = ImageFont.load_default(size)
    words = words if len(words) <= _MOST_LETTERS else f"{words[:_MOST_LETTERS]}..."
    lines: list[str] = []
    for word in words.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 8:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    strip = Image.new("RGB", (width, (size + 4) * len(lines) + 6), "white")
    ImageDraw.Draw(strip).multiline_text((4, 2), "\n".join(lines), fill="black", font=font, spacing=4)
    return strip
