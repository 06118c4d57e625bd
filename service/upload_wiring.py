"""What becomes of uploads in one process, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.at_once import AtOnce
from service.carrying import Carried
from service.changes import Changes
from service.claiming import Claiming
from service.clock import Clock
from service.events import EventMaker
from service.files import Files
from service.finishing import Finisher
from service.hooks import Hooks
from service.leases import Leases
from service.links import VerifiedUpload
from service.lookup import Lookup
from service.metadata.sql import SqlMetadata
from service.metrics import Metrics
from service.onward import Onward
from service.protocol.intents import Policy
from service.receiving import Receiver
from service.rechecking import Rechecker
from service.room import Room
from service.scanning import Scanning
from service.settling import Settling
from service.storage.base import Salvage, Storage
from service.tasks import Tasks
from service.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Ground:
    """What all of it stands on."""

    metadata: SqlMetadata
    storage: Storage
    policy: Policy
    clock: Clock
    metrics: Metrics
    events: EventMaker
    changes: Changes
    leases: Leases
    tasks: Tasks
    #: refuses a link that was revoked since it was verified
    unrevoked: Callable[[VerifiedUpload], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class UploadSide:
    """Its use-cases. `rechecker` is None where storage loses nothing in a crash of the machine."""

    uploads: Uploads
    files: Files
    settling: Settling
    rechecker: Rechecker | None


def make_upload_side(ground: Ground, hooks: Hooks, scanning: Scanning | None, salvage: Salvage | None) -> UploadSide:
    """The use-cases on their ground.

    Args:
        scanning: None where files are not scanned.
        salvage: what may have to be done to what storage held before a crash; None: nothing.
    """
    metadata, storage, policy, clock = ground.metadata, ground.storage, ground.policy, ground.clock
    metrics, events, changed = ground.metrics, ground.events, ground.changes.changed
    lookup, room = Lookup(metadata, clock), Room(metadata, storage, policy, clock)
    files, carried = Files(metadata, storage, clock, events, changed), Carried()
    finisher = Finisher(metadata, storage, policy, clock, metrics, events, changed, hooks, scanning)
    settling = Settling(
        metadata=metadata,
        storage=storage,
        leases=ground.leases,
        finisher=finisher,
        files=files,
        clock=clock,
        events=events,
        tasks=ground.tasks,
        changed=changed,
    )
    rechecker = None
    if salvage is not None:
        rechecker = Rechecker(metadata, storage, salvage, ground.leases, clock, metrics, settling.checked)
    at_once = AtOnce(
        metadata=metadata,
        storage=storage,
        room=room,
        policy=policy,
        clock=clock,
        metrics=metrics,
        events=events,
        tasks=ground.tasks,
        changed=changed,
        unrevoked=ground.unrevoked,
    )
    claiming = Claiming(
        metadata=metadata,
        room=room,
        lookup=lookup,
        settling=settling,
        policy=policy,
        clock=clock,
        events=events,
        hooks=hooks,
        unrevoked=ground.unrevoked,
    )
    uploads = Uploads(
        metadata=metadata,
        leases=ground.leases,
        lookup=lookup,
        # where somebody is asked before a file may be, there is more than one step
        at_once=None if scanning is not None or hooks.asks else at_once,
        claiming=claiming,
        onward=Onward(metadata, storage, policy, clock, metrics, ground.tasks, changed, carried),
        receiver=Receiver(metadata, storage, policy, clock, metrics, changed, carried),
        finisher=finisher,
        settling=settling,
        policy=policy,
        clock=clock,
        metrics=metrics,
        changes=ground.changes,
        tasks=ground.tasks,
        scans=scanning is not None,
        hurry=rechecker.hurry if rechecker is not None else None,
    )
    return UploadSide(uploads, files, settling, rechecker)
