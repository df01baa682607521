"""Webhooks: addresses that are told of events; how each fares, and what became of its deliveries.

Owns: the columns of webhooks and deliveries; create, test, rotate, enable, disable, remove, resend.
Never: keeps a secret: it is shown once, in the dialog that must be typed back into.
Read next: ``frame.ListPage``, ``dialogs.Secret``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import text
from tui.client import Query, Row, Snapshot, path_of
from tui.dialogs import Confirm, Field, Form, Notice, Secret, missing
from tui.frame import ListPage, Page
from tui.nav import Place
from tui.table import Column

EVENTS = (
    "job.completed batch.started batch.progress batch.completed version.registered"
    " version.retired route.changed route.held route.aborted route.promoted route.removed"
    " alias.set drift.breach drift.recovered schedule.skipped schedule.stopped key.created"
    " key.revoked"
)
_OFF = {
    "command": ("- off", "by command"),
    "gone": ("X off: gone", "it answered 410"),
    "failing": ("X off: fails", "it failed for days"),
    "backlog": ("X off: full", "too much waited for it"),
}
ANSWERS = {
    "ok": "accepted",
    "egress-denied": "refused: may not go there",
    "unresolved": "its name leads nowhere",
    "unreachable": "no connection",
    "tls": "its certificate is not trusted",
    "timeout": "no answer in time",
    "protocol": "it does not speak HTTP",
    "redirected": "redirects are not followed",
    "gone": "410: it wants no more",
    "disabled": "given up: the webhook was disabled",
    "ca-file": "webhooks.ca_file cannot be read",
}


def state_of(row: Row) -> str:
    """``OK on``, ``! failing``, ``- off`` by command, ``X off: gone``."""
    state = str(row["state"])
    if state.startswith("off"):
        return _OFF.get(state.partition(": ")[2], (f"X {state}", ""))[0]
    return "! failing" if row["failing_since"] else text.word(state)


def why_off(row: Row) -> str:
    """Why it is off, in words; empty while it is on."""
    return _OFF.get(str(row["state"]).partition(": ")[2], ("", ""))[1]


def url_of(row: Row) -> str:
    """Where it goes; the one without an address signs the webhooks of single jobs."""
    return str(row["url"] or "(secret of single jobs' webhooks)")


def answer_of(row: Row) -> str:
    """How the last attempt ended, in words, with the HTTP status where one came."""
    code, status = str(row["code"] or ""), row["status"]
    if not code:
        return "being sent" if row["attempts"] else "not sent yet"
    words = ANSWERS.get(code, code)
    return f"{words} ({status})" if status and str(status) not in words else words


class Webhooks(ListPage):
    """One row per webhook, the newest first."""

    VIEW = "webhooks"
    EMPTY = "No webhooks: nobody is told of anything.\nn creates one."
    VERBS = frozenset(("new", "test", "rotate", "hold", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "deliveries"),
        Binding("n", "new", "new"),
        Binding("t", "test", "test"),
        Binding("h", "hold", "off/on"),
        Binding("e", "rotate", "new secret"),
        Binding("x", "remove", "remove"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=state_of, width=12),
        Column(name="tenant", title="TENANT", text=lambda r: r["tenant"], width=9, flex=1),
        Column(name="url", title="GOES TO", text=url_of, width=24, flex=4),
        Column(
            name="events",
            title="EVENTS",
            text=lambda r: str(len(r["events"])) if r["url"] else text.NONE,
            order=lambda r: len(r["events"]),
            width=6,
            right=True,
        ),
        Column(
            name="waiting",
            title="WAITING",
            text=lambda r: text.count(r["waiting"]),
            order=lambda r: r["waiting"],
            width=7,
            right=True,
        ),
        Column(
            name="failing",
            title="FAILING",
            text=lambda r: text.age(r["failing_since"]),
            order=lambda r: r["failing_since"],
            width=7,
            right=True,
        ),
        Column(
            name="age",
            title="AGE",
            text=lambda r: text.age(r["created_at"]),
            order=lambda r: r["created_at"],
            width=6,
            right=True,
            least=90,
        ),
        Column(name="id", title="WEBHOOK", text=lambda r: r["id"], width=16, least=112),
        Column(name="by", title="BY", text=lambda r: r["created_by"], width=18, wide=True),
        Column(
            name="of", title="TOLD OF", text=lambda r: " ".join(r["events"]), width=24, wide=True
        ),
    )

    def key_of(self, row: Row) -> str:
        """Webhooks are named by their id."""
        return str(row["id"])

    def open_row(self, row: Row) -> Place:
        """Its deliveries."""
        return Place("webhook", (str(row["tenant"]), str(row["id"])))

    @work(exclusive=True, group="dialog")
    async def action_new(self) -> None:
        """``n`` creates a webhook and shows its secret once."""
        row = self.row
        tenant = self.place.args[0] if self.place.args else str(row["tenant"]) if row else ""
        await create(self, tenant)

    @work(exclusive=True, group="dialog")
    async def action_test(self) -> None:
        """``t`` sends the webhook under the cursor a test."""
        await test(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_hold(self) -> None:
        """``h`` switches the webhook under the cursor off or on."""
        await hold(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_rotate(self) -> None:
        """``e`` gives the webhook under the cursor a new secret."""
        await rotate(self, self.row)

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the webhook under the cursor."""
        await remove(self, self.row)


