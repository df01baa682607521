"""Versions of all models, and the page of one version: manifest, files, schema, lineage.

Owns: the version page's tabs.
Never: changes a version; it is immutable. Its verbs move aliases or retire it.
Read next: ``screens/models`` (the columns and the verbs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui import text
from tui.client import Problem, Query, Row, Snapshot, path_of
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.screens.drift import drift_lines
from tui.screens.models import VERSION_COLUMNS, retire, set_alias
from tui.table import Column

FILES_SHOWN = 2000
DEPTH = 5
"""How far from a version its lineage is drawn."""
TABS = ("manifest", "files", "schema", "lineage", "drift")


class Versions(ListPage):
    """One row per version of every model."""

    VIEW = "versions"
    EMPTY = "No versions yet.\nRegister one: appliance model push FOLDER TENANT/MODEL"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "open")]
    COLUMNS = (
        Column(
            name="model",
            title="MODEL",
            text=lambda r: f"{r['tenant']}/{r['model']}",
            width=16,
            flex=3,
        ),
        *(c for c in VERSION_COLUMNS if c.name != "calls"),
    )

    def key_of(self, row: Row) -> str:
        """Versions are named tenant/model/number."""
        return f"{row['tenant']}/{row['model']}/{row['version']}"

    def open_row(self, row: Row) -> Place:
        """The version's page."""
        return Place("version", (str(row["tenant"]), str(row["model"]), str(row["version"])))


