"""The projection: the ledger's entries as DuckDB tables, for questions; derived and disposable.

Owns: ``db/``; the only importer of duckdb and its only writer, one thread.
Never: is asked whether something is true (the ledger is), is waited for by a request that only
writes, or opens the database file in any other way (that would drop DuckDB's lock).
Read next: ``queries`` (what is asked), ``FORMAT.md`` section 6 (what may be in it).

Entries are applied in order, each batch in one transaction together with ``applied_seq``. Whatever
goes wrong with the database, it is set aside and rebuilt from the ledger.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from appliance import clock
from appliance.errors import StoreCorrupt
from appliance.events import CallIntent, CallOutcome, MetricReported
from appliance.records import Entry
from appliance.store.keyring import Keyring
from appliance.store.ledger import Ledger
from appliance.store.proofs import Tiles, leaf_hash
from appliance.store.reader import Cursor, Record, decode_record
from appliance.store.rows import RegistryRows, actor_tag
from appliance.store.seal import DISK_FULL
from appliance.store.state import REGISTRY_EVENTS

_LOG = logging.getLogger(__name__)
_SCHEMA = 5
_BATCH = 20_000
_TAGS = 10_000  # actors remembered
_INTENT, _OUTCOME = msgspec.json.Decoder(CallIntent), msgspec.json.Decoder(CallOutcome)
_SLICE = 128  # rows converted while the interpreter lock is held: about a millisecond
_PERIOD_S = 0.5
_RETRY_S = 0.5
_AGAIN_NS = 60 * 1_000_000_000  # failures closer together than this are one trouble
_CHECKPOINT = "64MB"

_TABLES = """
CREATE TABLE meta (schema_version INTEGER, applied_seq BIGINT);
CREATE TABLE entry (seq BIGINT, time_ns BIGINT, kind VARCHAR, tenant_id VARCHAR, actor BLOB,
                    model_id VARCHAR, segment INTEGER, position BIGINT, place INTEGER);
CREATE TABLE intent (seq BIGINT, boot VARCHAR, request_bytes BIGINT);
CREATE TABLE call (seq BIGINT, time_ns BIGINT, tenant_id VARCHAR, actor BLOB, model_id VARCHAR,
                   number INTEGER, code VARCHAR, status INTEGER, reply_bytes BIGINT, cold BOOLEAN,
                   queue_us BIGINT, load_us BIGINT, compute_us BIGINT, total_us BIGINT,
                   intent_seq BIGINT, request_bytes BIGINT, route_revision BIGINT,
                   call_id VARCHAR, shadow_of VARCHAR, match VARCHAR, merged_calls BIGINT,
                   merged_rows BIGINT, own_rows BIGINT, root VARCHAR);
CREATE TABLE tenant (id VARCHAR PRIMARY KEY, created_ns BIGINT, isolation VARCHAR, sealed BLOB);
CREATE TABLE api_key (id VARCHAR PRIMARY KEY, tenant_id VARCHAR, role VARCHAR, created_ns BIGINT,
                      expires_ns BIGINT, revoked_ns BIGINT, sealed BLOB);
CREATE TABLE model (id VARCHAR PRIMARY KEY, tenant_id VARCHAR, created_ns BIGINT,
                    removed_ns BIGINT, sealed BLOB);
CREATE TABLE version (model_id VARCHAR, number INTEGER, tenant_id VARCHAR, size_bytes BIGINT,
                      created_ns BIGINT, retired_ns BIGINT, sealed BLOB,
                      PRIMARY KEY (model_id, number));
CREATE TABLE alias (model_id VARCHAR, tag BLOB, tenant_id VARCHAR, number INTEGER,
                    revision BIGINT, set_ns BIGINT, sealed BLOB, PRIMARY KEY (model_id, tag));
CREATE TABLE secret (model_id VARCHAR, tag BLOB, tenant_id VARCHAR, set_ns BIGINT, sealed BLOB,
                     PRIMARY KEY (model_id, tag));
CREATE TABLE metric (seq BIGINT, tenant_id VARCHAR, model_id VARCHAR, number INTEGER,
                     route_revision BIGINT, call_id VARCHAR, value DOUBLE);
CREATE TABLE route (model_id VARCHAR, revision BIGINT, tenant_id VARCHAR, set_ns BIGINT,
                    sealed BLOB, PRIMARY KEY (model_id, revision));