class WebhookPage(ListPage):
    """One webhook: what it is told of, and one row per delivery, the newest first."""

    VIEW = "deliveries"
    EMPTY = "No deliveries yet.\nt sends a test."
    VERBS = frozenset(("test", "resend", "rotate", "hold"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "test", "test"),
        Binding("u", "resend", "send again"),
        Binding("h", "hold", "off/on"),
        Binding("e", "rotate", "new secret"),
    ]
    COLUMNS = (
        Column(name="state", title="STATE", text=lambda r: text.word(r["state"]), width=12),
        Column(
            name="time",
            title="QUEUED (UTC)",
            text=lambda r: text.stamp(r["queued_at"])[5:16],
            order=lambda r: r["queued_at"],
            width=12,
        ),
        Column(name="type", title="EVENT", text=lambda r: r["type"], width=14, flex=1),
        Column(
            name="tries",
            title="TRIES",
            text=lambda r: str(r["attempts"]),
            order=lambda r: r["attempts"],
            width=5,
            right=True,
        ),
        Column(name="answer", title="LAST ANSWER", text=answer_of, width=25, flex=3),
        Column(
            name="next",
            title="NEXT (UTC)",
            text=lambda r: text.stamp(r["next_at"])[5:] if r["next_at"] else text.NONE,
            order=lambda r: r["next_at"],
            width=14,
            least=96,
        ),
        Column(name="job", title="JOB", text=lambda r: r["job"] or "-", width=17, least=130),
        Column(name="id", title="WEBHOOK-ID", text=lambda r: r["id"], width=30, wide=True),
    )

    def query_now(self) -> Query:
        """The deliveries of this webhook."""
        tenant, webhook = self.place.args
        return Query(view=self.VIEW, params=(("tenant", tenant), ("webhook", webhook)))

    def body(self) -> ComposeResult:
        """What it is above its deliveries."""
        yield Static(id="facts", markup=False)
        yield from super().body()

    def key_of(self, row: Row) -> str:
        """Deliveries are named by the id of their message."""
        return str(row["id"])

    @property
    def webhook(self) -> Row | None:
        """The webhook as last heard."""
        return self._drawn.extras.get("webhook") if self._drawn else None

    def draw(self, snapshot: Snapshot) -> None:
        """Deliveries, and the lines about the webhook."""
        super().draw(snapshot)
        self._tell()

    def resized(self) -> None:
        """The lines at their new width."""
        super().resized()
        self._tell()

    def _tell(self) -> None:
        webhook = self.webhook
        if webhook is None or not self.is_shown:
            return
        width = max(20, self.size.width - 2)
        told = ", ".join(webhook["events"]) or "single jobs that name their own"
        since = webhook["failing_since"]
        failing = f", failing for {text.age(since)}" if since else ""
        along = "; what a model answered goes along" if webhook["with_output"] else ""
        lines = [
            "  ".join(p for p in (state_of(webhook), why_off(webhook), url_of(webhook)) if p)
            + failing,
            f"told of {told}{along}",
            f"{webhook['waiting']} waiting; signed with {webhook['secrets']} secret"
            f"{'' if webhook['secrets'] == 1 else 's'}",
        ]
        shown = "\n".join(text.clip(line, width) for line in lines)
        self.query_one("#facts", Static).update(Text(shown, no_wrap=True))

    @work(exclusive=True, group="dialog")
    async def action_test(self) -> None:
        """``t`` sends a test."""
        await test(self, self.webhook)

    @work(exclusive=True, group="dialog")
    async def action_hold(self) -> None:
        """``h`` switches it off or on."""
        await hold(self, self.webhook)

    @work(exclusive=True, group="dialog")
    async def action_rotate(self) -> None:
        """``e`` gives it a new secret."""
        await rotate(self, self.webhook)

    @work(exclusive=True, group="dialog")
    async def action_resend(self) -> None:
        """``u`` sends the delivery under the cursor once more."""
        row = self.row
        if row is None or not self.console.may("Send again"):
            return
        tenant, webhook = self.place.args
        name = str(row["id"])
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Send {row['type']} again",
                effect=f"{name} goes to {row['to']} now, with the same webhook-id: a receiver"
                " that remembers it does nothing twice.",
                verb="Send again",
            )
        )
        if consent is not None:
            await self.console.perform(
                "POST",
                path_of("api", "v1", "tenants", tenant, "webhooks", webhook, "deliveries", name)
                + "/redeliver",
                doing=f"Send {name} again",
                done=f"{name} is sent again",
                cli=f"appliance webhook redeliver {tenant} {webhook} {name}",
            )


