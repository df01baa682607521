"""The formats of tables: their names, media types, extensions and first bytes.

Owns: telling the format of a table from what it was called, what it was said to be, or how it
begins.
Never: reads past the first bytes.
Read next: ``engine`` (what is done with each).
"""

from __future__ import annotations

from typing import Literal, get_args

from appliance.errors import InputInvalid, UnsupportedMedia

Format = Literal["parquet", "csv", "ndjson", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
HEAD_BYTES = 64
MEDIA_TYPES: dict[Format, str] = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
}
_BY_MEDIA: dict[str, Format] = {
    **{media: name for name, media in MEDIA_TYPES.items()},
    "application/parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/csv": "csv",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/jsonlines": "ndjson",
    "application/x-jsonlines": "ndjson",
}
_BY_EXTENSION: dict[str, Format] = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "ndjson": "ndjson",
    "jsonl": "ndjson",
    "json": "json",
}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
}
_MAGIC = b"PAR1"


def format_of(*, name: str = "", media_type: str = "", head: bytes = b"") -> Format:
    """The format of a table.

    Args:
        name: a file name, of which the extension counts; empty if there is none.
        media_type: what it was said to be; parameters are ignored. It counts more than the name,
            unless it is one that anything may be sent as.
        head: how it begins, ``HEAD_BYTES`` of it; decides where the other two say nothing, and
            refuses what is packed.

    Raises:
        UnsupportedMedia: none of the three says a format that can be read.
        InputInvalid: it is packed, or is no Parquet file though it is called one.
    """
    for magic, packing in _PACKED.items():
        if head.startswith(magic):
            raise InputInvalid(f"The table is {packing}; unpack it first.")
    media = media_type.partition(";")[0].strip().lower()
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    said = _BY_MEDIA.get(media) or _BY_EXTENSION.get(extension)
    if head.startswith(_MAGIC):
        return "parquet"
    if said == "parquet" and head:
        raise InputInvalid("The table is called Parquet, but does not begin like a Parquet file.")
    if said is not None:
        return said
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if begins == b"[":
        return "json"
    if begins == b"{":
        return "ndjson"
    raise UnsupportedMedia(
        f"It is not clear which kind of table this is. Say one of: {', '.join(FORMATS)}.",
        hint="name the file .parquet, .csv, .ndjson or .json, or send its media type",
    )


def require_format(name: str) -> Format:
    """The format of this name.

    Raises:
        InputInvalid: there is none.
    """
    if name not in FORMATS:
        raise InputInvalid(f"'{name[:40]}' is no format of tables: {', '.join(FORMATS)}.")
    return name
