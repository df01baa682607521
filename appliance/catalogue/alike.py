"""What is registered already that is much like something new: the same files, the same columns.

Owns: when two versions are alike, and how that is said.
Never: refuses anything: it is a hint, so that work is not done twice.
Read next: ``index`` (the cards), ``lifecycle`` (asks when a version is registered).

``appliance.toml`` and empty files do not count. Most files are the same where at least half of them
and four fifths of the larger one's bytes are, which code around other weights is not. Versions of
one model share most files and all columns as a rule: of the own model only the very same files are
told. Of a model whose files are alike the columns are not told as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from appliance import manifest
from appliance.catalogue import columns
from appliance.catalogue.index import Card, Shelf
from appliance.records import Alike, Artifact, Likeness, Manifest

_BYTES_MIN = 0.8
_FILES_MIN = 0.5
_SHOWN = 3
_ORDER: tuple[Likeness, ...] = ("files", "most-files", "columns")


def found_alike(
    shelves: Iterable[Shelf], model_name: str, declared: Manifest, artifact: Artifact
) -> tuple[Alike, ...]:
    """What these models have that is like a new version, the nearest of each model, nearest first.

    Args:
        shelves: every model of the tenant.
        model_name: the model it becomes a version of.
        declared: its manifest.
        artifact: its files.

    Cost: O(versions of the tenant) and O(files) of those of about its size.
    """
    files = _files(artifact)
    takes, gives = _folded(columns.inputs_of(declared)), _folded(columns.outputs_of(declared))
    found: list[Alike] = []
    for shelf in shelves:
        is_own = shelf.model.name == model_name
        near = _nearest(_by_files(card, files, is_own=is_own) for card in shelf.cards)
        if not near and not is_own:
            near = _nearest(_by_columns(card, takes, gives) for card in shelf.cards)
        found += near
    kept: Counter[str] = Counter()
    shown = []
    for one in sorted(found, key=_rank):
        kept[one.kind] += 1
        if kept[one.kind] <= _SHOWN:
            shown.append(one)
    return tuple(shown)


def text_of(one: Alike, name: str) -> str:
    """The hint in words; ``name`` is the other model's."""
    other = f"{name}@{one.number}"
    if one.kind == "files":
        return f"{other} has the same files"
    if one.kind == "most-files":
        return f"{other} has most of the same files, {one.share:.0%} of the bytes"
    return f"{other} has the same columns"


def _rank(one: Alike) -> tuple[int, float, int, str]:
    return _ORDER.index(one.kind), -one.share, -one.number, one.model_id


def _nearest(found: Iterable[Alike | None]) -> list[Alike]:
    """The nearest of a model's versions, the newest of several as near; none where none is."""
    known = [one for one in found if one is not None]
    return [min(known, key=_rank)] if known else []


def _files(artifact: Artifact) -> Counter[tuple[str, int]]:
    """Contents that count, by digest and size, however often they are there."""
    return Counter(
        (file.digest, file.size_bytes)
        for file in artifact.files
        if file.size_bytes and file.path != manifest.FILE
    )


def _by_files(card: Card, files: Counter[tuple[str, int]], *, is_own: bool) -> Alike | None:
    """The hint that a version has the same files, or most of them."""
    size, listed = _bytes(files), card.version.artifact.files
    shared = sum(file.size_bytes for file in listed if (file.digest, file.size_bytes) in files)
    if not size or shared < _BYTES_MIN * size:
        return None
    other = _files(card.version.artifact)
    if other == files:
        return _alike(card, "files", 1.0)
    if is_own or card.version.retired_ns:
        return None
    both = files & other
    share = _bytes(both) / max(size, _bytes(other))
    if share < _BYTES_MIN or both.total() < _FILES_MIN * max(files.total(), other.total()):
        return None
    return _alike(card, "most-files", round(share, 4))


def _by_columns(card: Card, takes: frozenset[str], gives: frozenset[str]) -> Alike | None:
    """The hint that a version takes and gives the same columns; one name alone says little."""
    if card.version.retired_ns or len(takes) + len(gives) < 2 or not takes:
        return None
    if not (takes <= card.takes_folded and gives <= card.gives_folded):
        return None
    if _folded(card.takes) != takes or _folded(card.gives) != gives:
        return None
    return _alike(card, "columns", 1.0)


def _alike(card: Card, kind: Likeness, share: float) -> Alike:
    number = card.version.number
    return Alike(model_id=card.model.id, number=number, kind=kind, share=share)


def _bytes(files: Counter[tuple[str, int]]) -> int:
    return sum(size * count for (_, size), count in files.items())


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)