def _path(row: Row, *more: str) -> str:
    return path_of("api", "v1", "tenants", row["tenant"], "webhooks", row["id"], *more)


async def create(page: Page, tenant: str) -> None:
    """Ask for a webhook, create it, and show its secret once; refusals are shown as they are."""
    if not page.console.may("New webhook"):
        return
    values = await page.app.push_screen_wait(
        Form(
            title="New webhook",
            fields=[
                Field(name="tenant", label="Tenant", value=tenant),
                Field(name="url", label="URL", hint="https://...; empty: signs single jobs'"),
                Field(name="events", label="Events", value="job.completed"),
                Field(name="output", label="With output", words=("no", "yes")),
            ],
            verb="Create",
            check=lambda v: missing(v, tenant="Type the tenant's name."),
            describe=_effect,
        )
    )
    if values is None:
        return
    events = values["events"].replace(",", " ").split() if values["url"] else []
    options = "".join(f" --event {name}" for name in events) or " --for-jobs"
    reply = await page.console.perform(
        "POST",
        path_of("api", "v1", "tenants", values["tenant"], "webhooks"),
        body={"url": values["url"], "events": events, "with_output": values["output"] == "yes"},
        doing=f"Create a webhook of {values['tenant']}",
    )
    if reply is None:
        return
    target = f" {values['url']}" if values["url"] else ""
    await _show_secret(
        page, reply.data, f"appliance webhook create {values['tenant']}{target}{options}"
    )


def _effect(values: Mapping[str, str]) -> str:
    if not values["url"]:
        return "Makes the secret that webhooks named by single jobs are signed with."
    more = "\nWhat a model answered goes along." if values["output"] == "yes" else ""
    return f"Events there are: {EVENTS}.{more}"


