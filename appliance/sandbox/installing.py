"""Building, importing and reading back runtimes: what is asked, and a process of its own for it.

Owns: ``Order``, carrying one out here (``carry_out``) or in a child process (``in_child``).
Never: holds keys; the child is a fresh process with an empty environment, and what an archive
says is only read there while an appliance serves.
Read next: ``images``, ``oci``, ``bundles`` (who do it), ``appliance.supply`` (who asks).

Order and answers are JSON: the order on the child's standard input, one line per step on its
standard output, the last one ``done`` or ``problem``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from appliance import config
from appliance.errors import (
    ApplianceError,
    HostError,
    InputInvalid,
    RuntimeMissing,
    problem_classes,
)
from appliance.records import Container
from appliance.sandbox import bundles, images, oci
from appliance.sandbox.runtimes import with_compiler

Verb = Literal["build", "import", "verify"]
Row = dict[str, Any]
_ENDING_S = 20.0
_LINE_BYTES_MAX = 16 * 1024 * 1024
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from appliance.sandbox.installing import main; main()"
)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        verb: ``build`` a language, ``import`` a file, or ``verify`` what is installed.
        data_dir: the data folder.
        name: the runtime; for ``verify`` empty means all, for a bundle it is not needed.
        path: the file to import.
        keep_current: ``build`` keeps an installed one that holds every package asked for.
        trusted: fingerprints of those who may have signed a bundle.
        image: which image of several in an archive.
        settings: how an image is used, where its versions do not say.
    """

    verb: Verb
    data_dir: str
    name: str = ""
    path: str = ""
    keep_current: bool = False
    trusted: tuple[str, ...] = ()
    image: str = ""
    settings: Container = msgspec.field(default_factory=Container)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What an order came to: one row per runtime.

    A row has what ``row_of`` says, and ``kept`` (build), ``sets`` and ``notes`` (import), or
    ``state`` and ``differences`` (verify).
    """

    rows: list[Row]


def row_of(found: images.Runtime) -> Row:
    """An installed runtime as the command line and the admin contract show it."""
    image = found.image
    told = image.settings.protocol if image else ""
    more = {} if image is None else {"image": msgspec.to_builtins(image)}
    return {
        **more,
        "name": found.name,
        "kind": "language" if image is None else f"image {told}".strip(),
        "digest": found.digest,
        "built_at": found.built_at,
        "rootfs": str(found.rootfs),
        "size_bytes": found.size_bytes,
        "tree": found.tree,
        "signer": found.signer,
    }


def placed(order: Order, data_dir: Path) -> Order:
    """The same order for this data folder."""
    return msgspec.structs.replace(order, data_dir=str(data_dir))


def carry_out(order: Order, progress: images.Progress) -> Done:
    """Do it in this process. Blocking, up to minutes.

    Raises:
        RuntimeMissing: there is no such runtime, or its build failed.
        InputInvalid, ImageRejected, ManifestInvalid, BundleRejected, DiskFull: see ``oci`` and
            ``bundles``.
    """
    folder = Path(order.data_dir)
    if order.verb == "build":
        return Done(rows=_build(order, folder, progress))
    if order.verb == "verify":
        return Done(rows=_verify(order, folder, progress))
    path = Path(order.path)
    if bundles.is_bundle(path):
        made = bundles.import_bundle(folder, path, frozenset(order.trusted), progress)
        return Done(rows=[{**row_of(made.runtime), "sets": list(made.sets), "notes": []}])
    if not order.name:
        raise InputInvalid("An image needs a name, which is what manifests will say: --name")
    wanted = oci.Wanted(name=order.name, image=order.image, settings=order.settings)
    one = oci.import_image(folder, path, wanted, progress)
    notes = list(one.image.notes) if one.image else []
    return Done(rows=[{**row_of(one), "sets": [], "notes": notes}])


def _build(order: Order, folder: Path, progress: images.Progress) -> list[Row]:
    rows = []
    for name in with_compiler(order.name):
        kept = images.current(folder, name) if order.keep_current else None
        made = kept or images.build(folder, name, progress)
        rows.append({**row_of(made), "kept": kept is not None})
    return rows


def _verify(order: Order, folder: Path, progress: images.Progress) -> list[Row]:
    found = [one for one in images.installed(folder) if order.name in ("", one.name)]
    if not found:
        named = f"No runtime '{order.name}' is installed."
        raise RuntimeMissing(named if order.name else "None is installed.")
    rows = []
    for at, one in enumerate(found):
        told = images.verify(
            one, _part_of(f"{one.name} {one.digest[7:15]}", at, len(found), progress)
        )
        rows.append({**row_of(one), "state": told.state, "differences": list(told.differences)})
    return rows


def _part_of(words: str, at: int, count: int, progress: images.Progress) -> images.Progress:
    return lambda step, fraction: progress(f"{words}: {step}", (at + fraction) / count)


async def in_child(order: Order, progress: images.Progress) -> Done:
    """Do it in a process that holds no keys, and end that process when cancelled.

    Raises:
        ApplianceError: what ``carry_out`` raises there.
        HostError: the process ended without an answer.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _START,
        str(Path(__file__).parents[2]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=config.child_environment(LC_ALL="C.UTF-8"),
        cwd="/",
        start_new_session=True,
        limit=_LINE_BYTES_MAX,
    )
    if process.stdin is None or process.stdout is None:
        raise ValueError("asked for pipes")
    try:
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        while line := await process.stdout.readline():
            said = msgspec.json.decode(line)
            if "problem" in said:
                raise _problem_from(said["problem"])
            if "done" in said:
                return msgspec.convert(said["done"], Done)
            progress(said["step"], said["fraction"])
        raise HostError("The process that works on runtimes ended without an answer.")
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Have it end with whatever it started; it tidies up behind itself first."""
    waited = asyncio.ensure_future(process.wait())
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        wait_s = 0.5 if number is None else _ENDING_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waited), wait_s)
            return


def _problem_from(document: dict[str, str]) -> ApplianceError:
    cls = next((c for c in problem_classes() if c.slug == document["code"]), HostError)
    return cls(document["detail"], hint=document["hint"])


def main() -> None:
    """The child: an order on standard input, steps and the answer on standard output."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # so that nothing else gets between the lines
    signal.signal(signal.SIGTERM, _interrupted)
    encode = msgspec.json.encode

    def progress(step: str, fraction: float) -> None:
        out.write(encode({"step": step, "fraction": round(fraction, 4)}) + b"\n")

    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        last: Row = {"done": msgspec.to_builtins(carry_out(order, progress))}
    except ApplianceError as error:
        last = {"problem": {"code": error.slug, "detail": error.detail, "hint": error.hint}}
    out.write(encode(last) + b"\n")


def _interrupted(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
