"""The control API of one process, put together."""

from __future__ import annotations

from service.changes import Changes
from service.clock import Clock, new_event_id
from service.control_files import ControlFiles
from service.erasing import Erasing
from service.events import EventMaker
from service.feed import Feed
from service.files import Files
from service.found import Found
from service.keyfile import KeyFile
from service.metadata.sql import SqlMetadata
from service.minting import Limits, Minting
from service.once import Once
from service.revocations import Revocations
from service.settings import Settings
from service.settling import Settling
from service.storage.base import Storage
from service.web.control import Control


def make_control(
    settings: Settings,
    metadata: SqlMetadata,
    storage: Storage,
    keys: KeyFile,
    clock: Clock,
    changes: Changes,
    files: Files,
    settling: Settling,
    revocations: Revocations,
) -> Control:
    """Its use-cases, on the parts that the service has anyway."""
    found = Found(metadata, clock)
    limits = Limits(settings.max_size, settings.max_upload_link_life, settings.max_download_link_life)
    return Control(
        minting=Minting(keys.keys, found, revocations, limits, clock),
        files=ControlFiles(
            metadata=metadata,
            control=metadata,
            storage=storage,
            found=found,
            files=files,
            settling=settling,
            events=EventMaker(new_event_id),
            clock=clock,
            changed=changes.changed,
        ),
        erasing=Erasing(
            metadata=metadata,
            control=metadata,
            storage=storage,
            files=files,
            settling=settling,
            revocations=revocations,
            clock=clock,
            quota=settings.quota,
        ),
        revocations=revocations,
        feed=Feed(metadata, metadata, clock),
        once=Once(metadata, clock),
        clock=clock,
    )
