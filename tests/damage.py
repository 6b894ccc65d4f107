"""Ways in which files arrive broken, for fuzz tests: each takes a file and a `random.Random` and spoils it."""

import io
import json
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet

NASTY_NUMBERS = ("NaN", "Infinity", "-1", "0", "1e300", "99999999999999999999", '"x"', "null", "[]")


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))] if content else b"")


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def flip_bytes(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 12)):
        if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(bytes(content))


def replace_a_number(path: Path, draw: random.Random) -> None:
    """NaN, huge and negative numbers and other types, in text; bytes are flipped in other files."""
    content = path.read_bytes()
    numbers = list(re.finditer(rb"-?\d+\.?\d*(e[-+]?\d+)?", content[:200_000]))
    if not numbers or path.suffix not in (".txt", ".json", ".xml", ".xodr", ".yaml"):
        return flip_bytes(path, draw)
    number = draw.choice(numbers)
    path.write_bytes(content[: number.start()] + draw.choice(NASTY_NUMBERS).encode() + content[number.end() :])
    return None


def drop_a_part(path: Path, draw: random.Random) -> None:
    """A column of a table, a key of JSON, a line or word of text."""
    if path.suffix in (".feather", ".parquet"):
        table = read_table(path)
        write_table(table.drop_columns([draw.choice(table.column_names)]), path)
    elif path.suffix == ".json":
        value = json.loads(path.read_text())
        drop_key(value, draw)
        path.write_text(json.dumps(value))
    else:
        words = path.read_bytes().split(b" ")
        del words[draw.randrange(len(words))]
        path.write_bytes(b" ".join(words))


def spoil_values(path: Path, draw: random.Random) -> None:
    """NaN, swapped axes and huge values in the columns of a table or the rows of an array."""
    if path.suffix in (".feather", ".parquet"):
        table = read_table(path)
        names = [name for name in table.column_names if pa.types.is_floating(table[name].type)]
        if names and len(table):
            values = table[names[0]].to_numpy().copy()
            values[draw.randrange(len(values))] = draw.choice([np.nan, np.inf, 1e30])
            first = draw.choice(names)
            second = draw.choice(names)
            table = table.set_column(table.column_names.index(first), first, table[second])
            table = table.set_column(table.column_names.index(names[0]), names[0], pa.array(values))
        write_table(table, path)
    else:
        replace_a_number(path, draw)


def huge_count(path: Path, draw: random.Random) -> None:
    """An array that claims more values than there are bytes; other files grow a tail."""
    content = path.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        path.write_bytes(content.replace(b"'shape': (", b"'shape': (9999999999, ", 1))
    else:
        path.write_bytes(content + content[-100:] * draw.randint(1, 50))


def escape_or_bomb(path: Path, draw: random.Random) -> None:
    """A zip with a member that leaves it or unpacks to a thousand times its size; other files are cut."""
    if path.suffix not in (".zip", ".usdz", ".npz"):
        return truncate(path, draw)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        victim = draw.choice(sorted(members))
        for name, content in members.items():
            archive.writestr("../" * draw.randint(0, 2) + name if name == victim else name, content)
            if name == victim and draw.random() < 0.5:
                archive.writestr(f"{name}.extra", bytes(10_000_000))
    return None


WAYS = (truncate, empty, delete, flip_bytes, replace_a_number, drop_a_part, spoil_values, huge_count, escape_or_bomb)


def spoil(root: Path, draw: random.Random) -> str:
    """Spoil one file below `root` and say which and how; small and large kinds of files are hit equally often."""
    by_kind: dict[str, list[Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        by_kind.setdefault(path.suffix or path.name, []).append(path)
    path = draw.choice(by_kind[draw.choice(sorted(by_kind))])
    way = draw.choice(WAYS)
    way(path, draw)
    return f"{way.__name__} {path.relative_to(root)}"


def drop_key(value: object, draw: random.Random) -> None:
    """Take a key or entry out of nested JSON values."""
    while isinstance(value, dict | list) and value:
        key = draw.choice(sorted(value)) if isinstance(value, dict) else draw.randrange(len(value))
        inner = value[key]
        if draw.random() < 0.4 or not isinstance(inner, dict | list) or not inner:
            del value[key]
            return
        value = inner


def read_table(path: Path) -> pa.Table:
    content = io.BytesIO(path.read_bytes())
    return feather.read_table(content) if path.suffix == ".feather" else parquet.read_table(content)


def write_table(table: pa.Table, path: Path) -> None:
    if path.suffix == ".feather":
        feather.write_feather(table, path)
    else:
        parquet.write_table(table, path)
