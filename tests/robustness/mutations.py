"""Hypothesis strategies for random changes of files, within their format or of their bytes; used by fuzz.py."""

import copy
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

from hypothesis import strategies as st

EDGES = [0, 1, 2, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**64 - 1]
VALUES = [None, True, -1, 0, 7, 1.5, 10**9, 10**30, 1e300, float("nan"), float("-inf"), "", "x", "a\nb", "../x", [], {}]
VALUES += [[10**9], [1] * 50, {"a": 1}, "\ud800", "/etc/passwd", "digits", "static", ["6", "6"]]
DEEP = "[" * 100_000  # nesting that exceeds the recursion limit of parsers


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a flipped bit, an overwritten number, or a part that is removed, inserted or repeated."""
    at = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["flip", "number", "cut", "drop", "insert", "repeat"])):
        case "flip":
            return (
                content[:at]
                + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in content[at : at + 1])
                + content[at + 1 :]
            )
        case "number":
            width, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            number = (draw(st.sampled_from(EDGES)) % 256**width).to_bytes(width, order)
            return content[:at] + number + content[at + width :]
        case "cut":
            return content[:at]
        case "drop":
            return content[:at] + content[at + draw(st.integers(1, 40)) :]
        case "insert":
            return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
        case _:
            start = draw(st.integers(0, len(content)))
            return content[:at] + content[start : start + draw(st.integers(1, 200))] + content[at:]


@st.composite
def changed_value(draw: st.DrawFn, value):
    """A JSON value in which one nested value is replaced, removed, renamed, or copied from another place."""
    value = copy.deepcopy(value)
    places = [(value, key) for key in _keys(value)]
    for inside, key in places:
        places += [(inside[key], other) for other in _keys(inside[key])]
    if not places or draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(VALUES))
    inside, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "replace", "number", "drop", "name", "move"])):
        case "replace":
            inside[key] = draw(st.sampled_from(VALUES))
        case "number":
            inside[key] = draw(st.sampled_from(EDGES)) * draw(st.sampled_from([1, -1, 0.5]))
        case "drop":
            del inside[key]
        case "name" if isinstance(inside, dict):
            inside[draw(st.sampled_from(["", "x", "class", "step", "a\nb", "valid_elbo", "\ud800"]))] = inside.pop(key)
        case _:
            other, there = draw(st.sampled_from(places))
            inside[key] = copy.deepcopy(other[there])
    return value


def _keys(value) -> list:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON or JSON lines with one changed value, and rarely with very deep nesting."""
    lines = content.decode().splitlines()
    number = draw(st.integers(0, len(lines) - 1)) if len(lines) < 5 else None
    text = content.decode() if number is None else lines[number]
    text = json.dumps(draw(changed_value(json.loads(text))))
    if draw(st.integers(0, 49)) == 0:
        text = text.replace(":", ":" + DEEP, 1)
    if number is None:
        return text.encode()
    lines[number] = text
    return ("\n".join(lines) + "\n").encode()


@st.composite
def changed_npy(draw: st.DrawFn, content: bytes) -> bytes:
    """A .npy file with another shape, dtype or version in its header, or with a header that is changed as text."""
    length = struct.unpack("<H", content[8:10])[0]
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    shape = header[header.index("(") : header.index(")") + 1]
    numbers = st.sampled_from([*EDGES, -1, 4, 6, 10**11])
    match draw(st.sampled_from(["shape", "type", "text", "version"])):
        case "shape":
            header = header.replace(shape, str(tuple(draw(st.lists(numbers, max_size=5)))))
        case "type":
            kinds = [
                "|O",
                "<f8",
                ">f4",
                "<f2",
                "|u1",
                "<i8",
                "<c16",
                "<U3",
                "<U0",
                "|V0",
                "|S900",
                "<M8[s]",
                "<f16",
                "|b1",
            ]
            start = header.index("descr': '") + len("descr': '")
            header = header[:start] + draw(st.sampled_from(kinds)) + header[start + 3 :]
        case "text":
            header = draw(changed_bytes(header.encode("latin1"))).decode("latin1")
        case _:
            version = bytes([draw(st.integers(0, 4)), 0])
            return content[:6] + version + struct.pack("<I", draw(st.sampled_from(EDGES)) % 2**32) + content[10:]
    return content[:8] + struct.pack("<H", len(header) % 2**16) + header.encode("latin1") + body


