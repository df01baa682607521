"""Boxes, ranges and torn tails, for any input."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storing import ACTOR, Folder, write_blob

from appliance.store import seal
from appliance.store.blobs import CHUNK

DATA = os.urandom(3 * CHUNK + 777)


@given(
    plain=st.binary(max_size=200),
    aad=st.binary(max_size=20),
    at=st.integers(0),
    bit=st.integers(0, 7),
)
def test_a_box_gives_back_its_text_and_one_flipped_bit_never_does(plain, aad, at, bit):
    key = b"k" * 32
    box = bytearray(seal.box_seal(key, "x", aad, plain))
    assert seal.box_open(key, "x", aad, bytes(box)) == plain
    box[at % len(box)] ^= 1 << bit
    with pytest.raises(ValueError, match="box"):
        seal.box_open(key, "x", aad, bytes(box))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(loop, store, tenant id, blob) with DATA in it."""
    folder = Folder(tmp_path_factory.mktemp("blob")).make()
    loop = asyncio.new_event_loop()
    opened = folder.open()
    store = loop.run_until_complete(opened.__aenter__())
    tenant = loop.run_until_complete(store.registry.create_tenant(name="a", actor=ACTOR))
    blob = loop.run_until_complete(write_blob(store, tenant.id, DATA))
    yield loop, store, tenant.id, blob
    loop.run_until_complete(opened.__aexit__(None, None, None))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(offset=st.integers(0, len(DATA) + 10), length=st.none() | st.integers(0, len(DATA)))
def test_any_range_of_a_blob_is_the_same_range_of_its_bytes(stored, offset, length):
    loop, store, tenant_id, blob = stored

    async def read():
        pieces = store.blobs.read(tenant_id, blob.id, offset=offset, length=length)
        return b"".join([piece async for piece in pieces])

    end = None if length is None else offset + length
    assert loop.run_until_complete(read()) == DATA[offset:end]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 700_000), max_size=6))
def test_bytes_written_in_any_pieces_are_one_blob(stored, sizes):
    loop, store, tenant_id, _blob = stored
    pieces = [DATA[:size] for size in sizes]

    async def write():
        async with store.blobs.writer(tenant_id) as writer:
            for piece in pieces:
                await writer.write(piece)
            blob = await writer.commit()
        return b"".join([p async for p in store.blobs.read(tenant_id, blob.id)])

    assert loop.run_until_complete(write()) == b"".join(pieces)
