"""The store follows no link out of its data folder."""

from __future__ import annotations

import pytest
from storing import SETTINGS, Folder

from appliance.errors import StoreCorrupt
from appliance.store import Store


@pytest.mark.parametrize("name", ["LOCK", "db", "staging", "ledger", "blobs"])
async def test_a_link_in_the_place_of_a_part_is_refused(tmp_path, name):
    folder = Folder(tmp_path).make()
    async with folder.open():
        pass
    target = tmp_path / "elsewhere"
    (folder.path / name).rename(target)
    (folder.path / name).symlink_to(target)
    before = target.read_bytes() if name == "LOCK" else sorted(p.name for p in target.iterdir())
    with pytest.raises(StoreCorrupt, match=name):
        await Store.open(folder.path, folder.root(), SETTINGS)
    assert before == (
        target.read_bytes() if name == "LOCK" else sorted(p.name for p in target.iterdir())
    )
