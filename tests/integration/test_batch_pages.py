"""Lists of files and batches: pages that are full, and records that cannot be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from api.batches.batch_desk import BatchDesk
from api.batches.disk import FileDisk
from api.batches.file_desk import FileDesk
from api.batches.runner import BatchRunner
from tests.integration.test_batch_work import BATCH_ID, _begun, _line, _spec
from tests.valkey import Valkey
from worker.wire import batch_store, keys
from worker.wire.batch_store import BatchState


def test_files_of_another_purpose_do_not_empty_a_page(valkey: Valkey, tmp_path: Path) -> None:
    async def main() -> None:
        async with valkey.connect_async() as client:
            desk = FileDesk(client, FileDisk(tmp_path))
            kept = [
                (await desk.keep(iter([b"x"]), "one", "f", purpose, 3600)).file_id
                for purpose in ("batch", "batch", "batch", "batch_output", "batch_output")
            ]
            first = await desk.list("one", 2, None, "batch")
            assert [file.id for file in first.data] == [kept[2], kept[1]]
            assert first.has_more
            rest = await desk.list("one", 2, first.last_id, "batch")
            assert [file.id for file in rest.data] == [kept[0]]
            assert not rest.has_more
            oldest = await desk.list("one", 2, kept[0], None, is_newest_first=False)
            assert [file.id for file in oldest.data] == kept[1:3]
            everything = await desk.list("one", 5, None, None)
            assert (len(everything.data), everything.has_more) == (5, False)

    asyncio.run(main())


def test_a_batch_that_cannot_be_read_does_not_stop_the_others(
    valkey: Valkey, tmp_path: Path
) -> None:
    async def main() -> None:
        async with valkey.connect_async() as client:
            await batch_store.add_batch(client, "batch_odd", _spec("file-0"), BatchState())
            await client.hset(keys.batch("batch_odd"), "spec", b"{}")
            run, files = await _begun(client, tmp_path, [_line(1, temperature=9)], limit=2)
            await run.hold.give_back()
            await client.hset(keys.batch("batch_odd"), "lease", 0)
            runner = BatchRunner(run._desks)
            await runner._take()
            await asyncio.gather(*runner._runs)
            body = await BatchDesk(client, files).look(BATCH_ID, "one")
            assert body.status == "completed"

    asyncio.run(main())
