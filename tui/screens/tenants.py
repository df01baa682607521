"""Tenants: who has models here, and how much of it.

Owns: the columns of the tenants table, new tenant, its isolation, remove tenant.
Never: shows a key's secret; that is ``keys``.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm, Field, Form
from tui.frame import ListPage
from tui.nav import Place
from tui.table import Column

_ISOLATIONS = {
    "standard": "Namespaces, system call filter and limits, on the machine's own kernel.",
    "gvisor": (
        "Each sandbox gets a kernel of its own, by gVisor: stronger, slower at system calls, and"
        " without zygotes, GPUs, imported images or ways out to a network."
    ),
}


class Tenants(ListPage):
    """One row per tenant; Enter shows its models."""

    VIEW = "tenants"
    EMPTY = "No tenants yet.\nn creates the first one."
    VERBS = frozenset(("new", "isolate", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "models"),
        Binding("n", "new", "new"),
        Binding("i", "isolate", "isolation"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(name="name", title="TENANT", text=lambda r: r["name"], width=12, flex=2),
        Column(name="isolation", title="ISOLATION", text=lambda r: r["isolation"], width=9),
        Column(
            name="models",
            title="MODELS",
            text=lambda r: text.count(r["models"]),
            order=lambda r: r["models"],
            width=7,
            right=True,
        ),
        Column(
            name="keys",
            title="KEYS",
            text=lambda r: text.count(r["keys"]),
            order=lambda r: r["keys"],
            width=5,
            right=True,
        ),
        Column(
            name="calls",
            title="CALLS 15m",
            text=lambda r: text.count(r["calls_15m"]),
            order=lambda r: r["calls_15m"],
            width=10,
            right=True,
        ),
        Column(
            name="storage",
            title="STORED",
            text=lambda r: text.size(r["storage_bytes"]),
            order=lambda r: r["storage_bytes"],
            width=9,
            right=True,
        ),
        Column(
            name="created",
            title="CREATED",
            text=lambda r: text.day(r["created_at"]),
            order=lambda r: r["created_at"],
            width=10,
        ),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=12, flex=1, least=100),
        Column(name="id", title="ID", text=lambda r: r["id"], width=17, wide=True),
    )

    def key_of(self, row: Row) -> str:
        """Tenants are named by their name."""
        return str(row["name"])

    def open_row(self, row: Row) -> Place:
        """The tenant's models."""
        return Place("models", (str(row["name"]),))

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` creates a tenant."""
        if not self.console.may("New tenant"):
            return
        values = await self.app.push_screen_wait(
            Form(
                title="New tenant",
                fields=[Field(name="name", label="Name", hint="a-z, 0-9 and '-'")],
                verb="Create",
                effect="Creates a tenant with a sealing key of its own. It has no API keys yet.",
                check=lambda v: "" if v["name"] else "Type a name.",
            )
        )
        if values is None:
            return
        name = values["name"]
        done = await self.console.perform(
            "POST",
            "/api/v1/tenants",
            body={"name": name},
            doing=f"Create tenant {name}",
            done=f"Tenant {name} created",
            cli=f"appliance tenant create {name}",
        )
        if done is not None:
            self.table.aim(name)

    @work(exclusive=True, group="dialog")
    async def action_isolate(self) -> None:
        """``i`` sets the least that the sandboxes of the tenant under the cursor get."""
        row = self.row
        if row is None or not self.console.may("Set isolation"):
            return
        name = str(row["name"])
        values = await self.app.push_screen_wait(
            Form(
                title=f"Isolation of {name}",
                fields=[
                    Field(
                        name="isolation",
                        label="Isolation",
                        words=tuple(_ISOLATIONS),
                        value=str(row["isolation"]),
                    )
                ],
                verb="Set isolation",
                describe=lambda v: _ISOLATIONS[v["isolation"]],
            )
        )
        if values is None or values["isolation"] == row["isolation"]:
            return
        await self.console.perform(
            "PUT",
            path_of("api", "v1", "tenants", name, "isolation"),
            body=values,
            doing=f"Set isolation of {name}",
            done=f"Sandboxes of {name} are isolated by {values['isolation']}",
            cli=f"appliance tenant isolate {name} {values['isolation']}",
        )

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the tenant under the cursor."""
        row = self.row
        if row is None or not self.console.may("Remove tenant"):
            return
        name = str(row["name"])
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Remove tenant {name}",
                effect=(
                    f"Removes {row['models']} models and {row['keys']} API keys,"
                    f" {text.size(row['storage_bytes'])} stored,"
                    f" {text.count(row['calls_15m'])} calls in the last 15 minutes."
                    " Its sealing key is destroyed: nothing of it can be read again."
                ),
                verb="Remove tenant",
                type_name=name,
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                path_of("api", "v1", "tenants", name),
                doing=f"Remove tenant {name}",
                done=f"Tenant {name} removed",
                cli=f"appliance tenant rm {name}",
            )
