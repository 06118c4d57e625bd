"""The tables, as SQLAlchemy Core sees them. An empty database gets them as they are here, an older one
by `migrations/`; see `migrate`.

Where things are and why:

- `uploads` is one row per upload, lease included, so that a PATCH costs one statement each to
  take the lease, to advance and to let go. Its indexes are partial by state: each query of the
  janitor walks only rows it could want. Their conditions are literals, because SQLite uses a
  partial index only when it can read the same condition in the query.
- `uploads_receiving` carries offset and length: an advance moves its entry anyway (the expiry
  slides), and with them `promised_bytes` never touches the table. The column of the condition is
  in it too, else SQLite looks into the table for that. `files_live` is alike, for the gauges.
- There are no foreign keys: rows that belong to an upload go in the same transaction as their
  reason to be (`writes`), and a look-up per insert would buy nothing.
- Instants are doubles (seconds since the epoch), ids are text, what is only ever read whole
  (`terms`, `data`, the uploads of a link) is JSON text, and digests of a manifest are packed end
  to end in one value per algorithm.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    event,
    false,
    text,
)

from service.model import Verdict

#: The revision of `migrations/` that this code reads and writes.
REVISION: Final = "0006"

metadata = MetaData()

#: Alembic's own table, as it makes it itself; apart from `metadata`, which is what the migrations make.
revision = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def _where(condition: str, *, postgresql: str | None = None) -> dict[str, Any]:
    """A partial index, and how another database spells the condition."""
    return {"info": {"sqlite": condition, "postgresql": postgresql or condition}}


@event.listens_for(metadata, "before_create")
def _tell_conditions(target: MetaData, connection: Connection, **_: Any) -> None:
    """A partial index is one in the dialect that makes it: to name that where it is declared would load it."""
    dialect = connection.dialect.name
    for table in target.tables.values():
        for index in table.indexes:
            if dialect in index.info:
                index.dialect_kwargs[f"{dialect}_where"] = text(index.info[dialect])


#: One row, made with the table: which database this is.
identity = Table("identity", metadata, Column("id", Text, primary_key=True))

#: Who does what one process does for all, and until when the others leave it to that one.
duties = Table(
    "duties",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("until", Double, nullable=False),
)

#: One row: the newest run of the service, the boot of the machine it was on, and whether bytes were
#: taken that may not have reached the disk.
run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True),
    Column("boot", Text, nullable=False),
    Column("unsynced", Boolean, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("protocol", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("jti", Text, nullable=False),
    Column("owner", Text),
    Column("terms", Text, nullable=False),
    Column("file_id", Text, nullable=False),
    Column("block_size", BigInteger, nullable=False),
    Column("strong_hash", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger),
    Column("deferred", Boolean, nullable=False),
    Column("metadata", Text),
    Column("filename", Text),
    Column("media_type", Text),
    Column("concat", Text),
    Column("concat_kind", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("problem", Text),
    Column("problem_detail", Text),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("lease_asked", Integer, nullable=False),
    Column("tail", LargeBinary),
    Column("suspect", Boolean, server_default=false(), nullable=False),
    Column("reserved", BigInteger, server_default="0", nullable=False),
    Index("uploads_owner", "issuer", "owner", "id", **_where("owner IS NOT NULL")),
    Index("uploads_file", "file_id", "created_at"),
    # One file id, one live upload: the rule itself, also where two writers do not wait for each other.
    Index(
        "uploads_file_live",
        "file_id",
        unique=True,
        **_where("state IN ('receiving', 'finishing', 'ready') AND concat_kind <> 'partial'"),
    ),
    Index("uploads_jti", "jti"),
    Index("uploads_receiving", "expires_at", "offset", "length", "state", **_where("state = 'receiving'")),
    Index("uploads_finishing", "updated_at", **_where("state = 'finishing'")),
    Index("uploads_partials", "expires_at", **_where("state = 'ready' AND concat_kind = 'partial'")),
    Index("uploads_ended", "updated_at", **_where("state IN ('ready', 'failed', 'expired', 'terminated')")),
    Index("uploads_leased", "lease_owner", **_where("lease_owner IS NOT NULL")),
    Index("uploads_suspect", "updated_at", **_where("suspect = 1", postgresql="suspect")),
)

final_partials = Table(
    "final_partials",
    metadata,
    Column("final_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("partial_id", Text, nullable=False),
    Index("final_partials_partial", "partial_id"),
)

parts = Table(
    "parts",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("etag", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)

blocks = Table(
    "blocks",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("xxh128", LargeBinary, nullable=False),
    Column("sha256", LargeBinary),
)

links = Table(
    "links",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("jti", Text, primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Column("uploads", Text, nullable=False),
    Column("partials", Integer, nullable=False),
    Column("partial_bytes", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index("links_expires", "expires_at"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("upload_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("block_size", BigInteger, nullable=False),
    Column("root_algorithm", Text, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("block_xxh128", LargeBinary, nullable=False),
    Column("block_sha256", LargeBinary),
    Column("sha256_root", LargeBinary),
    Column("created_at", Double, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("owner", Text),
    Column("sha256", Text),
    Column("media_type", Text),
    Column("sniffed_type", Text),
    Column("filename", Text),
    Column("ref", Text),
    Column("expires_at", Double),
    Column("deleted_at", Double),
    Column("verdict", Text, server_default=Verdict.UNSCANNED.value, nullable=False),
    Column("lives_until", Double),
    Index("files_owner", "issuer", "owner", "id", **_where("owner IS NOT NULL")),
    Index("files_live", "expires_at", "size", "deleted_at", **_where("deleted_at IS NULL")),
    Index("files_deleted", "deleted_at", **_where("deleted_at IS NOT NULL")),
)

events = Table(
    "events",
    metadata,
    # SQLite gives a rising key of its own only to a column whose type is spelled INTEGER.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("data", Text, nullable=False),
    Column("issuer", Text, server_default="", nullable=False),
    Index("events_created", "created_at"),
    # Never a number twice, also after old rows went: a reader's cursor stays true.
    sqlite_autoincrement=True,
)

#: One row for each receiver that the settings ever named: events up to `seq` are on their way to it, or over.
endpoints = Table(
    "endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("configured", Boolean, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("disabled_at", Double),
)

#: What is on its way, or was given up. Of a file's events that wait for an endpoint the first alone has a `due_at`.
deliveries = Table(
    "deliveries",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("file_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Double),
    Column("failed_at", Double),
    Column("result", Text),
    Index("deliveries_seq", "seq"),
    Index("deliveries_due", "endpoint", "due_at", "seq", **_where("due_at IS NOT NULL")),
    Index("deliveries_pending", "endpoint", "file_id", "seq", **_where("failed_at IS NULL")),
)

# What the control API keeps; see `controlling`.

file_refs = Table(
    "file_refs",
    metadata,
    Column("file_id", Text, primary_key=True),
    Column("ref", Text, primary_key=True),
    Index("file_refs_ref", "ref", "file_id"),
)

#: What an owner has, counted in the transactions that change it.
owners = Table(
    "owners",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("files", BigInteger, nullable=False),
    Column("file_bytes", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("issuer", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("done_at", Double),
    Index("jobs_open", "asked_at", **_where("done_at IS NULL")),
    Index("jobs_done", "done_at", **_where("done_at IS NOT NULL")),
)

revocations = Table(
    "revocations",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("issuer", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("issued_before", Double, nullable=False),
    Column("until", Double, nullable=False),
    Index("revocations_until", "until"),
    # Never a number twice: each process reads only what is above the last one it knows.
    sqlite_autoincrement=True,
)

#: Requests with an `Idempotency-Key`, and what was decided for each before it was carried out.
requests = Table(
    "requests",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("plan", Text, nullable=False),
    Index("requests_created", "created_at"),
)
