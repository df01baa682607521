"""API keys: who may call or own what, until when.

Owns: the columns of the keys table, new key (secret shown once), revoke.
Never: keeps a secret after its dialog was closed.
Read next: ``dialogs.Secret``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from tui import text
from tui.client import Row, path_of
from tui.dialogs import Confirm, Field, Form, Secret, answer_of
from tui.frame import ListPage
from tui.table import Column

APPLIANCE = "(appliance)"
ROLES = ("owner", "caller", "operator", "auditor", "admin")
TENANT_ROLES = ("owner", "caller")


class Keys(ListPage):
    """One row per key; secrets are never shown here."""

    VIEW = "keys"
    EMPTY = "No API keys yet.\nn creates one."
    VERBS = frozenset(("new", "revoke"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "new"),
        Binding("x", "revoke", "revoke"),
    ]
    COLUMNS = (
        Column(
            name="tenant",
            title="TENANT",
            text=lambda r: r["tenant"] or APPLIANCE,
            width=13,
            flex=1,
        ),
        Column(name="name", title="NAME", text=lambda r: r["name"], width=14, flex=2),
        Column(name="role", title="ROLE", text=lambda r: r["role"], width=8),
        Column(name="state", title="STATE", text=lambda r: text.word(r["state"]), width=9),
        Column(
            name="expires",
            title="EXPIRES",
            text=lambda r: text.day(r["expires_at"]),
            order=lambda r: r["expires_at"],
            width=10,
        ),
        Column(
            name="used",
            title="LAST USED",
            text=lambda r: text.age(r.get("last_used_at")),
            order=lambda r: r.get("last_used_at"),
            width=9,
        ),
        Column(name="id", title="ID", text=lambda r: r["id"], width=17, least=100),
        Column(
            name="scopes", title="SCOPES", text=lambda r: " ".join(r["scopes"]), width=16, wide=True
        ),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=12, wide=True),
    )

    def key_of(self, row: Row) -> str:
        """Keys are named by their id."""
        return str(row["id"])

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` issues a key and shows its secret once."""
        if not self.console.may("New key"):
            return
        tenant = self.place.args[0] if self.place.args else ""
        values = await self.app.push_screen_wait(
            Form(
                title="New API key",
                fields=[
                    Field(name="name", label="Name", hint="what or who uses it"),
                    Field(name="role", label="Role", words=ROLES),
                    Field(name="tenant", label="Tenant", value=tenant, hint="for owner, caller"),
                    Field(name="days", label="Expires in days", value="90"),
                    Field(name="scopes", label="Scopes", hint="optional, separated by spaces"),
                ],
                verb="Create",
                check=_wrong,
                describe=_effect,
            )
        )
        if values is not None:
            await self._issue(values)

    async def _issue(self, values: Mapping[str, str]) -> None:
        is_tenants = values["role"] in TENANT_ROLES
        tenant, name = values["tenant"] if is_tenants else "", values["name"]
        path = path_of("api", "v1", "tenants", tenant, "keys") if tenant else "/api/v1/keys"
        where = f"{tenant} " if tenant else ""
        reply = await self.console.perform(
            "POST",
            path,
            body={
                "name": name,
                "role": values["role"],
                "expires_in_days": int(values["days"]),
                "scopes": values["scopes"].split(),
            },
            doing=f"Create key {name}",
        )
        if reply is None or not isinstance(reply.data, dict):
            return
        await self.app.push_screen_wait(
            Secret(
                title=f"Key {name} ({values['role']})",
                secret=answer_of(reply.data.get("secret")),
                note=f"For {tenant or 'the appliance'}, valid {values['days']} days.",
            )
        )
        self.console.say(
            f"Key {name} created\n{reply.request_id}\n"
            f"$ appliance key create {where}{name} --role {values['role']}"
        )
        self.table.aim(answer_of(reply.data.get("id")))

    @work(exclusive=True, group="dialog")
    async def action_revoke(self) -> None:
        """``x`` revokes the key under the cursor."""
        row = self.row
        if row is None or not self.console.may("Revoke key"):
            return
        if row["state"] == "revoked":
            self.console.say(f"{row['name']} is revoked already.")
            return
        used = text.age(row.get("last_used_at"))
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Revoke key {row['name']} ({row['id']})",
                effect=(
                    f"Every request with this {row['role']} key of"
                    f" {row['tenant'] or 'the appliance'} is refused from now on."
                    f" Last used: {used + ' ago' if used != text.NONE else 'never or not known'}."
                ),
                verb="Revoke key",
                type_name=str(row["name"]),
            )
        )
        if consent is None:
            return
        tenant, key_id = str(row["tenant"]), str(row["id"])
        where = f"{tenant} " if tenant else ""
        base = ("api", "v1", "tenants", tenant, "keys") if tenant else ("api", "v1", "keys")
        await self.console.perform(
            "DELETE",
            path_of(*base, key_id),
            doing=f"Revoke key {row['name']}",
            done=f"Key {row['name']} revoked",
            cli=f"appliance key revoke {where}{key_id}",
        )


def _wrong(values: Mapping[str, str]) -> str:
    """What keeps this form from being sent; empty when nothing does."""
    if not values["name"]:
        return "Type a name for the key."
    if not values["days"].isdigit() or not 1 <= int(values["days"]) <= 3650:
        return "Days are a number from 1 to 3650."
    if values["role"] in TENANT_ROLES and not values["tenant"]:
        return f"Role {values['role']} belongs to a tenant: type its name."
    return ""


def _effect(values: Mapping[str, str]) -> str:
    role = values["role"]
    if role in TENANT_ROLES:
        does = "register and call" if role == "owner" else "call"
        return f"May {does} models of {values['tenant'] or 'a tenant'}."
    return f"Appliance-wide role {role}; the tenant field is not used."