class VersionPage(Page):
    """Everything a version declares; ``[`` and ``]`` change the tab."""

    VERBS = frozenset(("alias", "retire"))
    AUTO_FOCUS = "#pane"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket", "tab(1)", "tab"),
        Binding("left_square_bracket", "tab(-1)", "tab back", show=False),
        Binding("a", "alias", "set alias"),
        Binding("x", "retire", "retire"),
        Binding("y", "raw", "raw JSON"),
        Binding("c", "copy", "copy the digest", show=False),
        Binding("j", "scroll(1)", "down", show=False),
        Binding("k", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, place: Place) -> None:
        """Start on the manifest."""
        super().__init__(place)
        self._tab = TABS[0]
        self._detail: Mapping[str, Any] | None = None
        self._why = "Waiting for the first answer."
        self._drift: tuple[str, ...] = ("Waiting for the first answer.",)

    def query_now(self) -> Query:
        """The model's versions: this one's state, and the aliases with their revisions."""
        tenant, model, _ = self.place.args
        return Query(view="versions", params=(("tenant", tenant), ("model", model)))

    def body(self) -> ComposeResult:
        """The tabs' names and the text of the one shown."""
        yield Static(id="tabs", markup=False)
        with VerticalScroll(id="pane"):
            yield Static(id="text", markup=False)

    def ready(self) -> None:
        """Fetch the version once; it never changes."""
        self._tab = self.console.memory_of(self.place).tab or TABS[0]
        self._paint()
        self._load()

    def draw(self, snapshot: Snapshot) -> None:
        """State and aliases may have changed; fetch again if the first try failed."""
        if self._detail is None:
            self._load()
        self._load_drift()
        self._paint()

    @property
    def row(self) -> Row | None:
        """This version's row in the last answer."""
        rows = self._drawn.rows if self._drawn else ()
        return next((r for r in rows if str(r["version"]) == self.place.args[2]), None)

    @work(exclusive=True, group="load")
    async def _load(self) -> None:
        tenant, model, version = self.place.args
        path = path_of("api", "v1", "models", tenant, model, "versions", version)
        try:
            reply = await self.console.client.call("GET", path)
        except Problem as problem:
            self._why = f"X {problem.title}: {problem.detail}\nRequest id: {problem.request_id}"
        else:
            graph = await self._graph(path)
            if isinstance(reply.data, dict):
                joined = await self._joined(reply.data)
                self._detail = {**reply.data, "graph": graph, "joined": joined}
        self.call_later(self._paint)

    async def _joined(self, detail: Mapping[str, Any]) -> str:
        """How many calls were answered by how many of the model, where calls may be joined."""
        rule = detail.get("batch")
        if not isinstance(rule, dict):
            return ""
        tenant, model, version = self.place.args
        path = path_of("t", tenant, "v2", "models", model, "versions", version, "stats")
        try:
            reply = await self.console.client.call("GET", path)
        except Problem:
            return f"at most {rule.get('max_rows')} rows"
        found = reply.data.get("model_stats") if isinstance(reply.data, dict) else None
        return _joined(rule, found[0] if found else {})

    async def _graph(self, path: str) -> Mapping[str, Any]:
        """The versions around this one; empty where they cannot be had."""
        try:
            reply = await self.console.client.call("GET", f"{path}/lineage?depth={DEPTH}&limit=500")
        except Problem:
            return {}
        return reply.data if isinstance(reply.data, dict) else {}

    @work(exclusive=True, group="drift")
    async def _load_drift(self) -> None:
        """Fetch the scores while their tab is shown; they change with every call."""
        if self._tab != "drift":
            return
        tenant, model, version = self.place.args
        path = path_of("api", "v1", "models", tenant, model, "versions", version, "drift")
        try:
            reply = await self.console.client.call("GET", path)
        except Problem as problem:
            self._drift = (problem.detail or problem.title,)
        else:
            self._drift = tuple(drift_lines(reply.data if isinstance(reply.data, dict) else {}))
        self.call_later(self._paint)

    def _paint(self) -> None:
        if not self.is_shown:
            return
        tabs = Text(no_wrap=True)
        for name in TABS:
            tabs.append(f" {name} ", "bold reverse" if name == self._tab else "")
            tabs.append(" ")
        self.query_one("#tabs", Static).update(tabs, layout=False)
        lines: Sequence[str] = [self._why]
        if self._detail is not None:
            aliases = self.row["aliases"] if self.row else ()
            state = self.row["state"] if self.row else self._detail.get("state", "")
            detail = {**self._detail, "kept_warm": _warm(self.row)}
            if self._tab == "drift":
                lines = self._drift
            else:
                lines = _PAINT[self._tab](detail, state, aliases)
        shown = "\n".join(text.clean(line) for line in lines)
        self.query_one("#text", Static).update(Text(shown))

    def action_tab(self, by: int) -> None:
        """``[`` and ``]`` change the tab."""
        self._tab = TABS[(TABS.index(self._tab) + by) % len(TABS)]
        self.console.memory_of(self.place).tab = self._tab
        self._load_drift()
        self._paint()
        self.query_one("#pane").scroll_home(animate=False)

    def action_scroll(self, by: int) -> None:
        """``j`` and ``k`` scroll."""
        self.query_one("#pane").scroll_relative(y=by, animate=False)

    @work(exclusive=True, group="dialog")
    async def action_alias(self) -> None:
        """``a`` points an alias here."""
        if self.row is not None and self._drawn is not None:
            tenant, model, _ = self.place.args
            aliases = tuple(self._drawn.extras.get("aliases") or ())
            await set_alias(self, tenant, model, self.row, aliases)

    @work(exclusive=True, group="dialog")
    async def action_retire(self) -> None:
        """``x`` retires this version."""
        if self.row is not None:
            tenant, model, _ = self.place.args
            await retire(self, tenant, model, self.row)

    @work(exclusive=True, group="dialog")
    async def action_raw(self) -> None:
        """``y`` shows the version as it came."""
        from tui.dialogs import Reading

        if self._detail is not None:
            title = "/".join(self.place.args)
            came = {
                name: value
                for name, value in self._detail.items()
                if name not in ("graph", "joined")
            }
            await self.app.push_screen_wait(Reading(title, text.pretty(came)))

    def action_copy(self) -> None:
        """``c`` copies the digest."""
        if self._detail is not None:
            self.app.copy_to_clipboard(str(self._detail.get("digest", "")))
            self.console.say("Copied the digest")