async def _show_secret(page: Page, made: Any, cli: str) -> None:
    """Show the secret of a webhook that was made or rotated, once."""
    document = made if isinstance(made, dict) else {}
    webhook, secret = document.get("webhook") or {}, str(document.get("secret") or "")
    if not secret:
        return
    where = webhook.get("url") or "single jobs"
    await page.app.push_screen_wait(
        Secret(
            title=f"Secret of webhook {webhook.get('id', '')}",
            secret=secret,
            note=f"What goes to {where} is signed with it; its receiver verifies with it.\n$ {cli}",
        )
    )


async def test(page: Page, row: Row | None) -> None:
    """Send a test and show what came of it."""
    if row is None or not page.console.may("Test webhook"):
        return
    reply = await page.console.perform(
        "POST", _path(row, "test"), doing=f"Test webhook {row['id']}"
    )
    if reply is None or not isinstance(reply.data, dict):
        return
    found = reply.data
    is_ok = found.get("state") == "delivered"
    title = "OK  The test arrived" if is_ok else "X  The test has not arrived"
    lines = [f"{url_of(row)}", f"last answer: {answer_of(found)}"]
    if not is_ok and found.get("next_at"):
        lines.append(f"tried again at {text.stamp(found['next_at'])} UTC")
    cli = f"$ appliance webhook test {row['tenant']} {row['id']}"
    await page.app.push_screen_wait(
        Notice(
            title,
            "\n".join(lines),
            notes=(f"Request id: {reply.request_id}", cli),
            is_bad=not is_ok,
        )
    )


async def hold(page: Page, row: Row | None) -> None:
    """Ask, then switch a webhook off, or on again."""
    if row is None or not page.console.may("Switch webhook"):
        return
    is_on = row["state"] == "on"
    verb = "disable" if is_on else "enable"
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"{verb.capitalize()} webhook {row['id']}",
            effect=(
                f"{url_of(row)} is told nothing more; {row['waiting']} waiting deliveries"
                " are given up."
                if is_on
                else f"{url_of(row)} is told of what happens from now on."
            ),
            verb=verb.capitalize(),
        )
    )
    if consent is not None:
        await page.console.perform(
            "POST",
            _path(row, verb),
            doing=f"{verb.capitalize()} webhook {row['id']}",
            done=f"Webhook {row['id']} {verb}d",
            cli=f"appliance webhook {verb} {row['tenant']} {row['id']}",
        )


async def rotate(page: Page, row: Row | None) -> None:
    """Ask, then give a webhook a new secret and show it once."""
    if row is None or not page.console.may("Rotate secret"):
        return
    values = await page.app.push_screen_wait(
        Form(
            title=f"New secret for webhook {row['id']}",
            fields=[Field(name="hours", label="Overlap, hours", value="24")],
            verb="Rotate",
            effect="Until the overlap ends deliveries are signed with the old secret as well.",
            check=lambda v: "" if v["hours"].isdigit() else "Hours are a number, such as 24.",
        )
    )
    if values is None:
        return
    reply = await page.console.perform(
        "POST",
        _path(row, "rotate"),
        body={"overlap_s": int(values["hours"]) * 3600},
        doing=f"Rotate the secret of webhook {row['id']}",
    )
    if reply is not None:
        cli = f"appliance webhook rotate {row['tenant']} {row['id']}"
        await _show_secret(page, reply.data, f"{cli} --overlap-hours {values['hours']}")


async def remove(page: Page, row: Row | None) -> None:
    """Ask, then remove a webhook with what waits for it."""
    if row is None or not page.console.may("Remove webhook"):
        return
    consent = await page.app.push_screen_wait(
        Confirm(
            title=f"Remove webhook {row['id']} of {row['tenant']}",
            effect=f"{url_of(row)} is told nothing more; {row['waiting']} waiting deliveries are"
            " given up, and its secret cannot be read any more.",
            verb="Remove webhook",
        )
    )
    if consent is not None:
        await page.console.perform(
            "DELETE",
            _path(row),
            doing=f"Remove webhook {row['id']}",
            done=f"Webhook {row['id']} removed",
            cli=f"appliance webhook rm {row['tenant']} {row['id']}",
        )
