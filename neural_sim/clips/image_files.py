"""Is an image file whole? Told from its structure, at the speed of a copy, without decoding a pixel.

| damage | JPEG | PNG |
|---|---|---|
| the file ends early, is empty, zero-filled at its end, or of another kind | found | found |
| another size than expected | found | found |
| a header that no decoder takes: marker, length, table or component out of range | found | found |
| any changed bit of a chunk | - | found by its CRC |
| changed bits inside the compressed pixels or in a table's values | where they make a marker | found by its CRC |

JPEG carries no checksums, so its last row cannot be found by anyone: decoders draw other pixels and raise nothing.
"""

import re
import struct
import zlib

_JPEG_START = b"\xff\xd8"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Baseline, extended and progressive Huffman coding, and the last two with arithmetic coding: what decoders take.
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
# Lossless and hierarchical frames, a second start, and codes without a meaning.
_NOT_DECODABLE = {0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF, 0xD8, *range(0x02, 0xC0)}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_HUFFMAN_TABLES, _QUANTIZATION_TABLES, _SCAN, _END = 0xC4, 0xDB, 0xDA, 0xD9
# Within compressed pixels 0xFF is followed by 0x00 (it is data), by a restart marker D0-D7 or by a fill byte 0xFF.
_MARKER_AMONG_PIXELS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


class DamagedImageError(ValueError):
    """An image file is not whole; the message says where it breaks off or what is out of range."""


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height, px, of the JPEG or PNG file `content` after a walk over its structure to its end.

    Raises `DamagedImageError` on what the table of this module lists as found, and on files of other kinds.
    """
    try:
        if content.startswith(_JPEG_START):
            return _jpeg_size(content)
        if content.startswith(_PNG_START):
            return _png_size(content)
    except (struct.error, IndexError) as error:
        raise DamagedImageError(f"it ends inside its header, {len(content)} bytes") from error
    raise DamagedImageError(f"{len(content)} bytes that are neither JPEG nor PNG")


def _png_size(content: bytes) -> tuple[int, int]:
    kinds, position, size = [], len(_PNG_START), (0, 0)
    while not kinds or kinds[-1] != b"IEND":
        if position + 12 > len(content):
            raise DamagedImageError(f"it ends after {len(content)} bytes, before its last chunk")
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            raise DamagedImageError(f"its chunk at byte {position} runs past its end")
        body = memoryview(content)[position + 4 : end - 4]
        if zlib.crc32(body) != struct.unpack_from(">I", content, end - 4)[0]:
            raise DamagedImageError(f"the checksum of its chunk at byte {position} is wrong")
        if kind == b"IHDR":
            size = _png_header(content[position + 8 : end - 4])
        kinds.append(kind)
        position = end
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1 or b"IDAT" not in kinds:
        raise DamagedImageError("it has not one header followed by pixels")
    return size


def _png_header(body: bytes) -> tuple[int, int]:
    width_px, height_px, depth, color, compression, filters, interlace = struct.unpack(">IIBBBBB", body)
    if not width_px or not height_px or depth not in _PNG_DEPTHS.get(color, ()) or compression or filters:
        raise DamagedImageError("its header has values that do not exist")
    if interlace > 1:
        raise DamagedImageError(f"its header has interlacing {interlace}, which does not exist")
    return width_px, height_px


class _JpegTables:
    """What the segments of a JPEG file have told so far: the frame's size and components, and the ids of tables."""

    size: tuple[int, int] | None = None
    progressive: bool = False

    def __init__(self) -> None:
        self.quantization_of_component: dict[int, int] = {}
        self.quantization: set[int] = set()
        self.huffman: set[int] = set()

    def read_frame(self, code: int, body: bytes) -> None:
        precision, height_px, width_px, count = struct.unpack_from(">BHHB", body)
        if self.size is not None or precision != 8 or not width_px or not height_px:
            raise DamagedImageError("its frame header is out of range")
        if count not in (1, 3, 4) or len(body) != 6 + 3 * count:
            raise DamagedImageError(f"its frame header has {count} components in {len(body)} bytes")
        entries = list(struct.iter_unpack("BBB", body[6:]))
        self.quantization_of_component = {component: table for component, _, table in entries}
        if len(self.quantization_of_component) != count or max(self.quantization_of_component.values()) > 3:
            raise DamagedImageError("its frame header names a component twice or a table that does not exist")
        _check_sampling([(sampling >> 4, sampling & 15) for _, sampling, _ in entries])
        self.size, self.progressive = (width_px, height_px), code in (0xC2, 0xCA)

    def read_quantization(self, body: bytes) -> None:
        position = 0
        while position < len(body):
            precision, table = body[position] >> 4, body[position] & 15
            position += 1 + 64 * (precision + 1)
            if precision > 1 or table > 3 or position > len(body):
                raise DamagedImageError("a quantization table is out of range")
            self.quantization.add(table)

    def read_huffman(self, body: bytes) -> None:
        position = 0
        while position < len(body):
            table, counts = body[position], body[position + 1 : position + 17]
            position += 17 + sum(counts)
            taken = sum(count << (16 - length) for length, count in enumerate(counts, 1))
            # The code of ones alone is reserved, and symbols of first coefficients are below 16.
            symbols = body[position - sum(counts) : position] if table < 0x10 else b""
            if table & 0xEF > 3 or len(counts) < 16 or sum(counts) > 256 or taken > 65535 or position > len(body):
                raise DamagedImageError("a Huffman table is out of range")
            if any(symbol > 15 for symbol in symbols):
                raise DamagedImageError("a Huffman table has symbols that do not exist")
            self.huffman.add(table)

    def check_scan(self, body: bytes) -> None:
        """Raise unless the scan's components and tables are there."""
        count = body[0]
        if self.size is None or not 1 <= count <= 4 or len(body) != 4 + 2 * count:
            raise DamagedImageError("a scan header is out of range")
        first, last, bits = body[1 + 2 * count :]
        if self.progressive:
            _check_pass(first, last, bits, count)
        for component, tables in struct.iter_unpack("BB", body[1 : 1 + 2 * count]):
            if self.quantization_of_component.get(component) not in self.quantization:
                raise DamagedImageError(f"component {component} of a scan has no frame entry or quantization table")
            # Files without any Huffman table, as in motion JPEG, mean the standard ones.
            needed = {tables >> 4, 0x10 | tables & 15}
            if self.progressive:
                needed = {0x10 | tables & 15} if first > 0 else {tables >> 4} if bits < 0x10 else set()
            if self.huffman and not needed <= self.huffman:
                raise DamagedImageError(f"component {component} of a scan has no Huffman table")


