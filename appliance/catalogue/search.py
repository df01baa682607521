"""Finding versions by what people remember of them, best first, with the reasons.

Owns: what matches a question, how well, and which words of a version say so.
Never: looks at a model the asker may not see (it is told), or changes anything.
Read next: ``index`` (the cards), ``api.native.catalogue`` (who asks).

Everything asked for must hold. Words of the text rank: a model's name before its tags and columns,
those before its description, whole before a beginning, a beginning before a part. A model is listed
once, with its best version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from appliance.catalogue.index import Card, Shelf

Field = Literal[
    "name", "text", "tag", "takes", "gives", "owner", "runtime", "convention",
    "data", "code", "run", "parents",
]  # fmt: skip
NameOf = Callable[[str], str]
"""What people call the principal of an id; empty where nobody knows or the asker may not."""

_NAME, _NAME_START, _NAME_PART = 100.0, 60.0, 40.0
_TAG, _TAG_PART = 30.0, 15.0
_COLUMN, _COLUMN_PART = 30.0, 12.0
_WORD, _WORD_START, _WORD_PART = 20.0, 14.0, 8.0
_KIND, _REFERENCE = 10.0, 5.0
_COVER, _LIVE = 20.0, 1.0
_WORDS_MAX = 16
_NUMBERS_SHOWN = 20
_EXCERPT = 120
_COLUMNS_SHOWN = 8
_HEX_MIN = 7
_HEX = re.compile(rf"[0-9a-f]{{{_HEX_MIN},128}}")
_TOKEN = re.compile(r"[^\s,;()\[\]{}\"']+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to look for; every part that is not empty must hold.

    ``tags`` are keys with a value, or ``None`` for any. ``data``, ``code`` and ``run`` are
    references of the lineage, whole or by their first seven hexadecimal digits.
    """

    text: str = ""
    tags: tuple[tuple[str, str | None], ...] = ()
    owner: str = ""
    runtime: str = ""
    convention: str = ""
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    data: str = ""
    code: str = ""
    run: str = ""
    retired: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The text's words, case folded, each once."""
        return tuple(dict.fromkeys(self.text.casefold().split()))[:_WORDS_MAX]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something was found: a text of the version, and where in it the match is.

    ``spans`` are half-open, in characters of ``text``, in order.
    """

    field: Field
    text: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A model that was found: its best version, and all that match, newest first."""

    shelf: Shelf
    card: Card
    score: float
    matching: int
    numbers: tuple[int, ...]
    reasons: tuple[Reason, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of what was found; ``total`` counts all models that were."""

    hits: tuple[Hit, ...]
    total: int


def search(
    shelves: Iterable[Shelf],
    question: Question,
    *,
    name_of: NameOf = lambda _principal: "",
    offset: int = 0,
    limit: int = 20,
) -> Page:
    """The models of these shelves that a question finds, best first.

    Args:
        shelves: models the asker may see; of equal ones the first here comes first.
        question: what to look for; an empty one finds all of them.
        name_of: what people call the principal of an id.
        offset: how many of the best to leave out.
        limit: how many to return at most.

    Cost: 20 ms of a processor for 10,000 versions, 70 where every one matches; run it in a thread.
    """
    asked = _Asked(question, name_of)
    found: list[Hit] = []
    for shelf in shelves:
        hit = _hit(shelf, asked)
        if hit is not None:
            found.append(hit)
    found.sort(key=lambda hit: (-hit.score, hit.shelf.model.name))
    shown = found[offset : offset + limit]
    return Page(
        hits=tuple(_with_reasons(hit, asked) for hit in shown),
        total=len(found),
    )


class _Asked:
    """A question made ready: folded once, not for every version."""

    def __init__(self, question: Question, name_of: NameOf) -> None:
        self.question = question
        self.words = question.words
        self.takes = frozenset(name.casefold() for name in question.takes)
        self.gives = frozenset(name.casefold() for name in question.gives)
        self.tags = tuple(
            (key.casefold(), None if value is None else value.casefold())
            for key, value in question.tags
        )
        self.owner = question.owner.casefold()
        self.runtime = question.runtime.casefold()
        self.convention = question.convention.casefold()
        asked_for: tuple[tuple[Field, str], ...] = (
            ("data", question.data),
            ("code", question.code),
            ("run", question.run),
        )
        self.references = tuple((name, _tokens(text)) for name, text in asked_for if text)
        # What is certainly in the text of whatever matches: most versions are ruled out by these.
        tokens = (token for _, tokens in self.references for token in tokens)
        self.pieces = (*self.words, *(_certain(token) for token in tokens))
        self.has_rare = bool(
            self.tags or self.owner or self.runtime or self.convention or self.references
        )
        self._name_of = name_of
        self._names: dict[str, str] = {}

    def owner_name(self, principal: str) -> str:
        """What people call who registered, looked up once."""
        if principal not in self._names:
            self._names[principal] = self._name_of(principal)
        return self._names[principal]


def _hit(shelf: Shelf, asked: _Asked) -> Hit | None:
    """A model's best version for a question; ``None`` if none matches."""
    best: tuple[float, int] | None = None
    numbers: list[int] = []
    for card in reversed(shelf.cards):
        if card.version.retired_ns and not asked.question.retired:
            continue
        score = _score(card, asked)
        if score is None:
            continue
        number = card.version.number
        numbers.append(number)
        ranked = (score + (_LIVE if number == shelf.live else 0.0), number)
        if best is None or ranked > best:
            best = ranked
    if best is None:
        return None
    score, number = best
    return Hit(
        shelf=shelf,
        card=shelf.cards[number - 1],
        score=score,
        matching=len(numbers),
        numbers=tuple(numbers[:_NUMBERS_SHOWN]),
    )


def _score(card: Card, asked: _Asked) -> float | None:
    """How well a version matches; ``None`` if something that was asked does not hold."""
    everything = card.everything
    for piece in asked.pieces:
        if piece not in everything:
            return None
    if not (asked.takes <= card.takes_folded and asked.gives <= card.gives_folded):
        return None
    if asked.has_rare and not _holds(card, asked):
        return None
    score = sum(_word_score(card, word) for word in asked.words)
    if asked.takes:
        score += _COVER * len(asked.takes) / max(len(card.takes), 1)
    if asked.gives:
        score += _COVER * len(asked.gives) / max(len(card.gives), 1)
    return score


def _holds(card: Card, asked: _Asked) -> bool:
    """Whether what is asked of tags, kind, owner and lineage holds."""
    manifest = card.manifest
    return (
        all(_has_tag(card, key, value) for key, value in asked.tags)
        and manifest.runtime.casefold().startswith(asked.runtime)
        and asked.convention in ("", manifest.convention.casefold())
        and (not asked.owner or _is_owner(card, asked))
        and all(
            any(_refers(text, tokens) for text in _references(card, name))
            for name, tokens in asked.references
        )
    )


def _word_score(card: Card, word: str) -> float:
    """What a word that is somewhere in a version's text is worth: the best place it is in."""
    name = card.model.name
    if word in name:
        return _NAME if word == name else _NAME_START if name.startswith(word) else _NAME_PART
    if word in card.takes_folded or word in card.gives_folded:
        return _COLUMN
    best = 0.0
    for key, value in card.tags_folded:
        if word in (key, value, f"{key}={value}"):
            return _TAG
        if word in key or word in value:
            best = _TAG_PART
    at = card.text_folded.find(word)
    if at >= 0:
        text, end = card.text_folded, at + len(word)
        is_start = at == 0 or not text[at - 1].isalnum()
        is_whole = is_start and (end == len(text) or not text[end].isalnum())
        best = max(best, _WORD if is_whole else _WORD_START if is_start else _WORD_PART)
    if best < _COLUMN_PART and any(word in one for one in (*card.takes_folded, *card.gives_folded)):
        best = _COLUMN_PART
    if best < _KIND and word in (card.manifest.runtime, card.manifest.convention):
        best = _KIND
    return best or _REFERENCE


def _has_tag(card: Card, key: str, value: str | None) -> bool:
    return any(key == one and value in (None, other) for one, other in card.tags_folded)


def _is_owner(card: Card, asked: _Asked) -> bool:
    by = card.version.created_by
    return asked.owner in (by.casefold(), asked.owner_name(by).casefold())


def _references(card: Card, name: Field) -> tuple[str, ...]:
    told = card.manifest.lineage
    if name == "data":
        return told.data
    return (told.code,) if name == "code" else (told.run,)


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text.casefold()))


