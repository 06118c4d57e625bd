"""Media types: which a list allows, and which names stand for the same content. Pure.

What is found in the bytes has one name, and clients use several for it; and of a container the
first bytes tell that it is one, not what it carries: a voice message and a film are both WebM. So
content seen as one type may be declared as another where the two cannot be told apart. No name in
the tables is of something that a browser would run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: kinds that always carry a magic number: content without one is not of them
TELLTALE: Final = frozenset({"image", "audio", "video", "font"})

#: names in use for the same content; the first is what `sniffing` says
_SYNONYMS: Final = (
    ("audio/aac", "audio/aacp", "audio/x-aac"),
    ("audio/midi", "audio/mid", "audio/x-midi"),
    ("audio/mpeg", "audio/mp3", "audio/x-mp3", "audio/x-mpeg"),
    ("audio/x-aiff", "audio/aiff"),
    ("audio/x-flac", "audio/flac"),
    ("audio/x-wav", "audio/wav", "audio/wave", "audio/vnd.wave"),
    ("image/apng", "image/png", "image/x-png", "image/vnd.mozilla.apng"),
    ("image/bmp", "image/x-bmp", "image/x-ms-bmp"),
    ("image/heic", "image/heif", "image/heic-sequence", "image/heif-sequence"),
    ("image/jpeg", "image/jpg", "image/pjpeg"),
    ("image/vnd.adobe.photoshop", "image/x-photoshop", "application/x-photoshop"),
    ("image/x-icon", "image/vnd.microsoft.icon"),
    ("video/x-matroska", "video/matroska"),
    ("video/x-msvideo", "video/avi", "video/msvideo", "video/vnd.avi"),
    ("application/font-sfnt", "font/sfnt", "font/ttf", "font/otf", "application/x-font-ttf", "application/x-font-otf"),
    ("application/font-woff", "font/woff", "font/woff2"),
    ("application/gzip", "application/x-gzip"),
    ("application/rtf", "text/rtf"),
    ("application/x-7z-compressed", "application/7z"),
    ("application/x-bzip2", "application/bzip2", "application/x-bzip"),
    ("application/x-msdownload", "application/vnd.microsoft.portable-executable", "application/x-dosexec"),
    ("application/x-rar-compressed", "application/vnd.rar", "application/x-rar"),
    ("application/x-sqlite3", "application/vnd.sqlite3"),
    ("application/zip", "application/x-zip", "application/x-zip-compressed"),
)
_NAMES: Final = {name: names for names in _SYNONYMS for name in names}

#: a container, by its name in `sniffing`, and what else its bytes may be
_CARRIES: Final = {
    "audio/mp4": frozenset({"audio/m4a", "audio/x-m4a"}),
    "audio/ogg": frozenset({"application/ogg", "audio/opus", "audio/vorbis", "audio/x-ogg", "video/ogg"}),
    "video/3gpp": frozenset({"audio/3gpp"}),
    "video/mp4": frozenset({
        "audio/3gpp", "audio/3gpp2", "audio/m4a", "audio/mp4", "audio/x-m4a", "video/3gpp", "video/3gpp2",
        "video/x-m4v",
    }),
    "video/webm": frozenset({"audio/webm"}),
    "video/x-matroska": frozenset({"audio/matroska", "audio/x-matroska"}),
    "application/gzip": frozenset({"application/x-compressed-tar", "application/x-gtar", "application/x-tgz"}),
}  # fmt: skip
#: files that are ZIP archives inside
_ZIPPED: Final = (
    "application/java-archive",
    "application/vnd.android.package-archive",
    "application/vnd.oasis.opendocument.",
    "application/vnd.openxmlformats-officedocument.",
    "application/x-java-archive",
)
_ZIPPED_ENDS: Final = ("+zip", ".macroenabled.12")


def type_allowed(media_type: str, allowed: Sequence[str]) -> bool:
    """Whether a media type is on the list; `image/*` stands for all of its kind."""
    main = media_type.partition("/")[0]
    return any(entry in ("*/*", media_type, f"{main}/*") for entry in allowed)


def names_of(media_type: str) -> tuple[str, ...]:
    """The media type under all its names."""
    return _NAMES.get(media_type, (media_type,))


def same_content(sniffed: str, declared: str) -> bool:
    """Whether bytes that were seen as the one may be what was declared."""
    if declared in names_of(sniffed) or declared in _CARRIES.get(sniffed, ()):
        return True
    return sniffed == "application/zip" and (declared.startswith(_ZIPPED) or declared.endswith(_ZIPPED_ENDS))


def content_allowed(sniffed: str | None, declared: str | None, allowed: Sequence[str]) -> bool:
    """Whether content may be kept under a link that allows only some types.

    What has no magic number (text, JSON, formats that nobody here knows) passes on its declared
    type, unless that claims a kind that always has one: an HTML page is no `image/png`. Where
    neither tells anything, a list of such kinds alone refuses.
    """
    if not allowed:
        return True
    if sniffed is not None:
        if any(type_allowed(name, allowed) for name in names_of(sniffed)):
            return True
        return declared is not None and same_content(sniffed, declared) and type_allowed(declared, allowed)
    if declared is not None:
        markup = declared == "image/svg+xml"
        return type_allowed(declared, allowed) and (markup or declared.partition("/")[0] not in TELLTALE)
    return any(entry.partition("/")[0] not in TELLTALE for entry in allowed)
