"""Training runs, drafts, their files, and notes: what may be written, and how much of it.

Owns: every change of these, its limits, and reading a kept file.
Never: parses HTTP, decides who may write, or registers a version (``intake``).
Read next: ``tracked`` (the nouns), ``store.tracking`` (what the events do), ``intake``.

A value written twice is an event only if it differs. Text and counts are bounded here, whatever
the contract they come through allows.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace

from appliance import archive, clock, config
from appliance.errors import (
    ApplianceError,
    ArchiveRejected,
    FieldError,
    InputInvalid,
    NameTaken,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from appliance.events import (
    DraftRemoved,
    DraftSet,
    Event,
    FileKept,
    FilesRemoved,
    NotesSet,
    RunChanged,
    RunGroupSet,
    RunStarted,
)
from appliance.records import Model, Tenant
from appliance.store import Store
from appliance.store import tracking as state
from appliance.tracked import DEFAULT_GROUP, Draft, KeptFile, Metric, Notes, Run, RunGroup

KEY_CHARACTERS_MAX = 250
PARAM_CHARACTERS_MAX = 6000
TAG_CHARACTERS_MAX = 8000
DESCRIPTION_CHARACTERS_MAX = 5000
KEYS_MAX = 500
DATA_CHARACTERS_MAX = 65_535
DATA_MAX = 64
_KEY = re.compile(r"[^\x00-\x1f\x7f]+")


class Tracking:
    """Commands on one appliance's runs, drafts, files and notes; one per unsealed node."""

    def __init__(self, store: Store, settings: config.Settings) -> None:
        """Keep them in ``store``, within the limits of ``settings``."""
        self._store = store
        self._limits = settings.tracking
        self._upload = settings.http

    def of(self, tenant_id: str) -> state.Tracking:
        """A tenant's as they are now."""
        return self._store.registry.snapshot.tracking(tenant_id)

    # --- groups of runs ----------------------------------------------------------------------

    def groups(self, tenant: Tenant) -> tuple[RunGroup, ...]:
        """Every group, the one that every tenant has first."""
        kept = self.of(tenant.id).groups
        first = RunGroup(
            id=DEFAULT_GROUP,
            name="Default",
            created_ns=tenant.created_ns,
            created_by=tenant.created_by,
            changed_ns=tenant.created_ns,
        )
        return tuple({DEFAULT_GROUP: first, **kept}.values())

    def group(self, tenant: Tenant, group_id: str) -> RunGroup:
        """A group by its id. Raises NotFound."""
        found = next((one for one in self.groups(tenant) if one.id == group_id), None)
        if found is None:
            raise NotFound(f"There is no experiment '{_shown(group_id)}'.")
        return found

    async def create_group(
        self, tenant: Tenant, *, name: str, tags: Mapping[str, str], actor: str
    ) -> RunGroup:
        """A new group of runs. Raises NameTaken, InputInvalid, QuotaExceeded."""
        _require_text(name, "name", KEY_CHARACTERS_MAX)
        require_tags(tags)
        made: list[RunGroup] = []

        def make() -> list[Event]:
            known = self.groups(tenant)
            if any(one.name == name for one in known):
                raise NameTaken(f"There is already an experiment named '{_shown(name)}'.")
            _require_count(len(known), self._limits.groups_max, "groups of runs", "groups_max")
            now = clock.now_ns()
            group = RunGroup(
                id=str(max(int(one.id) for one in known) + 1),
                name=name,
                tags=dict(tags),
                created_ns=now,
                created_by=actor,
                changed_ns=now,
            )
            made.append(group)
            return [RunGroupSet(group=group)]

        await self._change(tenant.id, make, actor)
        return made[0]

    async def change_group(
        self,
        tenant: Tenant,
        group_id: str,
        *,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        is_removed: bool | None = None,
        actor: str,
    ) -> None:
        """Rename, tag, remove or bring back a group. Raises NotFound, NameTaken, InputInvalid."""
        require_tags(tags or {})
        if name:
            _require_text(name, "name", KEY_CHARACTERS_MAX)

        def make() -> list[Event]:
            group = self.group(tenant, group_id)
            if group_id == DEFAULT_GROUP and (is_removed or name):
                raise InputInvalid("The experiment '0' is always there, under its own name.")
            if any(one.name == name and one.id != group_id for one in self.groups(tenant)):
                raise NameTaken(f"There is already an experiment named '{_shown(name)}'.")
            merged = {**group.tags, **(tags or {})}
            _require_count(len(merged) - 1, KEYS_MAX, "tags", "")
            fresh = replace(group, name=name or group.name, tags=merged)
            if is_removed is not None:
                fresh = replace(fresh, removed_ns=clock.now_ns() if is_removed else 0)
            if fresh == group:
                return []
            return [RunGroupSet(group=replace(fresh, changed_ns=clock.now_ns()))]

        await self._change(tenant.id, make, actor)

    # --- runs --------------------------------------------------------------------------------

    def run(self, tenant_id: str, run_id: str) -> Run:
        """A run by its id. Raises NotFound."""
        found = self.of(tenant_id).runs.get(run_id)
        if found is None:
            raise NotFound(f"There is no run '{_shown(run_id)}'.")
        return found

    async def start_run(
        self,
        tenant: Tenant,
        *,
        group_id: str,
        name: str,
        started_ms: int,
        tags: Mapping[str, str],
        actor: str,
    ) -> Run:
        """A new run. Raises NotFound (group), InputInvalid, QuotaExceeded."""
        require_tags(tags)
        run_id = clock.new_id("run", 20)
        run = Run(
            id=run_id,
            group_id=group_id,
            name=name or f"run-{run_id[4:10]}",
            status="RUNNING",
            started_ms=started_ms or clock.now_ns() // 1_000_000,
            tags=dict(tags),
            created_by=actor,
        )
        _require_text(run.name, "run_name", KEY_CHARACTERS_MAX)

        def make() -> list[Event]:
            if self.group(tenant, group_id).removed_ns:
                raise InputInvalid("This experiment was deleted; restore it first.")
            _require_count(len(self.of(tenant.id).runs), self._limits.runs_max, "runs", "runs_max")
            return [RunStarted(run=run)]

        await self._change(tenant.id, make, actor)
        return run

    async def change_run(self, tenant_id: str, event: RunChanged, *, actor: str) -> Run:
        """Log to a run, or change its head.

        Raises:
            NotFound: there is no such run.
            InputInvalid: a parameter has another value already, or text is too long.
            QuotaExceeded: it would have too much.
        """
        _require_map(event.params, "params", PARAM_CHARACTERS_MAX)
        require_tags(event.tags)
        for metric in event.metrics:
            _require_text(metric.key, "metrics", KEY_CHARACTERS_MAX)
        for one in event.data:
            _require_text(one.name, "datasets", KEY_CHARACTERS_MAX)
            _require_text(one.digest, "datasets", KEY_CHARACTERS_MAX)
            for text in (one.kind, one.source, one.schema, one.profile):
                _require_text(text or "-", "datasets", DATA_CHARACTERS_MAX)
            require_tags(one.tags)

        def make() -> list[Event]:
            run = self.run(tenant_id, event.run_id)
            if run.removed_ns and event.removed != -1:
                raise InputInvalid("This run was deleted; restore it first.")
            for key, value in event.params.items():
                if run.params.get(key, value) != value:
                    raise InputInvalid(
                        f"The parameter '{_shown(key)}' of this run is '{_shown(run.params[key])}' "
                        "already, and parameters never change.",
                        fields=(FieldError(pointer="/params", detail="it has another value"),),
                    )
            fresh = state.changed_run(run, event, 1)
            _require_count(len(fresh.params) - 1, KEYS_MAX, "parameters of one run", "")
            _require_count(len(fresh.tags) - 1, KEYS_MAX, "tags of one run", "")
            _require_count(len(fresh.data) - 1, DATA_MAX, "data sets of one run", "")
            linked = len(fresh.inputs) + len(fresh.outputs)
            _require_count(linked - 1, KEYS_MAX, "logged models of one run", "")
            most = self._limits.metrics_max
            _require_count(len(fresh.metrics) - 1, most, "metric values of one run", "metrics_max")
            return [] if fresh == run else [event]

        await self._change(tenant_id, make, actor)
        return self.run(tenant_id, event.run_id)

    # --- drafts ------------------------------------------------------------------------------

    def draft(self, tenant_id: str, draft_id: str) -> Draft:
        """A draft by its id. Raises NotFound."""
        found = self.of(tenant_id).drafts.get(draft_id)
        if found is None:
            raise NotFound(f"There is no logged model '{_shown(draft_id)}'.")
        return found

    async def create_draft(
        self,
        tenant: Tenant,
        *,
        group_id: str,
        run_id: str,
        name: str,
        kind: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        actor: str,
    ) -> Draft:
        """A new draft. Raises NotFound (group, run), InputInvalid, QuotaExceeded."""
        _require_map(params, "params", PARAM_CHARACTERS_MAX)
        require_tags(tags)
        _require_text(name + kind + "-", "name", KEY_CHARACTERS_MAX)
        now = clock.now_ns()
        draft = Draft(
            id=clock.new_id("m", 20).replace("_", "-"),
            group_id=group_id,
            run_id=run_id,
            name=name,
            kind=kind,
            status="PENDING",
            params=dict(params),
            tags=dict(tags),
            created_ns=now,
            created_by=actor,
            changed_ns=now,
        )

        def make() -> list[Event]:
            self.group(tenant, group_id)
            if run_id:
                self.run(tenant.id, run_id)
            count = len(self.of(tenant.id).drafts)
            _require_count(count, self._limits.runs_max, "logged models", "runs_max")
            return [DraftSet(draft=draft)]

        await self._change(tenant.id, make, actor)
        return draft

    async def change_draft(
        self, tenant_id: str, draft_id: str, change: Callable[[Draft], Draft], *, actor: str
    ) -> Draft:
        """Change a draft's status, parameters, tags or metrics. Raises NotFound, InputInvalid."""

        def make() -> list[Event]:
            draft = self.draft(tenant_id, draft_id)
            fresh = change(draft)
            _require_map(fresh.params, "params", PARAM_CHARACTERS_MAX)
            require_tags(fresh.tags)
            most = self._limits.metrics_max
            _require_count(len(fresh.metrics) - 1, most, "metric values", "metrics_max")
            if fresh == draft:
                return []
            return [DraftSet(draft=replace(fresh, changed_ns=clock.now_ns()))]

        await self._change(tenant_id, make, actor)
        return self.draft(tenant_id, draft_id)

    async def log_to_draft(
        self, tenant_id: str, draft_id: str, metrics: Iterable[Metric], *, actor: str
    ) -> Draft:
        """Log metric values of a draft. Raises NotFound, QuotaExceeded."""
        more = tuple(metrics)
        return await self.change_draft(
            tenant_id,
            draft_id,
            lambda draft: replace(draft, metrics=(*draft.metrics, *more)),
            actor=actor,
        )

    async def remove_draft(self, tenant_id: str, draft_id: str, *, actor: str) -> None:
        """Remove a draft and its files; versions registered from it stay. Raises NotFound."""
        self.draft(tenant_id, draft_id)
        await self.remove_files(tenant_id, draft_id, "", actor=actor)

        def make() -> list[Event]:
            self.draft(tenant_id, draft_id)
            return [DraftRemoved(draft_id=draft_id)]

        await self._change(tenant_id, make, actor)

    # --- files -------------------------------------------------------------------------------

    def files(self, tenant_id: str, owner_id: str) -> Mapping[str, KeptFile]:
        """The files of a run or draft by path."""
        return self.of(tenant_id).files.get(owner_id, {})

    async def keep(
        self, tenant_id: str, owner_id: str, path: str, chunks: AsyncIterator[bytes], *, actor: str
    ) -> KeptFile:
        """Keep a file; one of the same path is replaced.

        Args:
            tenant_id: whose.
            owner_id: a run or draft.
            path: where, as strict as in an archive.
            chunks: its content as it arrives.
            actor: who asks.

        Raises:
            ArchiveRejected: the path is none that an archive might hold beside the others.
            TooLarge, QuotaExceeded: the files of this owner, or of the tenant, would be too many.
            DiskFull: nothing was kept.
        """
        clean = archive.clean_path(path)
        self._require_owner(tenant_id, owner_id)
        self._require_place(tenant_id, owner_id, clean)
        file_id = clock.new_id("file")
        size = 0
        async with self._store.blobs.writer(tenant_id) as writer:
            await writer.write(state.head_of(file_id))
            async for piece in chunks:
                size += len(piece)
                await writer.write(piece)
            blob = await writer.commit()
        file = KeptFile(
            id=file_id,
            owner_id=owner_id,
            path=clean,
            size_bytes=size,
            blob=blob,
            created_ns=clock.now_ns(),
        )
        replaced: set[str] = set()

        def make() -> list[Event]:
            self._require_owner(tenant_id, owner_id)
            self._require_place(tenant_id, owner_id, clean)
            self._require_space(tenant_id, file)
            known = self.files(tenant_id, owner_id).get(clean)
            replaced.update([known.blob.id] if known else [])
            return [FileKept(file=file)]

        try:
            await self._change(tenant_id, make, actor)
        except ApplianceError:
            await self._store.blobs.discard(tenant_id, {blob.id})
            raise
        await self._store.blobs.discard(tenant_id, replaced)
        return file

    async def content(
        self, tenant_id: str, file: KeptFile, *, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """A kept file's bytes in pieces. Raises NotFound, StoreCorrupt."""
        start = len(state.head_of(file.id)) + offset
        async for piece in self._store.blobs.read(tenant_id, file.blob.id, offset=start):
            yield piece

    async def remove_files(self, tenant_id: str, owner_id: str, folder: str, *, actor: str) -> int:
        """Remove a file or a folder (``""``: all) of a run or draft; how many files that was."""
        gone: dict[str, KeptFile] = {}

        def make() -> list[Event]:
            gone.update(below(self.files(tenant_id, owner_id), folder))
            return [FilesRemoved(owner_id=owner_id, paths=tuple(gone))] if gone else []

        await self._change(tenant_id, make, actor)
        await self._store.blobs.discard(tenant_id, {file.blob.id for file in gone.values()})
        return len(gone)

    def _require_owner(self, tenant_id: str, owner_id: str) -> None:
        found = self.of(tenant_id)
        if owner_id not in found.drafts and owner_id not in found.runs:
            raise NotFound("There is no such run or logged model.")

    def _require_place(self, tenant_id: str, owner_id: str, path: str) -> None:
        """Refuse a path that any file system could take for another one that is there."""
        key = archive.folded(path)
        for known in self.files(tenant_id, owner_id):
            other = archive.folded(known)
            is_same = key == other and path != known
            if is_same or key.startswith(f"{other}/") or other.startswith(f"{key}/"):
                raise ArchiveRejected(
                    f"'{_shown(path)}' cannot be kept beside '{_shown(known)}': on some file "
                    "systems they are one, or one is a folder.",
                )

    def _require_space(self, tenant_id: str, file: KeptFile) -> None:
        found = self.of(tenant_id)
        own = {**found.files.get(file.owner_id, {}), file.path: file}
        if len(own) > self._upload.upload_files_max:
            raise TooLarge(f"These are more than {self._upload.upload_files_max} files.")
        if sum(one.size_bytes for one in own.values()) > self._upload.upload_bytes_max:
            raise TooLarge(f"Together they are over {self._upload.upload_bytes_max} bytes.")
        every = [one.size_bytes for files in found.files.values() for one in files.values()]
        _require_count(len(every), self._limits.files_max, "files", "files_max")
        if sum(every) + file.size_bytes > self._limits.files_bytes_max:
            raise QuotaExceeded(
                f"Files of runs may take {self._limits.files_bytes_max} bytes together.",
                hint="delete runs or logged models, or have IT raise tracking.files_bytes_max",
            )

    # --- notes -------------------------------------------------------------------------------

    async def annotate(
        self,
        model: Model,
        number: int,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        untagged: Iterable[str] = (),
        actor: str,
    ) -> None:
        """Change the description or tags of a version, or with 0 of its model.

        Raises:
            NotFound: there is no such version, or no tag to take away.
            InputInvalid, QuotaExceeded: text is too long, or there are too many tags.
        """
        require_tags(tags or {})
        if description:
            _require_length(description, "description", DESCRIPTION_CHARACTERS_MAX)

        def make() -> list[Event]:
            snapshot = self._store.registry.snapshot
            promise = self.of(model.tenant_id).promise(model.id, number)
            if number and snapshot.version(model.id, number) is None and promise is None:
                raise NotFound(f"The model has no version {number}.")
            now = clock.now_ns()
            known = self.of(model.tenant_id).note(model.id, number)
            known = known or Notes(model_id=model.id, number=number, changed_ns=now)
            kept = {**known.tags, **(tags or {})}
            for key in untagged:
                if kept.pop(key, None) is None:
                    raise NotFound(f"There is no tag '{_shown(key)}'.")
            _require_count(len(kept) - 1, KEYS_MAX, "tags", "")
            text = known.description if description is None else description
            fresh = replace(known, description=text, tags=kept)
            if fresh == known:
                return []
            return [NotesSet(notes=replace(fresh, changed_ns=now))]

        await self._change(model.tenant_id, make, actor)

    async def _change(self, tenant_id: str, make: Callable[[], list[Event]], actor: str) -> None:
        await self._store.registry.change(make, tenant_id=tenant_id, actor=actor, obj=tenant_id)


def below(files: Mapping[str, KeptFile], folder: str) -> dict[str, KeptFile]:
    """The files in a folder (``""``: all of them), or the one file of that path."""
    if not folder:
        return dict(files)
    return {p: f for p, f in files.items() if p == folder or p.startswith(f"{folder}/")}


def require_tags(tags: Mapping[str, str]) -> None:
    """Return if these may be tags. Raises InputInvalid."""
    _require_map(tags, "tags", TAG_CHARACTERS_MAX)


def _require_map(items: Mapping[str, str], what: str, most: int) -> None:
    _require_count(len(items) - 1, KEYS_MAX, what, "")
    for key, value in items.items():
        _require_text(key, what, KEY_CHARACTERS_MAX)
        _require_length(value, what, most)


def _require_text(text: str, what: str, most: int) -> None:
    _require_length(text, what, most)
    if not _KEY.fullmatch(text):
        raise InputInvalid(
            f"A name in '{what}' is empty or has control characters.",
            fields=(FieldError(pointer=f"/{what}", detail="empty, or control characters"),),
        )


def _require_length(text: str, what: str, most: int) -> None:
    if len(text) > most:
        raise InputInvalid(
            f"Text in '{what}' has {len(text)} characters; {most} are kept.",
            fields=(FieldError(pointer=f"/{what}", detail=f"longer than {most}"),),
        )


def _require_count(count: int, most: int, what: str, setting: str) -> None:
    if count >= most:
        hint = f"delete some, or have IT raise tracking.{setting}" if setting else "delete some"
        raise QuotaExceeded(f"There may be {most} {what}, and there are.", hint=hint)


def _shown(text: str) -> str:
    """A caller's own text, escaped and short."""
    return text[:80].encode("unicode_escape").decode("ascii")