def _refers(text: str, asked: Sequence[str]) -> bool:
    """Whether a reference names what was asked for: all its words, digests by their beginning."""
    there = _tokens(text)
    return bool(asked) and all(any(_is_same(one, word) for one in there) for word in asked)


def _certain(token: str) -> str:
    """What of a word that was asked for is in every reference that has it."""
    digits = token.rpartition(":")[2]
    return digits[:_HEX_MIN] if _HEX.fullmatch(digits) else token


def _is_same(one: str, other: str) -> bool:
    if one == other:
        return True
    short, long = sorted((one.rpartition(":")[2], other.rpartition(":")[2]), key=len)
    return bool(_HEX.fullmatch(short) and _HEX.fullmatch(long)) and long.startswith(short)


# --- the reasons ----------------------------------------------------------------------------------


def _with_reasons(hit: Hit, asked: _Asked) -> Hit:
    return Hit(
        shelf=hit.shelf,
        card=hit.card,
        score=hit.score,
        matching=hit.matching,
        numbers=hit.numbers,
        reasons=tuple(_reasons(hit.card, asked)),
    )


def _reasons(card: Card, asked: _Asked) -> Iterator[Reason]:
    manifest = card.manifest
    words = [word for word in asked.words if word in card.model.name]
    if words:
        yield _marked("name", card.model.name, words)
    words = [word for word in asked.words if word in card.text_folded]
    if words:
        yield _marked("text", _excerpt(card.text, words[0]), words)
    yield from _tag_reasons(card, asked)
    sides: tuple[tuple[Field, dict[str, str], frozenset[str]], ...] = (
        ("takes", card.takes, asked.takes),
        ("gives", card.gives, asked.gives),
    )
    for name, columns, wanted in sides:
        told = _columns(columns, wanted, asked.words)
        if told is not None:
            yield Reason(field=name, text=told[0], spans=told[1])
    kinds: tuple[tuple[Field, str, str], ...] = (
        ("runtime", manifest.runtime, asked.runtime),
        ("convention", manifest.convention, asked.convention),
    )
    for kind, text, asked_for in kinds:
        words = [w for w in (asked_for, *asked.words) if w and w in text.casefold()]
        if words:
            yield _marked(kind, text, words)
    if asked.owner:
        by = card.version.created_by
        yield _marked("owner", asked.owner_name(by) or by, [asked.owner])
    yield from _lineage_reasons(card, asked)


