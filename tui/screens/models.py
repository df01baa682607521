"""Models, and the page of one model: its versions and its aliases.

Owns: the columns of both, set alias, retire, remove alias, remove model.
Never: uploads an artifact; that needs the files, so it is a command line.
Read next: ``screens/versions`` (one version in full).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from tui import text
from tui.client import Query, Row, Snapshot, path_of
from tui.dialogs import Confirm, Field, Form
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.table import Column, LiveTable


def number(value: object) -> str:
    """A version number as people write it: ``v7``; ``-`` for none."""
    return text.NONE if value is None else f"v{value}"


class Models(ListPage):
    """One row per model; Enter shows its versions."""

    VIEW = "models"
    EMPTY = "No models yet.\nRegister one: appliance model push FOLDER TENANT/MODEL"
    VERBS = frozenset(("remove",))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("n", "register", "new"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"], width=10, flex=1),
        Column(name="model", title="MODEL", text=lambda r: r["model"], width=13, flex=2),
        Column(
            name="live",
            title="LIVE",
            text=lambda r: number(r["live"]),
            order=lambda r: r["live"],
            width=5,
        ),
        Column(
            name="versions",
            title="VERS",
            text=lambda r: text.count(r["versions"]),
            order=lambda r: r["versions"],
            width=5,
            right=True,
        ),
        Column(
            name="calls",
            title="CALLS",
            text=lambda r: text.count(r["calls_15m"]),
            order=lambda r: r["calls_15m"],
            width=6,
            right=True,
        ),
        Column(
            name="err",
            title="ERR %",
            text=lambda r: text.percent(r["errors_15m"], r["calls_15m"]),
            order=lambda r: r["errors_15m"] / max(1, r["calls_15m"]),
            width=6,
            right=True,
        ),
        Column(
            name="p95",
            title="P95 ms",
            text=lambda r: text.millis(r["p95_ms"]),
            order=lambda r: r["p95_ms"],
            width=7,
            right=True,
        ),
        Column(name="runtime", title="RUNTIME", text=lambda r: r["runtime"] or "-", width=10),
        Column(
            name="stored",
            title="STORED",
            text=lambda r: text.size(r["size_bytes"]),
            order=lambda r: r["size_bytes"],
            width=9,
            right=True,
            least=100,
        ),
        Column(
            name="description",
            title="DESCRIPTION",
            text=lambda r: r["description"],
            width=20,
            flex=3,
            least=140,
        ),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=12, wide=True),
        # Seen after ``w``, and by the filter always: /takes:age finds who takes it already.
        Column(
            name="takes", title="TAKES", text=lambda r: " ".join(r["takes"]), width=16, wide=True
        ),
        Column(
            name="gives", title="GIVES", text=lambda r: " ".join(r["gives"]), width=12, wide=True
        ),
        Column(
            name="tags",
            title="TAGS",
            text=lambda r: " ".join(f"{key}={value}" for key, value in r["tags"].items()),
            width=12,
            wide=True,
        ),
    )

    def key_of(self, row: Row) -> str:
        """Models are named tenant/model."""
        return f"{row['tenant']}/{row['model']}"

    def open_row(self, row: Row) -> Place:
        """The model's page."""
        return Place("model", (str(row["tenant"]), str(row["model"])))

    def action_register(self) -> None:
        """``n`` says how to register: the files are where the command line is."""
        self.console.say(
            "Register from the folder it is in:\n$ appliance model push FOLDER TENANT/MODEL"
        )

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the model under the cursor."""
        row = self.row
        if row is None or not self.console.may("Remove model"):
            return
        tenant, model = str(row["tenant"]), str(row["model"])
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Remove model {tenant}/{model}",
                effect=(
                    f"Takes {row['versions']} versions out of service"
                    f" ({text.size(row['size_bytes'])} stored,"
                    f" {text.count(row['calls_15m'])} calls in the last 15 minutes)."
                    " Callers get 404 from now on."
                ),
                verb="Remove model",
                type_name=model,
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                path_of("api", "v1", "models", tenant, model),
                doing=f"Remove model {tenant}/{model}",
                done=f"Model {tenant}/{model} removed",
                cli=f"appliance model rm {tenant}/{model}",
            )


VERSION_COLUMNS = (
    Column(
        name="version",
        title="VERSION",
        text=lambda r: number(r["version"]),
        order=lambda r: r["version"],
        width=7,
    ),
    Column(name="state", title="STATE", text=lambda r: text.word(r["state"]), width=9),
    Column(
        name="aliases", title="ALIASES", text=lambda r: " ".join(r["aliases"]), width=10, flex=2
    ),
    Column(name="runtime", title="RUNTIME", text=lambda r: r["runtime"], width=10),
    Column(
        name="size",
        title="SIZE",
        text=lambda r: text.size(r["size_bytes"]),
        order=lambda r: r["size_bytes"],
        width=8,
        right=True,
    ),
    Column(
        name="calls",
        title="CALLS",
        text=lambda r: text.count(r["calls_15m"]),
        order=lambda r: r["calls_15m"],
        width=6,
        right=True,
    ),
    Column(
        name="p95",
        title="P95 ms",
        text=lambda r: text.millis(r["p95_ms"]),
        order=lambda r: r["p95_ms"],
        width=6,
        right=True,
    ),
    Column(
        name="created",
        title="CREATED",
        text=lambda r: text.day(r["created_at"]),
        order=lambda r: r["created_at"],
        width=10,
        least=86,
    ),
    Column(
        name="warm",
        title="WARM",
        text=lambda r: f"{r['warm_ready']}/{r['warm']}" if r["warm"] else text.NONE,
        order=lambda r: r["warm"],
        width=5,
        right=True,
        least=94,
    ),
    Column(
        name="digest",
        title="DIGEST",
        text=lambda r: r["digest"].removeprefix("sha256:")[:12],
        width=12,
        least=106,
    ),
    Column(name="by", title="BY", text=lambda r: r["created_by"], width=12, wide=True),
)
ALIAS_COLUMNS = (
    Column(name="alias", title="ALIAS", text=lambda r: r["name"], width=14, flex=1),
    Column(name="version", title="VERSION", text=lambda r: number(r["version"]), width=7),
    Column(name="revision", title="REV", text=lambda r: str(r["revision"]), width=4, right=True),
    Column(name="set", title="SET (UTC)", text=lambda r: text.stamp(r["set_at"])[:16], width=16),
    Column(name="by", title="BY", text=lambda r: r["set_by"], width=10, flex=1),
    Column(name="reason", title="REASON", text=lambda r: r["reason"], width=12, flex=2),
)


class ModelPage(ListPage):
    """The versions of one model above its aliases; Tab moves between the two."""

    VIEW = "versions"
    EMPTY = "This model has no versions.\nRegister one: appliance model push FOLDER TENANT/MODEL"
    VERBS = frozenset(("alias", "take_away"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open"),
        Binding("a", "alias", "set alias"),
        Binding("x", "take_away", "retire"),
        Binding("tab", "app.focus_next", "aliases"),
    ]
    COLUMNS = VERSION_COLUMNS

    def query_now(self) -> Query:
        """The versions of this model."""
        tenant, model = self.place.args
        return Query(view="versions", params=(("tenant", tenant), ("model", model)))

    def body(self) -> ComposeResult:
        """Description, versions, aliases."""
        yield Static(id="facts", markup=False)
        yield from super().body()
        yield LiveTable(ALIAS_COLUMNS, lambda r: str(r["name"]), id="aliases")

    def key_of(self, row: Row) -> str:
        """Versions are named by their number here."""
        return str(row["version"])

    def open_row(self, row: Row) -> Place:
        """The version's page."""
        return Place("version", (*self.place.args, str(row["version"])))

    @property
    def aliases(self) -> Sequence[Row]:
        """The aliases as last heard."""
        return tuple(self._drawn.extras.get("aliases") or ()) if self._drawn else ()

    def draw(self, snapshot: Snapshot) -> None:
        """Versions, aliases and the description."""
        super().draw(snapshot)
        table = self.query_one("#aliases", LiveTable)
        table.styles.height = min(6, 1 + len(self.aliases))
        table.display = bool(self.aliases)
        table.show(self.aliases)
        model = snapshot.extras.get("model") or {}
        words = text.clean(model.get("description") or "No description.")
        made = f"Created {text.day(model.get('created_at'))} by {model.get('created_by', '?')}"
        width = max(20, self.size.width - 2)
        line = f"{text.clip(words, width - len(made) - 3)}   {made}"
        self.query_one("#facts", Static).update(Text(text.clip(line, width)), layout=False)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter on an alias opens the version it names."""
        if event.data_table.id == "aliases":
            row = self.query_one("#aliases", LiveTable).selected
            if row is not None:
                self.console.go(self.open_row(row))

    @work(exclusive=True, group="dialog")
    async def action_alias(self) -> None:
        """``a`` points an alias at the version under the cursor."""
        if self.row is not None:
            tenant, model = self.place.args
            await set_alias(self, tenant, model, self.row, self.aliases)

    @work(exclusive=True, group="dialog")
    async def action_take_away(self) -> None:
        """``x`` retires the version, or removes the alias, under the cursor."""
        tenant, model = self.place.args
        table = self.query_one("#aliases", LiveTable)
        if table.has_focus and table.selected is not None:
            await remove_alias(self, tenant, model, table.selected)
        elif self.row is not None:
            await retire(self, tenant, model, self.row)


async def set_alias(
    page: Page, tenant: str, model: str, version: Row, aliases: Sequence[Row]
) -> None:
    """Ask for an alias and a reason, then move it from the revision that was on screen."""
    if not page.console.may("Set alias"):
        return
    to = int(version["version"])
    if version["state"] != "ready":
        page.console.say(f"v{to} is {version['state']}: no alias can point at it.", is_error=True)
        return
    known = {str(a["name"]): a for a in aliases}

    def describe(values: Mapping[str, str]) -> str:
        old = known.get(values["alias"])
        if old is None:
            return f"Creates alias '{values['alias']}' on v{to}."
        if old["version"] == to:
            return f"'{values['alias']}' points at v{to} already."
        return (
            f"Calls to '{values['alias']}' move from v{old['version']} to v{to}."
            f"\nRevision {old['revision']} -> {old['revision'] + 1}"
        )

    values = await page.app.push_screen_wait(
        Form(
            title=f"Set alias of {tenant}/{model} to v{to}",
            fields=[
                Field(name="alias", label="Alias", value="live"),
                Field(name="reason", label="Reason", hint="kept in the audit ledger"),
            ],
            verb="Set alias",
            check=lambda v: "" if v["alias"] else "Type the alias.",
            describe=describe,
        )
    )
    if values is None:
        return
    name = values["alias"]
    old = known.get(name)
    guard = {"If-Match": f'"{old["revision"]}"'} if old else {"If-None-Match": "*"}
    body: dict[str, Any] = {"version": to, "reason": values["reason"]}
    await page.console.perform(
        "PUT",
        path_of("api", "v1", "models", tenant, model, "aliases", name),
        body=body,
        headers=guard,
        doing=f"Set alias {name} of {tenant}/{model} to v{to}",
        done=f"{tenant}/{model}: {name} is v{to}",
        cli=f"appliance alias set {tenant}/{model} {name} {to}",
    )


async def remove_alias(page: Page, tenant: str, model: str, alias: Row) -> None:
    """Confirm and remove an alias at the revision that was on screen."""
    if not page.console.may("Remove alias"):
        return
    name, revision = str(alias["name"]), alias["revision"]
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Remove alias {name} of {tenant}/{model}",
            effect=f"Callers of '{name}' (now v{alias['version']}) get 404 from now on.",
            verb="Remove alias",
            revision=f"{revision} is removed",
        )
    )
    if consent is not None:
        await page.console.perform(
            "DELETE",
            path_of("api", "v1", "models", tenant, model, "aliases", name),
            headers={"If-Match": f'"{revision}"'},
            doing=f"Remove alias {name} of {tenant}/{model}",
            done=f"Alias {name} of {tenant}/{model} removed",
            cli=f"appliance alias rm {tenant}/{model} {name}",
        )


async def retire(page: Page, tenant: str, model: str, version: Row) -> None:
    """Confirm and retire a version."""
    if not page.console.may("Retire version"):
        return
    to = version["version"]
    if version["state"] != "ready":
        page.console.say(f"v{to} is {version['state']}.")
        return
    held = " ".join(str(a) for a in version["aliases"])
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Retire {tenant}/{model} v{to}",
            effect=(
                f"v{to} answers 410 from now on and cannot come back;"
                f" {text.count(version['calls_15m'])} calls in the last 15 minutes."
                + (f"\nAliases that point at it: {text.clean(held)}" if held else "")
            ),
            verb="Retire version",
            type_name=f"v{to}",
        )
    )
    if consent is not None:
        await page.console.perform(
            "DELETE",
            path_of("api", "v1", "models", tenant, model, "versions", to),
            doing=f"Retire {tenant}/{model} v{to}",
            done=f"{tenant}/{model} v{to} retired",
            cli=f"appliance model rm {tenant}/{model}:{to}",
        )
