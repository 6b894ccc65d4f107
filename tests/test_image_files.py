"""Whole image files pass the walk over their structure; damaged ones do not, and rarely get to the decoder."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from neural_sim.clips.image_files import DamagedImageError, image_size

SIZE = (40, 24)
KINDS = {
    "baseline": ("RGB", "JPEG", {"quality": 60}),
    "own tables": ("RGB", "JPEG", {"optimize": True}),
    "progressive": ("RGB", "JPEG", {"progressive": True}),
    "gray": ("L", "JPEG", {}),
    "CMYK": ("CMYK", "JPEG", {}),
    "full colour": ("RGB", "JPEG", {"subsampling": 0}),
    "restarts": ("RGB", "JPEG", {"restart_marker_blocks": 2}),
    "with notes": ("RGB", "JPEG", {"comment": b"\xff\xd9 is no end here"}),
    "PNG": ("RGB", "PNG", {}),
    "gray PNG": ("L", "PNG", {}),
    "palette PNG": ("P", "PNG", {}),
}


def encoded(kind):
    mode, file_format, options = KINDS[kind]
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, file_format, **options)
    return out.getvalue()


def decodes(content):
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def is_whole(content):
    try:
        return image_size(content) == SIZE
    except DamagedImageError:
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_pass(kind):
    assert image_size(encoded(kind)) == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_found(kind):
    content = encoded(kind)
    for length in range(len(content)):
        with pytest.raises(DamagedImageError):
            image_size(content[:length])
        zeros = bytes(len(content) - length)
        assert zeros == content[length:] or not is_whole(content[:length] + zeros), length


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "PNG" in kind])
def test_every_changed_bit_of_a_png_is_found(kind):
    content = encoded(kind)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        assert not is_whole(bytes(damaged)), position


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "PNG" not in kind])
def test_what_a_decoder_refuses_of_a_jpeg_is_found(kind):
    """Of 1500 changed bytes nearly all that the decoder stumbles over; the rest draws other pixels and tells nobody."""
    content, draw = encoded(kind), random.Random(kind)
    pixels = content.rindex(b"\xff\xda")
    refused, missed = 0, []
    for _ in range(1500):
        damaged = bytearray(content)
        position = draw.randrange(pixels + 14) if draw.random() < 0.8 else draw.randrange(len(content))
        damaged[position] = draw.randrange(256)
        if not decodes(bytes(damaged)):
            refused += 1
            missed += [position] if is_whole(bytes(damaged)) else []
    assert refused > 100
    assert len(missed) <= 0.01 * refused, missed


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^0 bytes that are neither JPEG nor PNG"),
        (b"GIF89a" + bytes(100), "neither JPEG nor PNG"),
        (b"\xff\xd8", "ends inside its header, 2 bytes"),
        (b"\xff\xd8\xff\xd9", "ends before its pixels"),
        (b"\xff\xd8\xff\xd8\x00\x04\x00\x00", "segment FFD8 is not decodable"),
        (b"\xff\xd8\xff\xe0\xff\xff", "segment at byte 4 runs past its end"),
        (b"\xff\xd8\x00\x00", "no marker at byte 2"),
        (PNG_START + chunk(b"IEND", b""), "not one header followed by pixels"),
        (PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 3, 2, 0, 0, 0)), "values that do not exist"),
        (PNG_START + chunk(b"IHDR", bytes(12)), "ends inside its header"),
        (PNG_START + struct.pack(">I", 2**31) + b"IDAT" + bytes(20), "chunk at byte 8 runs past its end"),
        (PNG_START + chunk(b"IDAT", b"x" * 9)[:-1] + b"\x00", "checksum of its chunk at byte 8 is wrong"),
    ],
)
def test_messages(content, message):
    with pytest.raises(DamagedImageError, match=message):
        image_size(content)


def test_what_follows_the_end_does_not_matter():
    for kind in ("baseline", "PNG"):
        assert image_size(encoded(kind) + b"padding of a camera") == SIZE