def _check_sampling(factors: list[tuple[int, int]]) -> None:
    """Raise unless the components' horizontal and vertical sampling divides the finest one into at most 10 blocks."""
    for lengths in zip(*factors, strict=True):
        if any(not 1 <= length <= 4 or max(lengths) % length for length in lengths):
            raise DamagedImageError("its frame header has sampling factors that do not exist")
    if len(factors) > 1 and sum(across * down for across, down in factors) > 10:
        raise DamagedImageError("its frame header has sampling factors that do not exist")


def _check_pass(first: int, last: int, bits: int, count: int) -> None:
    """Raise unless a progressive scan adds coefficients or one bit to them; `bits` holds the last bit and this one."""
    before, now = bits >> 4, bits & 15
    outside = last != 0 if first == 0 else not first <= last <= 63 or count != 1
    if outside or now > 13 or (before and now != before - 1):
        raise DamagedImageError(f"a scan of {count} components adds bit {now} of coefficients {first} to {last}")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    tables, position, scans = _JpegTables(), len(_JPEG_START), 0
    while True:
        code, position = _next_marker(content, position)
        if code == _END:
            break
        if code in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", content, position)
        end = position + length
        if length < 2 or end > len(content):
            raise DamagedImageError(f"its segment at byte {position} runs past its end")
        body, position = content[position + 2 : end], end
        if code in _FRAME_HEADERS:
            tables.read_frame(code, body)
        elif code == _QUANTIZATION_TABLES:
            tables.read_quantization(body)
        elif code == _HUFFMAN_TABLES:
            tables.read_huffman(body)
        elif code == _SCAN:
            tables.check_scan(body)
            position, scans = _end_of_scan(content, end), scans + 1
        elif code in _NOT_DECODABLE:
            raise DamagedImageError(f"its segment FF{code:02X} is not decodable")
    if tables.size is None or not scans:
        raise DamagedImageError("it ends before its pixels")
    return tables.size


def _next_marker(content: bytes, position: int) -> tuple[int, int]:
    """Code of the marker at `position`, fill bytes skipped, and where it ends."""
    start = position
    while content[position] == 0xFF:
        position += 1
    if position == start or content[position] == 0:
        raise DamagedImageError(f"no marker at byte {start}")
    return content[position], position + 1


def _end_of_scan(content: bytes, position: int) -> int:
    found = _MARKER_AMONG_PIXELS.search(content, position)
    if found is None:
        raise DamagedImageError(f"it ends inside its pixels, after {len(content)} bytes")
    return found.start()
