"""P40: whatever somebody puts into a folder that batches may use, nothing outside it is opened.

Whoever can write to such a folder may be anybody: they have links, pipes, devices and changes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import ApplianceError, FolderUnavailable, InputInvalid, TooLarge
from appliance.folders import Folders

DEADLINE_S = 30
TABLE = b"a,b\n1,2\n"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    made = tmp_path / "lake"
    (made / "sub").mkdir(parents=True)
    (made / "rows.csv").write_bytes(TABLE)
    (made / "sub" / "rows.csv").write_bytes(TABLE * 2)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.csv").write_bytes(b"secret\n1\n")
    return made


@pytest.fixture
def folders(lake: Path, tmp_path: Path) -> Folders:
    (tmp_path / "out").mkdir()
    return Folders(
        {
            "lake": config.Folder(path=str(lake), tenants=("acme",)),
            "out": config.Folder(path=str(tmp_path / "out"), tenants=("*",), writable=True),
            "gone": config.Folder(path=str(tmp_path / "gone"), tenants=("acme",), writable=True),
        }
    )


async def read(folders: Folders, place: str, tenant: str = "acme", most: int = 1 << 20) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return b"".join([piece async for piece in folders.read(tenant, place, bytes_max=most)])


async def pieces(*some: bytes) -> AsyncIterator[bytes]:
    for piece in some:
        yield piece


async def write(folders: Folders, place: str, *some: bytes, tenant: str = "acme") -> None:
    async with asyncio.timeout(DEADLINE_S):
        await folders.write(tenant, place, pieces(*some), mark="m")


async def test_a_plain_file_is_read_and_written(folders: Folders, tmp_path: Path) -> None:
    assert await read(folders, "lake/rows.csv") == TABLE
    assert await read(folders, "lake/sub/rows.csv") == TABLE * 2
    await folders.require_writable("acme", "out/x.csv")
    await write(folders, "out/x.csv", b"one")
    await write(folders, "out/x.csv", b"two", b"three")
    assert (tmp_path / "out/x.csv").read_bytes() == b"twothree"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.csv"]
    assert folders.of_tenant("acme") == {"gone": True, "lake": False, "out": True}


@pytest.mark.parametrize(
    "place",
    [
        "lake/../outside/secret.csv", "lake/sub/../../outside/secret.csv", "lake/./rows.csv",
        "lake//rows.csv", "lake//etc/passwd", "lake/", "lake", "", "/etc/passwd", "lake/rows.csv/",
        "lake/rows.csv\0", "lake/\nrows.csv", "lake/" + "x" * 256, "lake/" + "x/" * 17 + "y",
        "lake/" + "/".join(["x" * 200] * 6), "lake/\udcff", "lake/..", "LAKE/rows.csv",
    ],
)  # fmt: skip
async def test_a_place_that_is_no_path_below_its_folder_is_refused(
    folders: Folders, place: str
) -> None:
    with pytest.raises(InputInvalid):
        await read(folders, place)
    with pytest.raises(InputInvalid):
        await write(folders, place.replace("lake", "out"), b"x")


async def test_no_link_is_followed_wherever_it_stands(
    folders: Folders, lake: Path, tmp_path: Path
) -> None:
    (lake / "file.csv").symlink_to(tmp_path / "outside/secret.csv")
    (lake / "near.csv").symlink_to("rows.csv")
    (lake / "folder").symlink_to(tmp_path / "outside")
    (lake / "self").symlink_to("/proc/self/root")
    (lake / "loop").symlink_to("loop")
    for place in (
        "file.csv", "near.csv", "folder/secret.csv", "self/etc/passwd", "loop", "loop/x", "folder",
    ):  # fmt: skip
        with pytest.raises(InputInvalid):
            await read(folders, f"lake/{place}")
    out = tmp_path / "out"
    (out / "link.csv").symlink_to(tmp_path / "outside/secret.csv")
    (out / "folder").symlink_to(tmp_path / "outside")
    (out / ".m.part").symlink_to(tmp_path / "outside/secret.csv")
    for place in ("out/link.csv", "out/folder/x.csv"):
        with pytest.raises(InputInvalid):
            await folders.require_writable("acme", place)
        with pytest.raises(InputInvalid):
            await write(folders, place, b"overwritten")
    (out / ".m.part").symlink_to(tmp_path / "outside/secret.csv")
    await write(folders, "out/fine.csv", b"x")
    assert (out / "fine.csv").read_bytes() == b"x"
    assert (tmp_path / "outside/secret.csv").read_bytes() == b"secret\n1\n"
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["secret.csv"]


async def test_what_is_no_plain_file_is_refused_and_never_opened(
    folders: Folders, lake: Path, tmp_path: Path
) -> None:
    os.mkfifo(lake / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(lake)
        listener.bind("socket")
        os.chdir(here)
        for place in ("lake/pipe", "lake/socket", "lake/sub", "lake/rows.csv/x", "lake/none.csv"):
            with pytest.raises(InputInvalid):  # and nobody waits for a writer of the pipe
                await read(folders, place)
    devices = Folders({"dev": config.Folder(path="/dev", tenants=("acme",), writable=True)})
    for name in ("null", "zero", "tty", "full"):
        with pytest.raises(InputInvalid):
            await read(devices, f"dev/{name}")
    os.mkfifo(tmp_path / "out/pipe")
    (tmp_path / "out/folder").mkdir()
    for place in ("out/pipe", "out/folder"):
        with pytest.raises(InputInvalid):
            await folders.require_writable("acme", place)
        with pytest.raises(InputInvalid):
            await write(folders, place, b"x")


@pytest.mark.parametrize("how", ["longer", "shorter", "other", "replaced"])
async def test_a_file_that_changes_while_it_is_read_is_refused(
    folders: Folders, lake: Path, how: str
) -> None:
    path = lake / "big.csv"
    path.write_bytes(b"x" * (3 << 20))
    os.utime(path, (1, 1))
    reading = folders.read("acme", "lake/big.csv", bytes_max=1 << 30)
    got = len(await anext(reading))
    if how == "longer":
        with path.open("ab") as file:
            file.write(b"y")
    elif how == "shorter":
        os.truncate(path, 1 << 20)
    elif how == "other":
        with path.open("r+b") as file:
            file.write(b"y")
    else:  # the file that is read is still whole: what has its name now is another
        path.rename(lake / "old.csv")
        os.utime(lake / "old.csv", (2, 2))
        path.symlink_to("/etc/passwd")

    async def rest() -> None:
        nonlocal got
        async for piece in reading:
            assert set(piece) <= set(b"xy")
            got += len(piece)

    with pytest.raises(InputInvalid, match="changed while it was read"):
        await rest()
    assert got <= 3 << 20


async def test_a_folder_that_is_moved_during_the_walk_leads_nowhere_else(
    folders: Folders, lake: Path, tmp_path: Path
) -> None:
    """Somebody swaps a folder for a link again and again: it is the folder or a problem."""
    (lake / "a").mkdir()
    (lake / "a" / "secret.csv").write_bytes(b"inside")
    (lake / "link").symlink_to(tmp_path / "outside")

    def swap() -> None:
        os.rename(lake / "a", lake / "b")
        os.rename(lake / "link", lake / "a")
        os.rename(lake / "a", lake / "link")
        os.rename(lake / "b", lake / "a")

    async def swapping() -> None:
        while True:
            await asyncio.to_thread(swap)

    task = asyncio.create_task(swapping())
    found = set()
    try:
        for _ in range(300):
            try:
                found.add(await read(folders, "lake/a/secret.csv"))
            except InputInvalid:
                found.add(b"refused")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert found <= {b"inside", b"refused"}


async def test_another_tenants_folder_is_like_one_that_is_not_there(folders: Folders) -> None:
    said = []
    for place in ("lake/rows.csv", "none/rows.csv"):
        with pytest.raises(InputInvalid) as refused:
            await read(folders, place, tenant="globex")
        said.append(refused.value.detail.replace(place, "X"))
    assert said[0] == said[1]
    assert folders.of_tenant("globex") == {"out": True}
    with pytest.raises(InputInvalid):
        await write(folders, "lake/x.csv", b"x")  # its own, but nothing is written there
    with pytest.raises(InputInvalid):
        await folders.require_writable("acme", "lake/x.csv")


async def test_what_the_machine_does_not_allow_is_no_fault_of_the_caller(
    folders: Folders, lake: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (lake / "rows.csv").chmod(0)
    (tmp_path / "out").chmod(0o500)
    places: list[tuple[str, type[ApplianceError]]] = [
        ("lake/rows.csv", FolderUnavailable),
        ("gone/rows.csv", FolderUnavailable),
    ]
    for place, problem in places:
        with pytest.raises(problem):
            await read(folders, place)
    for place in ("out/x.csv", "gone/x.csv"):
        with pytest.raises(FolderUnavailable):
            await folders.require_writable("acme", place)
    (tmp_path / "out").chmod(0o700)
    with pytest.raises(TooLarge):
        await read(folders, "lake/sub/rows.csv", most=3)


async def test_a_write_that_is_cut_off_leaves_what_was_there(
    folders: Folders, tmp_path: Path
) -> None:
    await write(folders, "out/x.csv", b"before")

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await folders.write("acme", "out/x.csv", broken(), mark="m")
    assert (tmp_path / "out/x.csv").read_bytes() == b"before"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.csv"]
    (tmp_path / "out/.m.part").write_bytes(b"left by a process that was killed")
    await write(folders, "out/x.csv", b"after")
    assert (tmp_path / "out/x.csv").read_bytes() == b"after"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.csv"]
