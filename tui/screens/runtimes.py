"""Runtimes: what models run in, their dependency sets, and what is being made now.

Owns: the columns of the runtimes table, the lines of sets and of work; build, verify, remove,
collect.
Never: imports a file; that needs the file, so it is a command line.
Read next: ``frame.ListPage``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import text
from tui.client import Row, Snapshot, path_of
from tui.dialogs import Confirm, Field, Form
from tui.frame import ListPage
from tui.table import Column

_HEX = 12
_JOB_WORDS = {"done": "OK", "failed": "X FAIL"}
_KINDS = {"language": "built-in", "image": "imported"}
_BAR = 10


def short(digest: object) -> str:
    """The first characters of a digest, without what all have."""
    return str(digest or "").removeprefix("sha256:")[:_HEX]


def used_by(uses: Sequence[Mapping[str, Any]], shown: int = 5) -> str:
    """Versions by name, the first few."""
    names = [f"{u['tenant']}/{u['model']} v{u['version']}" for u in uses[:shown]]
    more = f" and {len(uses) - shown} more" if len(uses) > shown else ""
    return ", ".join(names) + more


def counted(number: int) -> str:
    """A number of dependency sets, in words."""
    return f"{number} dependency set{'' if number == 1 else 's'}"


def work_lines(extras: Mapping[str, Any], width: int) -> list[str]:
    """Registrations and jobs on their way, then those that ended, newest first; one line each."""
    jobs = list(extras.get("jobs") or [])
    lines = [
        _moving(f"register {one['tenant']}/{one['model']}", one["fraction"], _step(one), width)
        for one in extras.get("builds") or []
    ]
    lines += [
        _moving(f"{one['verb']} {one['name']}", one["fraction"], one["detail"], width)
        for one in jobs
        if one["state"] == "running"
    ]
    lines += [
        text.clip(
            f"{text.clock(one['ended_at'])} {_JOB_WORDS.get(str(one['state']), one['state'])}"
            f" {one['verb']} {one['name']}: {one['detail']}",
            width,
        )
        for one in reversed(jobs)
        if one["state"] != "running"
    ]
    return lines


def _step(one: Mapping[str, Any]) -> str:
    return f"{one['step']}: {one['detail']}" if one["detail"] else str(one["step"])


def _moving(name: str, fraction: object, said: object, width: int) -> str:
    part = min(1.0, max(0.0, float(str(fraction or 0))))
    bar = ("#" * round(part * _BAR)).ljust(_BAR, "-")
    head = f"{text.clip(name, 30)} [{bar}] {round(100 * part):>3}% "
    return head + text.clip(said, max(8, width - cell_len(head)))


class Runtimes(ListPage):
    """One row per installed runtime; below them the dependency sets and the work in progress."""

    VIEW = "runtimes"
    EMPTY = "No runtime is installed: no model can run.\nn builds one."
    VERBS = frozenset(("build", "verify", "remove", "collect"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "build", "build"),
        Binding("v", "verify", "verify"),
        Binding("x", "remove", "remove"),
        Binding("o", "sets", "sets"),
        Binding("u", "collect", "remove unused sets", show=False),
    ]
    COLUMNS = (
        Column(name="name", title="RUNTIME", text=lambda r: r["name"], width=16, flex=2),
        Column(
            name="kind",
            title="KIND",
            text=lambda r: _KINDS.get(str(r["kind"]), str(r["kind"])),
            width=8,
        ),
        Column(name="digest", title="DIGEST", text=lambda r: short(r["digest"]), width=_HEX),
        Column(
            name="size",
            title="SIZE",
            text=lambda r: text.size(r["size_bytes"]) if r["size_bytes"] else text.NONE,
            order=lambda r: r["size_bytes"],
            width=9,
            right=True,
        ),
        Column(
            name="uses",
            title="VERSIONS",
            text=lambda r: str(len(r["uses"] or ())),
            order=lambda r: len(r["uses"] or ()),
            width=8,
            right=True,
        ),
        Column(
            name="built",
            title="BUILT",
            text=lambda r: text.day(r["built_at"]),
            order=lambda r: r["built_at"],
            width=10,
        ),
        Column(
            name="signer",
            title="SIGNED BY",
            text=lambda r: short(r["signer"]) or "this machine",
            width=12,
            least=96,
        ),
        Column(
            name="by",
            title="USED BY",
            text=lambda r: used_by(r["uses"] or ()) or text.NONE,
            width=16,
            flex=3,
            least=118,
        ),
    )

    def body(self) -> ComposeResult:
        """The line of sets, the runtimes, the work in progress."""
        yield Static(id="facts", markup=False)
        yield from super().body()
        yield Static(id="recent", markup=False)

    def key_of(self, row: Row) -> str:
        """Runtimes are named by name and digest: several of a name may be installed."""
        return f"{row['name']} {row['digest']}"

    def draw(self, snapshot: Snapshot) -> None:
        """Rows, sets and work."""
        super().draw(snapshot)
        sets = snapshot.extras.get("sets") or []
        unused = [one for one in sets if not one["uses"]]
        held = text.size(sum(one["size_bytes"] or 0 for one in sets))
        line = f"Dependency sets: {len(sets)}, {held}; used by no version: {len(unused)}"
        facts = Text(text.clip(line, self._wide), no_wrap=True)
        self.query_one("#facts", Static).update(facts, layout=False)
        room = 5 if self.size.height >= 30 else 3
        lines = work_lines(snapshot.extras, self._wide)[:room]
        recent = self.query_one("#recent", Static)
        recent.display = bool(lines)
        recent.update(Text("\n".join(lines), no_wrap=True))

    def resized(self) -> None:
        """Draw the lines at their new width."""
        super().resized()
        if self._drawn is not None and self.is_shown:
            self.draw(self._drawn)

    @property
    def _wide(self) -> int:
        return max(20, self.size.width - 2)

    @property
    def _extras(self) -> Mapping[str, Any]:
        return self._drawn.extras if self._drawn is not None else {}

    @work(exclusive=True, group="dialog")
    async def action_build(self) -> None:
        """``n`` builds one of the languages' base images; it goes on by itself."""
        if not self.console.may("Build runtime"):
            return
        known = tuple(str(name) for name in self._extras.get("available") or ())
        if not known:
            self.console.say("The appliance names no runtime that it could build.", is_error=True)
            return
        there = {str(row["name"]) for row in (self._drawn.rows if self._drawn else ())}
        first = next((name for name in known if name not in there), known[0])
        values = await self.app.push_screen_wait(
            Form(
                title="Build runtime",
                fields=[Field(name="name", label="Runtime", words=known, value=first)],
                verb="Build",
                describe=lambda v: _build_effect(v["name"], there),
            )
        )
        if values is not None:
            await self._start("build", values["name"], f"Build of {values['name']} started")

    @work(exclusive=True, group="dialog")
    async def action_verify(self) -> None:
        """``v`` reads the runtime under the cursor back and compares each file."""
        row = self.row
        if row is not None and self.console.may("Verify runtime"):
            name = str(row["name"])
            await self._start("verify", name, f"Reading {name} back; the result appears below")

    async def _start(self, verb: str, name: str, done: str) -> None:
        await self.console.perform(
            "POST",
            path_of("admin", "v1", "runtimes", verb),
            body={"name": name, "wait": False},
            doing=f"{verb.capitalize()} {name}",
            done=done,
            cli=f"appliance runtime {verb} {name}",
        )

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        """``x`` removes the runtime under the cursor, if no version uses it."""
        row = self.row
        if row is None or not self.console.may("Remove runtime"):
            return
        name, digest = str(row["name"]), str(row["digest"])
        uses = row["uses"] or ()
        if uses:
            words = f"Remove {name}: disabled, used by {used_by(uses)}. Retire what uses it first."
            self.console.say(words, is_error=True)
            return
        consent = await self.app.push_screen_wait(
            Confirm(
                title=f"Remove runtime {name}",
                effect=(
                    f"Deletes {short(digest)}, {text.size(row['size_bytes'])}, from this machine."
                    " No version uses it. Registering for it needs it built or imported again."
                ),
                verb="Remove runtime",
                type_name=name,
            )
        )
        if consent is not None:
            await self.console.perform(
                "DELETE",
                path_of("admin", "v1", "runtimes", name, digest.removeprefix("sha256:")),
                doing=f"Remove runtime {name}",
                done=f"Runtime {name} removed",
                cli=f"appliance runtime rm {name} {digest[:19]}",
            )

    @work(exclusive=True, group="dialog")
    async def action_collect(self) -> None:
        """``u`` removes the dependency sets that no version uses."""
        if not self.console.may("Remove unused sets"):
            return
        unused = [one for one in self._extras.get("sets") or () if not one["uses"]]
        if not unused:
            self.console.say("Every dependency set is used: there is nothing to remove.")
            return
        size = text.size(sum(one["size_bytes"] or 0 for one in unused))
        consent = await self.app.push_screen_wait(
            Confirm(
                title="Remove unused dependency sets",
                effect=(
                    f"Deletes what no version uses: {counted(len(unused))}, {size}. Those asked for"
                    " within the hour stay. A version that needs one again has it built again."
                ),
                verb="Remove sets",
            )
        )
        if consent is None:
            return
        reply = await self.console.perform(
            "POST",
            "/admin/v1/dependencies/collect",
            body={},
            doing="Remove unused dependency sets",
        )
        if reply is not None and isinstance(reply.data, dict):
            count = len(reply.data.get("removed") or ())
            freed = text.size(reply.data.get("size_bytes") or 0)
            self.console.say(f"Removed {counted(count)}, {freed}\n$ appliance runtime gc")

    @work(exclusive=True, group="dialog")
    async def action_sets(self) -> None:
        """``o`` shows every dependency set: key, size, packages, users."""
        from tui.dialogs import Reading

        sets = self._extras.get("sets") or []
        lines = []
        for one in sorted(sets, key=lambda each: -(each["size_bytes"] or 0)):
            users = used_by(one["uses"] or ()) or "no version"
            lines.append(
                f"{short(one['key'])}  {one['runtime']}  {text.size(one['size_bytes'])}"
                f"  built {text.day(one['built_at'])}"
            )
            lines.append(f"  used by {users}")
            lines.append(f"  {', '.join(one['packages'] or ())}")
        words = "\n".join(text.clean(line) for line in lines)
        empty = "None: they are made when a version with requirements is registered."
        await self.app.push_screen_wait(Reading("Dependency sets", words or empty))


def _build_effect(name: str, there: set[str]) -> str:
    again = " It is installed: a newer one is added, versions keep theirs." if name in there else ""
    return (
        f"Makes {name} from the distribution's packages: a minute or more, some hundred megabytes."
        f" It goes on when you leave this screen.{again}"
    )