@st.composite
def changed_zip(draw: st.DrawFn, content: bytes) -> bytes:
    """A valid archive in which one entry is changed, renamed, recompressed, enlarged, removed or duplicated."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
    at = draw(st.sampled_from(range(len(entries))))
    name, inner, method = entries[at]
    match draw(st.sampled_from(["inside", "inside", "inside", "bytes", "name", "compressed", "bomb", "drop", "twice"])):
        case "inside":
            changed = changed_npy if name.endswith(".npy") else changed_bytes
            entries[at] = name, draw(changed(inner)), method
        case "bytes":
            entries[at] = name, draw(changed_bytes(inner)), method
        case "name":
            other = draw(st.sampled_from(["../../x", "/tmp/x", name + "\n", name[:-4], name.upper(), "x" * 3000]))
            entries[at] = other, inner, method
        case "compressed":
            method = draw(
                st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            )
            entries[at] = name, inner, method
        case "bomb":
            entries[at] = name, inner + bytes(2**20), zipfile.ZIP_DEFLATED
        case "drop":
            del entries[at]
        case _:
            entries.insert(0, entries[at])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, inner, method in entries:
            archive.writestr(name, inner, method)
    return target.getvalue()


@st.composite
def changed_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with other shapes, dtypes, offsets, metadata or another length in its header."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    beside = header.get("__metadata__", {})
    if beside and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(beside)))
        beside[name] = draw(changed_json(beside[name].encode())).decode()
    else:
        header = draw(changed_value(header))
    header = json.dumps(header).encode()
    return struct.pack("<Q", draw(st.sampled_from([len(header)] * 9 + EDGES))) + header + body


@st.composite
def changed_png(draw: st.DrawFn, content: bytes) -> bytes:
    """A PNG with valid checksums in which one chunk is changed, removed, duplicated or of another type."""
    chunks, position = [], 8
    while position < len(content):
        length = struct.unpack(">I", content[position : position + 4])[0]
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    at = draw(st.sampled_from(range(len(chunks))))
    name, body = chunks[at]
    match draw(st.sampled_from(["body", "size", "drop", "twice", "name"])):
        case "body":
            chunks[at] = name, draw(changed_bytes(body))
        case "size":
            sides = (draw(st.sampled_from([1, 6, 100, 4096, 4097, 9000, 13_000, 2**31 - 1])) for _ in range(2))
            chunks[0] = b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:]
        case "drop":
            del chunks[at]
        case "twice":
            chunks.insert(at, chunks[at])
        case _:
            chunks[at] = (
                draw(st.sampled_from([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"fdAT", b"eXIf", b"IEND"])),
                body,
            )
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return content[:8] + b"".join(parts)


@st.composite
def changed_jpeg(draw: st.DrawFn, content: bytes) -> bytes:
    """A JPEG with another height and width in its header."""
    start = content.index(b"\xff\xc0") + 5
    sides = (draw(st.sampled_from([0, 1, 6, 4096, 4097, 65_535])) for _ in range(2))
    return content[:start] + struct.pack(">HH", *sides) + content[start + 4 :]


INSIDE = {
    ".npz": changed_zip,
    ".json": changed_json,
    ".jsonl": changed_json,
    ".safetensors": changed_safetensors,
    ".png": changed_png,
    ".jpg": changed_jpeg,
}


@st.composite
def mutated(draw: st.DrawFn, good: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and the changed content of one file, with one change within its format or up to three of its bytes."""
    name = draw(st.sampled_from(sorted(good)))
    content, inside = good[name], INSIDE.get(Path(name).suffix)
    if inside is not None and draw(st.integers(0, 2)):
        return name, draw(inside(content))
    for _ in range(draw(st.integers(1, 3))):
        content = draw(changed_bytes(content))
    return name, content