def _tag_reasons(card: Card, asked: _Asked) -> Iterator[Reason]:
    for key, value in card.manifest.tags.items():
        pair = f"{key}={value}"
        words = [word for word in asked.words if word in pair.casefold()]
        if any(key.casefold() == one for one, _ in asked.tags):
            words.append(pair.casefold())
        if words:
            yield _marked("tag", pair, words)


def _lineage_reasons(card: Card, asked: _Asked) -> Iterator[Reason]:
    told = card.manifest.lineage
    wanted = dict(asked.references)
    places: tuple[tuple[Field, tuple[str, ...]], ...] = (
        ("data", told.data),
        ("code", (told.code,)),
        ("run", (told.run,)),
        ("parents", told.parents),
    )
    for name, texts in places:
        for text in texts:
            words = [word for word in asked.words if word in text.casefold()]
            if name in wanted and _refers(text, wanted[name]):
                words += [
                    one for one in _tokens(text) if any(_is_same(one, w) for w in wanted[name])
                ]
            if words:
                yield _marked(name, _excerpt(text, words[0]), words)


def _columns(
    columns: dict[str, str], wanted: frozenset[str], words: Sequence[str]
) -> tuple[str, tuple[tuple[int, int], ...]] | None:
    """The columns that match, before a few of the others, and where they stand; None without."""
    matching = [
        name
        for name in columns
        if name.casefold() in wanted
        or name.casefold().rpartition(".")[2] in wanted
        or any(word in name.casefold() for word in words)
    ]
    if not matching:
        return None
    others = [name for name in columns if name not in matching]
    matching = matching[: 4 * _COLUMNS_SHOWN]
    rest = others[: max(0, _COLUMNS_SHOWN - len(matching))]
    spans, at = [], 0
    for name in matching:
        spans.append((at, at + len(name)))
        at += len(name) + 2
    text = ", ".join((*matching, *rest))
    left_off = len(columns) - len(matching) - len(rest)
    if left_off:
        text += f" and {left_off} more"
    return text, tuple(spans)


def _marked(name: Field, text: str, words: Sequence[str]) -> Reason:
    """A text with the places of these words, which are case folded; overlapping ones are one."""
    found = sorted(
        (match.start(), match.end())
        for word in words
        for match in re.finditer(re.escape(word), text, re.IGNORECASE)
    )
    spans: list[tuple[int, int]] = []
    for start, end in found:
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return Reason(field=name, text=text, spans=tuple(spans))


def _excerpt(text: str, word: str) -> str:
    """A line around a word, whole where it is short."""
    line = " ".join(text.split())
    if len(line) <= _EXCERPT:
        return line
    match = re.search(re.escape(word), line, re.IGNORECASE)
    at = max(0, match.start() - _EXCERPT // 3) if match else 0
    piece = line[at : at + _EXCERPT]
    return ("…" if at else "") + piece + ("…" if at + _EXCERPT < len(line) else "")
