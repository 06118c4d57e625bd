"""The beginnings of small real files of many types, made here."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from typing import Final


def png() -> bytes:
    """One grey pixel, whole and valid."""

    def piece(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = piece(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + piece(b"IDAT", zlib.compress(b"\0\x80")) + piece(b"IEND", b"")


def zipped(*names: str, first: tuple[str, str] | None = None) -> bytes:
    """An archive of so named members; `first`, with its content, is not compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        if first is not None:
            archive.writestr(zipfile.ZipInfo(first[0]), first[1])
        for name in names:
            archive.writestr(name, "<x/>" * 10)
    return made.getvalue()


def office(folder: str) -> bytes:
    """An Office Open XML document."""
    return zipped("[Content_Types].xml", "_rels/.rels", f"{folder}/document.xml")


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return made.getvalue()


def boxed(brand: bytes, *more: bytes) -> bytes:
    """An ISO base media file of that brand, with compatible ones."""
    kind = brand + bytes(4) + b"".join(more)
    return struct.pack(">I", 8 + len(kind)) + b"ftyp" + kind + struct.pack(">I", 72) + b"mdat" + bytes(64)


def ebml(kind: bytes) -> bytes:
    """A Matroska header of that DocType."""
    fields = (
        b"\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82" + bytes([0x80 | len(kind)]) + kind
    )
    return b"\x1a\x45\xdf\xa3" + bytes([0x80 | len(fields)]) + fields + b"\x18\x53\x80\x67" + bytes(40)


def riff(kind: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 44) + kind + bytes(40)


PAGE: Final = b"<!DOCTYPE html><title>x</title><script>alert(1)</script>"
DRAWING: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_XML: Final = b'<?xml version="1.0"?>\n'
_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
_OPEN: Final = "application/vnd.oasis.opendocument.text"

#: name -> content, and what its first bytes say it is
SAMPLES: Final[dict[str, tuple[bytes, str | None]]] = {
    "png": (png(), "image/png"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + bytes(40), "image/jpeg"),
    "gif": (b"GIF89a\1\0\1\0\0\0\0;", "image/gif"),
    "webp": (riff(b"WEBPVP8 "), "image/webp"),
    "bmp": (b"BM" + struct.pack("<IHHIIiiHH", 58, 0, 0, 54, 40, 1, 1, 1, 24) + bytes(28), "image/bmp"),
    "tiff": (b"II*\0\x08\0\0\0" + bytes(40), "image/tiff"),
    "icon": (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(40), "image/x-icon"),
    "heic": (boxed(b"heic", b"mif1", b"heic"), "image/heic"),
    "heic of a phone": (boxed(b"mif1", b"mif1", b"heic"), "image/heic"),
    "avif": (boxed(b"avif", b"avif", b"mif1", b"miaf"), "image/avif"),
    "mp4": (boxed(b"isom", b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4"),
    "mp4 of a phone": (boxed(b"mp42", b"isom", b"mp42"), "video/mp4"),
    "mp4 of a browser": (boxed(b"iso5", b"iso5", b"iso6", b"dash"), "video/mp4"),
    "mp4 in pieces": (boxed(b"iso6", b"iso6", b"cmfc"), "video/mp4"),
    "mp4 by its codec": (boxed(b"avc1", b"avc1"), "video/mp4"),
    "m4a": (boxed(b"M4A ", b"M4A ", b"mp42"), "audio/mp4"),
    "audio book": (boxed(b"M4B ", b"M4B "), "audio/mp4"),
    "quicktime": (boxed(b"qt  ", b"qt  "), "video/quicktime"),
    "webm": (ebml(b"webm"), "video/webm"),
    "matroska": (ebml(b"matroska"), "video/x-matroska"),
    "avi": (riff(b"AVI LIST"), "video/x-msvideo"),
    "ogg": (b"OggS\0\2" + bytes(20) + b"\x01\x1e\x01vorbis" + bytes(30), "audio/ogg"),
    "opus": (b"OggS\0\2" + bytes(20) + b"\x01\x13OpusHead" + bytes(30), "audio/ogg"),
    "mp3 with tags": (b"ID3\x04\0\0\0\0\0\x0a" + bytes(40), "audio/mpeg"),
    "mp3": (b"\xff\xfb\x90\x64" + bytes(400), "audio/mpeg"),
    "aac": (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(40), "audio/aac"),
    "flac": (b"fLaC\0\0\0\x22" + bytes(40), "audio/x-flac"),
    "wav": (riff(b"WAVEfmt "), "audio/x-wav"),
    "amr": (b"#!AMR\n" + bytes(40), "audio/amr"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "application/pdf"),
    "zip": (zipped("a.txt"), "application/zip"),
    "word": (office("word"), _OFFICE + "wordprocessingml.document"),
    "excel": (office("xl"), _OFFICE + "spreadsheetml.sheet"),
    "powerpoint": (office("ppt"), _OFFICE + "presentationml.presentation"),
    "open document": (zipped("content.xml", first=("mimetype", _OPEN)), _OPEN),
    "epub": (zipped("a.opf", first=("mimetype", "application/epub+zip")), "application/epub+zip"),
    "jar": (zipped("META-INF/MANIFEST.MF", "A.class"), "application/zip"),
    "gzip": (gzip.compress(b"x"), "application/gzip"),
    "bzip2": (bz2.compress(b"x"), "application/x-bzip2"),
    "xz": (lzma.compress(b"x"), "application/x-xz"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(40), "application/x-7z-compressed"),
    "rar": (b"Rar!\x1a\x07\x01\0" + bytes(40), "application/x-rar-compressed"),
    "tar": (tar(), "application/x-tar"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00" + bytes(20), "application/zstd"),
    "program": (b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff" + bytes(200), "application/x-msdownload"),
    "page": (PAGE, "text/html"),
    "page without a doctype": (b"\n <html lang=en><body>", "text/html"),
    "page that is a script": (b"<script>alert(1)</script>", "text/html"),
    "page behind a comment": (b"<!-- x -->\n<!-- y --><HTML>", "text/html"),
    "page behind a mark": (b"\xef\xbb\xbf<html>", "text/html"),
    "page in UTF-16": ("\ufeff<html>".encode("utf-16-le"), "text/html"),
    "page in XML": (_XML + b"<!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0//EN' 'x'><html>", "text/html"),
    "drawing": (DRAWING, "image/svg+xml"),
    "drawing in XML": (
        _XML + b"<!-- x --><!DOCTYPE svg PUBLIC 'x' 'y' [ <!ENTITY a 'b'> ]>" + DRAWING,
        "image/svg+xml",
    ),
    "drawing with a prefix": (_XML + b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    "XML": (_XML + b"<a>b</a>", None),
    "text": (b"hello, world\n", None),
    "text in Cyrillic": ("привет".encode(), None),
    "text in UTF-16": ("\ufeffhello".encode("utf-16-le"), None),
    "text about cars": (b"BMW drives on.\n", None),
    "text about a man": (b"MZ was here.\n", None),
    "text about tags": (b"ID3 tags are at the start.\n", None),
    "text less than": (b"<pre-release> <b2 < 3\n", None),
    "Markdown behind a comment": (b"<!-- draft -->\n# Title\n", None),
    "JSON": (b'{"a": 1}', None),
    "CSV": (b"a,b\n1,2\n", None),
    "nothing": (b"", None),
    "noise": (b"\x93\x1c\xaa\x07\x55\xee" * 50, None),
    "zeros": (bytes(1000), None),
}
