"""What a watcher's trigger has announced, kept where it survives a restart of the triggerer."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    from airflow_provider_stem.streams.announcements import AnnouncementsRecord


class WatcherState:
    """
    The state of one trigger: in the state store of the asset, else in an Airflow variable.

    Only Airflow 3.3 has the store, and it raises ``ValueError`` if watchers with equal arguments make one trigger for
    several assets. Such a trigger can lose its other assets later, so both places are read, and the last save counts.

    :param key: name of the variable, and key in the store.
    :param store: state store of the trigger's asset; ``None`` before Airflow 3.3.
    """

    def __init__(self, key: str, store: AssetStateStoreAccessors | None) -> None:
        self.key = key
        self._store = store

    async def load(self) -> AnnouncementsRecord | None:
        """
        Return the state that was saved last; ``None`` if there is none.

        :raises Exception: Airflow cannot read it, or it is not JSON.
        """
        from airflow.sdk import Variable

        saved: list[Any] = []
        text = await sync_to_async(Variable.get)(self.key, default=None)
        if text is not None:
            saved.append(json.loads(text))
        if self._store is not None:
            with suppress(ValueError):
                saved.append(await self._store.aget(self.key))
        saved = [one for one in saved if one is not None]
        return cast("AnnouncementsRecord", max(saved, key=lambda one: one["saved_at"])) if saved else None

    async def save(self, record: AnnouncementsRecord) -> None:
        """
        Save the state.

        :raises Exception: Airflow cannot write it.
        """
        from airflow.sdk import Variable

        value: dict[str, Any] = {**record, "saved_at": datetime.now(UTC).isoformat()}
        if self._store is not None:
            try:
                await self._store.aset(self.key, value)
            except ValueError:
                pass
            else:
                return
        description = "Windows that the asset watcher StemWindowsTrigger has announced. Delete it to start again."
        await sync_to_async(Variable.set)(self.key, json.dumps(value), description)