def _joined(rule: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    calls, runs = int(stats.get("inference_count") or 0), int(stats.get("execution_count") or 0)
    most = f"at most {rule.get('max_rows')} rows together"
    if not runs:
        return f"{most}; not called yet"
    return f"{calls} calls answered by {runs} of the model, {calls / runs:.1f} each; {most}"


def _warm(row: Row | None) -> str:
    """How many sandboxes of a version are kept loaded, in words; nothing if none are."""
    if row is None or not row["warm"]:
        return ""
    return f"{row['warm_ready']} of {row['warm']} sandboxes"


def _pairs(data: Mapping[str, Any], *, indent: str = "") -> list[str]:
    lines = []
    for name, value in data.items():
        if isinstance(value, (list, tuple)):
            shown = ", ".join(str(v) for v in value) or text.NONE
        else:
            size = isinstance(value, int) and name.endswith("_bytes")
            shown = text.size(value) if size else str(value)
        lines.append(f"{indent}{name:<20} {shown or text.NONE}")
    return lines


def _manifest(detail: Mapping[str, Any], state: str, aliases: Sequence[str]) -> list[str]:
    head = {
        "state": text.word(state),
        "aliases": list(aliases),
        "kept warm": detail.get("kept_warm"),
        "joined": detail.get("joined"),
        **{k: detail.get(k) for k in ("description", "runtime", "entry", "digest")},
        "size": text.size(detail.get("size_bytes")),
        "created": f"{text.stamp(detail.get('created_at'))} by {detail.get('created_by')}",
        "url": detail.get("url"),
    }
    lines = _pairs({k: "" if v is None else v for k, v in head.items()})
    lines += [f"{'alike':<20} {one['text']}" for one in detail.get("alike") or ()]
    for part in ("resources", "limits", "tags"):
        if detail.get(part):
            lines += ["", part, *_pairs(detail[part], indent="  ")]
    lines += ["", "requirements", *(f"  {r}" for r in detail.get("requirements") or ("-",))]
    return lines


def _files(detail: Mapping[str, Any], _state: str, _aliases: Sequence[str]) -> list[str]:
    files = detail.get("files") or []
    lines = [f"{len(files)} files, {text.size(detail.get('size_bytes'))}", ""]
    for file in files[:FILES_SHOWN]:
        digest = str(file.get("digest", "")).removeprefix("sha256:")[:12]
        lines.append(f"{text.size(file.get('size_bytes')):>9}  {digest}  {file.get('path')}")
    if len(files) > FILES_SHOWN:
        lines.append(f"... and {len(files) - FILES_SHOWN} more (y shows all of them)")
    return lines


def _schema(detail: Mapping[str, Any], _state: str, _aliases: Sequence[str]) -> list[str]:
    lines = []
    for name in ("input_schema", "output_schema"):
        schema = detail.get(name)
        lines += [name, *(text.pretty(schema).splitlines() if schema else ["  none declared"]), ""]
    return lines


def _lineage(detail: Mapping[str, Any], _state: str, _aliases: Sequence[str]) -> list[str]:
    lineage, graph = detail.get("lineage") or {}, detail.get("graph") or {}
    lines = []
    for title, sign in (("made from", -1), ("became", 1)):
        lines += [title, *(f"  {line}" for line in _branches(graph, sign) or (text.NONE,)), ""]
    left_off = graph.get("left_off", 0)
    if left_off:
        name = f"{detail['tenant']}/{detail['model']}@{detail['version']}"
        lines += [f"and {left_off} more: appliance model lineage {name} --depth 100", ""]
    for name in ("parents", "data", "code", "run"):
        value = lineage.get(name)
        values = value if isinstance(value, list) else [value] if value else []
        lines += [f"{name}, as declared", *(f"  {v}" for v in values or (text.NONE,))]
    return lines


def _branches(graph: Mapping[str, Any], sign: int) -> list[str]:
    """The ancestors (-1) or descendants (1) as an indented list, each with what is below it once.

    The graph has no cycle, but a version may be reached in two ways.
    """
    nodes = {n["id"]: n for n in graph.get("nodes") or () if n["distance"] * sign >= 0}
    near, far = ("child", "parent") if sign < 0 else ("parent", "child")
    below: dict[str, list[str]] = {}
    for edge in graph.get("edges") or ():
        if edge[near] in nodes and edge[far] in nodes:
            below.setdefault(edge[near], []).append(edge[far])
    start = next((key for key, node in nodes.items() if node["distance"] == 0), "")
    lines, drawn = [], {start}
    stack = [(key, 0) for key in reversed(below.get(start, ()))]
    while stack:
        key, depth = stack.pop()
        node = nodes[key]
        words = (f"{node['model']} v{node['version']}", *node["aliases"], _unready(node))
        lines.append("  " * depth + "  ".join(word for word in words if word))
        if key not in drawn:
            drawn.add(key)
            stack += [(other, depth + 1) for other in reversed(below.get(key, ()))]
    return lines


def _unready(node: Mapping[str, Any]) -> str:
    return "" if node["state"] == "ready" else text.word(node["state"])


_PAINT = {"manifest": _manifest, "files": _files, "schema": _schema, "lineage": _lineage}