INSERT INTO meta VALUES (5, 0);
"""

_LOCK_DOWN = (
    "SET autoinstall_known_extensions=false",
    "SET autoload_known_extensions=false",
    "SET allow_community_extensions=false",
    "SET allow_persistent_secrets=false",
    "SET python_enable_replacements=false",
    "SET enable_external_access=false",
    "SET lock_configuration=true",
)


class _Rows:
    """What one batch adds, table by table."""

    def __init__(self) -> None:
        self.entry: list[tuple[Any, ...]] = []
        self.call: list[tuple[Any, ...]] = []
        self.metric: list[tuple[Any, ...]] = []
        self.intents: dict[int, tuple[str, int]] = {}  # sequence number: boot, request bytes
        self.closed: list[int] = []  # intents of earlier batches whose outcome is in this one
        self.leaves: list[bytes] = []
        self.registry: list[Entry] = []
        self.cursor = Cursor(0, 0, 0)


class Projection:
    """The database and the thread that feeds it."""

    def __init__(
        self,
        data_dir: Path,
        ledger: Ledger,
        keyring: Keyring,
        key: bytes,
        *,
        memory_bytes: int,
        checkpoint_threshold: str = _CHECKPOINT,
    ) -> None:
        """Open or create the database. Blocking.

        Args:
            data_dir: the data folder.
            ledger: what is projected; recovered already.
            keyring: for rows sealed under a tenant's key.
            key: the projection key, 32 bytes.
            memory_bytes: what DuckDB may use.
            checkpoint_threshold: WAL size at which DuckDB checkpoints.
        """
        self.rebuilds = 0
        self.lag_problem = ""
        self._dir = data_dir / "db"
        self._path = self._dir / "appliance.duckdb"
        self._ledger = ledger
        self._key = key
        self._rows = RegistryRows(keyring, key)
        self._memory_bytes = memory_bytes
        self._checkpoint_threshold = checkpoint_threshold
        self._dir.mkdir(mode=0o700, exist_ok=True)
        self.tiles = Tiles(self._dir / "tiles")
        self._lock = threading.Lock()
        self._con: duckdb.DuckDBPyConnection | None = None
        self._tags: dict[str, bytes] = {}
        self._are_tiles_bad = False
        self._is_beyond_repair = False
        self._failed_ns = -_AGAIN_NS
        self._cursor = Cursor(0, 0, 0)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._applied = threading.Condition()
        self._thread: threading.Thread | None = None
        self._open()

    @property
    def applied_seq(self) -> int:
        """The newest entry that queries can see."""
        return self._cursor.size

    def start(self) -> None:
        """Start feeding."""
        self._thread = threading.Thread(target=self._loop, name="store-projection", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Apply what is left, then close the database. Blocking."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._close_database()

    def wait(self, seq: int, timeout_s: float) -> bool:
        """Wait until entry ``seq`` is visible; False when the time is over. Blocking."""
        self._wake.set()
        with self._applied:
            return self._applied.wait_for(lambda: self.applied_seq >= seq, timeout_s)

    def distrust_tiles(self) -> None:
        """Have the tree hashes made again from the ledger."""
        self._are_tiles_bad = True
        self._wake.set()

    def wait_tiles(self, size: int, timeout_s: float) -> bool:
        """Wait until there are tree hashes of ``size`` leaves. Blocking."""
        self._wake.set()
        with self._applied:
            return self._applied.wait_for(
                lambda: not self._are_tiles_bad and self.tiles.size >= size, timeout_s
            )

    def query(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a read-only question, on a cursor of its own. Blocking.

        Raises:
            StoreCorrupt: the database failed and is being rebuilt.
        """
        with self._lock:
            if self._con is None:
                raise StoreCorrupt("The audit index is being rebuilt; try again soon.")
            cursor = self._con.cursor()
        try:
            return cursor.execute(sql, parameters or []).fetchall()
        except duckdb.Error as error:
            self._suspect(error)
            raise StoreCorrupt("The audit index failed and is being rebuilt.") from error
        finally:
            cursor.close()

    # --- the database ------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the database, or set it aside and start an empty one; never raises."""
        try:
            try:
                self._con = self._connect()
                self._cursor = self._read_cursor(self._con)
            except (duckdb.Error, StoreCorrupt, ValueError) as error:
                if _is_disk_full(error):
                    raise
                _LOG.warning("the projection does not open (%s); rebuilding it", _line(error))
                self._set_aside()
        except (duckdb.Error, OSError) as error:  # no room: tried again later
            self._close_database()
            self.lag_problem = _line(error)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        is_new = not self._path.exists()
        con = duckdb.connect(
            str(self._path),
            config={
                "memory_limit": f"{self._memory_bytes // 1024**2}MB",
                "threads": str(max((os.cpu_count() or 2) // 2, 1)),
                "temp_directory": str(self._dir / "tmp"),
                "max_temp_directory_size": "1GB",
                "temp_file_encryption": "true",
                "checkpoint_threshold": self._checkpoint_threshold,
            },
        )
        try:
            for statement in _LOCK_DOWN:
                con.execute(statement)
            if is_new:
                con.execute(f"BEGIN; {_TABLES} COMMIT")
            self._path.chmod(0o600)
        except duckdb.Error:
            con.close()
            raise
        return con

    def _read_cursor(self, con: duckdb.DuckDBPyConnection) -> Cursor:
        rows = con.execute("SELECT * FROM meta").fetchall()
        if len(rows) != 1 or rows[0][0] != _SCHEMA:
            raise ValueError("another schema")
        seq = rows[0][1]
        count = con.execute("SELECT count(*), max(seq) FROM entry").fetchall()[0]
        if count != (seq, seq or None) or seq > self._ledger.position.size:
            raise ValueError("its rows do not match the ledger")
        cursor = self._ledger.cursor_at(seq)
        if cursor.size != seq:
            raise ValueError("it stops in the middle of a frame")
        return cursor

    def _close_database(self) -> None:
        con, self._con = self._con, None
        if con is not None:
            try:
                con.close()
            except duckdb.Error as error:
                _LOG.warning("the projection did not close well: %s", error)

    def _set_aside(self) -> None:
        """Put the database away and begin an empty one."""
        self._close_database()
        self.rebuilds += 1
        for old in self._dir.glob("quarantine-*"):
            old.unlink()
        stamp = clock.now_ns()
        for suffix in ("", ".wal"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                path.rename(self._dir / f"quarantine-{stamp}{suffix}")
        self._cursor = Cursor(0, 0, 0)
        self._con = self._connect()

    def _suspect(self, error: Exception) -> None:
        """Note a failure for the thread to look at, unless the question itself was wrong."""
        if isinstance(error, duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError):
            return
        now_ns = clock.monotonic_ns()
        is_again = now_ns - self._failed_ns < _AGAIN_NS
        self._failed_ns = now_ns
        # A checksum error does not go away by reopening, and neither does one that came back.
        self._is_beyond_repair = not _is_disk_full(error) and (
            is_again or "Corrupt database" in str(error)
        )
        self.lag_problem = _line(error)
        self._wake.set()

    # --- the thread --------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            is_last = self._stop.is_set()
            try:
                if self.lag_problem:
                    self._reopen()
                self._catch_up()
            except Exception as error:  # noqa: BLE001 - it is derived data; nothing may stop it
                _LOG.warning("the projection failed: %s", _line(error))
                self._suspect(error)
                self._stop.wait(_RETRY_S)
            if is_last:
                return
            self._wake.wait(_PERIOD_S)
            self._wake.clear()

    def _reopen(self) -> None:
        """After a failure: reopen, and if that does not help, start over."""
        with self._lock:
            self._close_database()
            self.lag_problem = ""
            if self._is_beyond_repair:
                self._is_beyond_repair = False
                _LOG.warning("the projection is damaged; rebuilding it")
                self._set_aside()
            else:
                self._open()

    def _catch_up(self) -> None:
        while True:
            rows = self._collect()
            if rows is not None:
                self._apply(rows)
            with self._applied:
                self._applied.notify_all()
            # A short batch waits for the next period: under steady load going on at once would
            # make a transaction of a handful of rows, which costs as much as one of thousands.
            if rows is None or len(rows.entry) < _BATCH:
                return

    def _collect(self) -> _Rows | None:
        """The rows of the next batch of entries; ``None`` when there is nothing new."""
        target = self._ledger.position.size
        if self._are_tiles_bad:
            self.tiles.reset()
            self._are_tiles_bad = False
        if self._cursor.size >= target and self.tiles.size >= target:
            return None
        rows = _Rows()
        if self.tiles.size < self._cursor.size:
            self._fill_tiles(self.tiles.size)
        if self._cursor.size >= target:
            return None
        for place, frame in self._ledger.frames(self._cursor):
            for index, record in enumerate(frame.records):
                self._add(rows, record, (place.segment, place.offset, index))
            rows.cursor = Cursor(place.segment, place.end, frame.size)
            if len(rows.entry) >= _BATCH:
                break
        return rows

    def _fill_tiles(self, start: int) -> None:
        """Append missing leaves up to the cursor, straight from the ledger."""
        leaves: list[bytes] = []
        for _place, frame in self._ledger.frames(self._ledger.cursor_at(start)):
            for index, record in enumerate(frame.records):
                seq = frame.first_seq + index
                if start < seq <= self._cursor.size:
                    leaves.append(leaf_hash(record))
            if len(leaves) >= _BATCH or frame.first_seq > self._cursor.size:
                self.tiles.append(leaves)
                start, leaves = start + len(leaves), []
        self.tiles.append(leaves)

    def _add(self, rows: _Rows, line: bytes, place: tuple[int, int, int]) -> None:
        record, model_id = decode_record(line), ""
        tag = self._tag(record.actor)
        rows.leaves.append(leaf_hash(line))
        if record.kind == CallIntent.KIND:
            begun = _INTENT.decode(record.data)
            model_id = begun.model_id
            rows.intents[record.seq] = (record.boot, begun.request_bytes)
        elif record.kind == CallOutcome.KIND:
            ended = _OUTCOME.decode(record.data)
            model_id = ended.model_id
            self._add_call(rows, record, tag, ended)
        elif record.kind == MetricReported.KIND:
            model_id = record.object
            self._add_metric(rows, self._ledger.entry(line))
        elif record.kind in REGISTRY_EVENTS:
            rows.registry.append(self._ledger.entry(line))
            if record.kind.startswith(
                ("model.", "version.", "alias.", "secret.", "route.", "sampling.", "samples.")
            ):
                model_id = record.object
        row = (record.seq, record.ts, record.kind, record.tenant, tag, model_id, *place)
        rows.entry.append(row)

    def _tag(self, actor: str) -> bytes:
        tag = self._tags.get(actor)
        if tag is None:
            if len(self._tags) >= _TAGS:
                self._tags.clear()
            tag = self._tags[actor] = actor_tag(self._key, actor)
        return tag

    @staticmethod
    def _add_metric(rows: _Rows, entry: Entry) -> None:
        if entry.event is not None:
            names = ("model_id", "number", "route_revision", "call_id", "value")
            values = [entry.event[name] for name in names]
            rows.metric.append((entry.seq, entry.tenant_id, *values))

    @staticmethod
    def _add_call(rows: _Rows, entry: Record, tag: bytes, call: CallOutcome) -> None:
        intent = rows.intents.pop(call.intent_seq, None)
        if intent is None:
            rows.closed.append(call.intent_seq)
        rows.call.append(
            (
                entry.seq,
                entry.ts,
                entry.tenant,
                tag,
                call.model_id,
                call.number,
                call.code,
                call.status,
                call.reply_bytes,
                call.cold,
                call.queue_us,
                call.load_us,
                call.compute_us,
                call.total_us,
                call.intent_seq,
                intent[1] if intent else None,
                call.route_revision,
                call.call_id if call.route_revision or call.root else None,
                call.shadow_of or None,
                call.match or None,
                *((m.calls, m.rows, m.own_rows) if (m := call.merged) else (None, None, None)),
                call.root or None,
            )
        )

    def _apply(self, rows: _Rows) -> None:
        con = self._con
        if con is None:
            raise StoreCorrupt("the projection is not open")
        self.tiles.cut(self._cursor.size)
        con.execute("BEGIN")
        try:
            self._append(con, "entry", rows.entry)
            self._append(con, "call", rows.call)
            self._append(con, "metric", rows.metric)
            self._append(con, "intent", [(seq, *rest) for seq, rest in rows.intents.items()])
            if rows.closed:
                con.execute(
                    "UPDATE call SET request_bytes = intent.request_bytes FROM intent "
                    "WHERE call.request_bytes IS NULL AND call.intent_seq = intent.seq "
                    "AND call.seq > ?",
                    [self._cursor.size],
                )
                con.execute(
                    "DELETE FROM intent WHERE seq IN (SELECT unnest(?::BIGINT[]))", [rows.closed]
                )
            for entry in rows.registry:
                self._rows.apply(con, entry)
            con.execute("UPDATE meta SET applied_seq = ?", [rows.cursor.size])
            con.execute("COMMIT")
        except duckdb.Error:
            self._roll_back(con)
            raise
        self.tiles.append(rows.leaves)
        self._cursor = rows.cursor

    @staticmethod
    def _roll_back(con: duckdb.DuckDBPyConnection) -> None:
        try:
            con.execute("ROLLBACK")
        except duckdb.Error as error:
            _LOG.debug("roll back: %s", error)

    @staticmethod
    def _append(con: duckdb.DuckDBPyConnection, table: str, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        appender = con.appender(table)
        try:
            for start in range(0, len(rows), _SLICE):
                appender.append_rows(rows[start : start + _SLICE])
            appender.flush()
        except duckdb.Error:
            appender.clear()
            raise


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _is_disk_full(error: Exception) -> bool:
    text = str(error)
    return any(os.strerror(code) in text for code in DISK_FULL)
