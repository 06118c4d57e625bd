"""Every setting: its type, default, limits and help, in one model (contract, section 13).

A setting `max_size` is `ATTACHD_MAX_SIZE` in the environment and `max_size` in the TOML file; the
environment wins. Both are handed in: nothing here reads a file or the environment. Sizes are held
in bytes, durations in seconds, rates in bytes per second. What `describe` shows is text that the
setting would take back.

Lesson K4: a value that cannot work, two that contradict each other, and a name that does not exist
all stop the start, each named, with what would be right.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service import endpoints as outward
from service import setting_types as kinds
from service.endpoints import Endpoint, HookSet
from service.model import Quota
from service.setting_types import DAY, GIB, HOUR, KIB, MIB, MINUTE, TIB, Address, TcpAddress, UnixAddress, hide_secrets
from service.storage import parts

__all__ = ["Address", "Described", "Settings", "SettingsError", "TcpAddress", "UnixAddress", "describe", "load"]

PREFIX: Final = "ATTACHD_"
#: names with the prefix that are no settings: where the file is, and what the tests read
RESERVED: Final = frozenset({"ATTACHD_CONFIG", "ATTACHD_TEST_REQUIRE", "ATTACHD_TEST_VERSITYGW"})

MOST_WORKERS: Final = 512
#: JavaScript clients count exactly up to here
_MOST_BYTES: Final = 2**53
_LEAST_BUFFERS: Final = 2 * MIB

#: the largest object that S3 stores promise to take
_S3_MOST_SIZE: Final = 5 * TIB
#: what is read back into memory when an upload goes on in the middle of a block
_S3_MOST_BLOCK: Final = 64 * MIB
#: of the buffers a quarter is for request bodies; four parts of one upload fit in the rest, and others' too (lesson D2)
_S3_BUFFERED_PARTS: Final = 8

#: settings that are tables with secrets in them
_TABLES: Final = frozenset({"endpoints", "hooks"})

#: Kubernetes gives every pod variables about a Service called `attachd`, `attachd-ops`, ...
_SERVICE_LINK: Final = re.compile(
    r"ATTACHD_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_SERVICE_LINK_PORT: Final = re.compile(r"(?:tcp|udp|sctp)://")


class SettingsError(Exception):
    """The settings cannot work; `problems` has one line for each wrong one."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Settings(BaseModel):
    """The effective settings of one process."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    listen: Annotated[Address, kinds.address()] = Field(
        default=TcpAddress("127.0.0.1", 8080), description="Public listener: HOST:PORT, [IPV6]:PORT or unix:/PATH."
    )
    ops_listen: Annotated[Address, kinds.address()] = Field(
        default=TcpAddress("127.0.0.1", 9080),
        description="Operations listener (/metrics, /livez, /readyz); never reachable from outside.",
    )
    public_url: Annotated[str | None, kinds.base_url()] = Field(
        default=None,
        description="What links and Location begin with; may have a path prefix. Unset: from the request's Host.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], kinds.networks()] = Field(
        default=(), description="Networks, comma separated, whose X-Forwarded-* fields count."
    )
    workers: Annotated[int | None, kinds.workers(MOST_WORKERS)] = Field(
        default=None, description="Processes that share the public address; 0: one per core."
    )
    data: Annotated[Path, kinds.path()] = Field(
        default=Path("var"), description="Directory of the local default: files, SQLite, keys."
    )
    keys: Annotated[Path | None, kinds.optional_path()] = Field(
        default=None, description="The key set, a JWK Set file. Unset: keys.json in the data directory."
    )
    storage: Literal["filesystem", "s3"] = Field(
        default="filesystem", description="Where the bytes are kept: in the data directory, or in a bucket."
    )
    s3_bucket: Annotated[str | None, kinds.bucket()] = Field(
        default=None, description="The bucket, with storage s3. Credentials come from the usual AWS chain."
    )
    s3_endpoint: Annotated[str | None, kinds.endpoint()] = Field(
        default=None, description="URL of an S3-compatible store. Unset: AWS's own for the region."
    )
    s3_public_endpoint: Annotated[str | None, kinds.endpoint()] = Field(
        default=None,
        description="What presigned URLs begin with, where clients reach the store elsewhere. Unset: s3_endpoint.",
    )
    s3_region: Annotated[str | None, kinds.region()] = Field(
        default=None, description="The bucket's region. Unset: as the AWS configuration says, else us-east-1."
    )
    s3_prefix: Annotated[str, kinds.key_prefix()] = Field(
        default="", description="What the keys of all objects begin with, where the bucket is shared."
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="Whether the bucket is in the path of a URL or in its host name."
    )
    s3_part_size: Annotated[int, kinds.size(parts.LEAST_PART_BYTES, parts.MOST_PART_BYTES)] = Field(
        default=8 * MIB,
        description="Least bytes of a part; made larger to whole blocks, and so that 10,000 are enough for max_size.",
    )
    database: Annotated[str | None, kinds.database_url()] = Field(
        default=None, description="Where the state is kept, sqlite:///PATH. Unset: attachd.db in the data directory."
    )
    max_size: Annotated[int, kinds.size(1, _MOST_BYTES)] = Field(
        default=4 * GIB, description="Most bytes of one upload (Tus-Max-Size); a link may allow less, never more."
    )
    block_size: Annotated[int, kinds.size(64 * KIB, GIB)] = Field(
        default=8 * MIB, description="Bytes of a hashing block; new uploads only."
    )
    strong_hash: Literal["none", "sha256"] = Field(
        default="none", description="A second digest for each block, next to XXH3-128."
    )
    durability: Literal["complete", "always", "none"] = Field(
        default="complete",
        description="What survives a crash of the machine: complete files, always every acknowledged offset, or none.",
    )
    upload_idle: Annotated[float, kinds.duration(1, 365 * DAY)] = Field(
        default=DAY, description="An upload without a new byte for this long expires."
    )
    upload_life: Annotated[float, kinds.duration(1, 365 * DAY)] = Field(
        default=7 * DAY, description="Longest life of an unfinished upload, however busy."
    )
    tombstone: Annotated[float, kinds.duration(0, 365 * DAY)] = Field(
        default=7 * DAY, description="How long something gone answers 410 rather than 404."
    )
    body_idle: Annotated[float, kinds.duration(1, HOUR)] = Field(
        default=60.0, description="A request body silent for this long ends; its bytes stay."
    )
    body_min_rate: Annotated[int, kinds.rate(0, GIB)] = Field(
        default=KIB, description="A body slower than this over 60s, after the first 30s, ends; 0 turns it off."
    )
    buffer_limit: Annotated[int, kinds.size(_LEAST_BUFFERS, _MOST_BYTES)] = Field(
        default=256 * MIB, description="Most bytes of memory for request bodies; above it new transfers get 503."
    )
    max_transfers: Annotated[int, kinds.count(1, 1_000_000)] = Field(
        default=1000, description="Most uploads and downloads running at once; above it new ones get 503."
    )
    cors_origins: Annotated[tuple[str, ...], kinds.origins()] = Field(
        default=("*",), description="Origins whose pages may use the service, comma separated and exact, or *."
    )
    download_mode: Literal["proxy", "redirect", "accel"] = Field(
        default="proxy",
        description="proxy: attachd sends the bytes; redirect: the S3 store does, by presigned URLs; "
        "accel: nginx does, told by X-Accel-Redirect.",
    )
    accel_prefix: Annotated[str, kinds.path_prefix()] = Field(
        default="/_attachd/", description="The internal nginx location for download_mode accel."
    )
    grace: Annotated[float, kinds.duration(0, DAY)] = Field(
        default=30.0, description="How long downloads may run on after SIGTERM."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: text on a terminal, else JSON lines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    otlp_endpoint: Annotated[str | None, kinds.base_url()] = Field(
        default=None,
        description="Where traces go, by OTLP/HTTP: http://127.0.0.1:4318, say; with attachd[otel]. Unset: none.",
    )
    clamd: Annotated[Address | None, kinds.server_address()] = Field(
        default=None, description="clamd, which looks through each file: HOST:PORT or unix:/PATH. Unset: none does."
    )
    clamd_max_size: Annotated[int, kinds.size(KIB, 2 * GIB - 1)] = Field(
        default=25 * MIB, description="Most bytes of a file to scan; at most clamd's StreamMaxLength and MaxFileSize."
    )
    scan_skipped: Literal["allow", "refuse"] = Field(
        default="allow", description="Whether a file larger than clamd_max_size is taken, unscanned."
    )
    scan_failure: Literal["closed", "open"] = Field(
        default="closed",
        description="closed: a file that cannot be scanned now waits for clamd; open: it is taken, unscanned.",
    )
    max_upload_link_life: Annotated[float, kinds.duration(1, 3650 * DAY)] = Field(
        default=DAY, description="Longest life (exp - iat) of an upload link that is accepted."
    )
    max_download_link_life: Annotated[float, kinds.duration(1, 3650 * DAY)] = Field(
        default=7 * DAY, description="Longest life (exp - iat) of a download link that is accepted."
    )
    max_service_token_life: Annotated[float, kinds.duration(1, 3650 * DAY)] = Field(
        default=90 * DAY, description="Longest life (exp - iat) of a service token that is accepted."
    )
    quota_bytes: Annotated[int | None, kinds.optional(kinds.size(0, _MOST_BYTES))] = Field(
        default=None, description="Most bytes of one owner's files and unfinished uploads together. Unset: no limit."
    )
    quota_pending: Annotated[int | None, kinds.optional(kinds.count(1, 1_000_000))] = Field(
        default=None, description="Most unfinished uploads of one owner. Unset: no limit."
    )
    sweep_interval: Annotated[float, kinds.duration(1, DAY)] = Field(
        default=60.0, description="Time between two sweeps for what expired."
    )
    endpoints: Annotated[tuple[Endpoint, ...], outward.endpoints()] = Field(
        default=(), description="Receivers of events, tables [[endpoints]] of the settings file."
    )
    hooks: Annotated[HookSet, outward.hooks()] = Field(
        default=HookSet(), description="Who may refuse uploads, tables [hooks.…] of the settings file."
    )
    webhook_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], kinds.networks()] = Field(
        default=(), description="Networks, comma separated, that endpoints and hooks may be in although not public."
    )
    event_retention: Annotated[float, kinds.duration(3 * DAY, 3650 * DAY)] = Field(
        default=7 * DAY, description="How long an event is kept; longer while it still waits for a receiver."
    )

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        if self.upload_idle > self.upload_life:
            raise _contradiction("upload_idle", "at most upload_life, or raise that")
        if kinds.overlap(self.listen, self.ops_listen):
            raise _contradiction("ops_listen", "another address or port than listen")
        if self.clamd is None:
            for name in ("clamd_max_size", "scan_skipped", "scan_failure"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise _contradiction(name, "left out, or set clamd: it means nothing without")
        return self

    @model_validator(mode="after")
    def _storage_contradictions(self) -> Self:
        if self.storage == "s3":
            self._check_s3()
            return self
        for name, field in type(self).model_fields.items():
            if name.startswith("s3_") and getattr(self, name) != field.default:
                raise _contradiction(name, "left out, or set storage to s3: it means nothing without")
        if self.download_mode == "redirect":
            raise _contradiction("download_mode", "proxy or accel: redirect needs storage s3")
        return self

    @model_validator(mode="after")
    def _webhook_contradictions(self) -> Self:
        hooks = {"hook pre_create": self.hooks.pre_create, "hook pre_finish": self.hooks.pre_finish}
        targets = {f"endpoint {each.id}": each for each in self.endpoints} | hooks
        for name, target in targets.items():
            if target and target.address and not outward.allowed(target.address, self.webhook_networks):
                right = f"networks of which one has {target.address}, where {name} is: it is not public"
                raise _contradiction("webhook_networks", right)
        return self

    def _check_s3(self) -> None:
        if self.s3_bucket is None:
            raise _contradiction("s3_bucket", "the name of a bucket, with storage s3")
        if self.download_mode == "accel":
            raise _contradiction("download_mode", "proxy or redirect with storage s3: nginx has no files to send")
        if self.max_size > _S3_MOST_SIZE:
            raise _contradiction("max_size", "at most 5TiB with storage s3, the most an object can have")
        if self.block_size > _S3_MOST_BLOCK:
            raise _contradiction("block_size", "at most 64MiB with storage s3: blocks are read back into memory")
        part = self.s3_planned_part
        if part > parts.MOST_PART_BYTES:
            raise _contradiction("s3_part_size", "at most 5GiB when made larger to whole blocks of block_size")
        if self.buffer_limit < _S3_BUFFERED_PARTS * part:
            least, each = kinds.written_size(_S3_BUFFERED_PARTS * part), kinds.written_size(part)
            raise _contradiction(
                "buffer_limit",
                f"at least {least} with storage s3, {_S3_BUFFERED_PARTS} parts of {each}; "
                "or lower s3_part_size, block_size or max_size",
            )

    @property
    def s3_planned_part(self) -> int:
        """Bytes of a part of the largest upload that is allowed."""
        return parts.part_size(self.max_size, wanted=self.s3_part_size, align=self.block_size)

    @property
    def base_url(self) -> str:
        """What links begin with: the public URL, else the listen address. No trailing slash."""
        return self.public_url or self.listen.url

    @property
    def longest_token_life(self) -> float:
        """Seconds that no accepted token outlives, whatever it is for, the leeway of clocks included."""
        return max(self.max_upload_link_life, self.max_download_link_life, self.max_service_token_life) + 2 * MINUTE

    @property
    def quota(self) -> Quota:
        """What each owner may have."""
        limits = {"most_bytes": self.quota_bytes, "most_pending": self.quota_pending}
        return Quota(**{name: limit for name, limit in limits.items() if limit is not None})

    @property
    def database_url(self) -> str:
        """The database in use, in SQLAlchemy's spelling."""
        return self.database or f"sqlite:///{self.data / 'attachd.db'}"

    @property
    def keys_path(self) -> Path:
        """The key set file in use."""
        return self.keys or self.data / "keys.json"


class Described(NamedTuple):
    """A setting as people see it: every value is text, secrets hidden."""

    name: str
    value: str
    default: str
    description: str


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + field.upper()


def load(env: Mapping[str, str], toml_text: str | None = None, config_name: str = "settings file") -> Settings:
    """The settings that the environment and the text of a TOML file make together.

    Args:
        env: the whole environment; only `ATTACHD_…` is looked at.
        toml_text: content of the settings file, None where there is none.
        config_name: how messages call the file.

    Raises:
        SettingsError: permanent; names every setting that is wrong or unknown.
    """
    problems: list[str] = []
    values, from_file = _from_file(toml_text, config_name, problems)
    for name, value in _from_environment(env, problems).items():
        values[name] = value
        from_file.discard(name)
    settings = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            problems.append(_line(fault, values, config_name if _field(fault) in from_file else None))
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def describe(settings: Settings) -> list[Described]:
    """Every setting with its effective value and its default, in the order of the model."""
    values, defaults = _texts(settings), _texts(Settings())
    values["keys"], values["database"] = str(settings.keys_path), settings.database_url
    return [
        Described(env_name(name), hide_secrets(values[name]), defaults[name], field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _texts(settings: Settings) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in settings.model_dump(mode="json").items()}


def _from_environment(env: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable in sorted(name for name in env if name.startswith(PREFIX) and name not in RESERVED):
        field = variable.removeprefix(PREFIX).lower()
        if field in Settings.model_fields and variable == env_name(field):
            values[field] = env[variable].strip()
        elif not _service_link(variable, env[variable]):
            problems.append(_unknown(variable, [env_name(name) for name in Settings.model_fields]))
    return values


def _from_file(text: str | None, config_name: str, problems: list[str]) -> tuple[dict[str, Any], set[str]]:
    if text is None:
        return {}, set()
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{config_name}: not valid TOML: {error}")
        return {}, set()
    for name in table.keys() - Settings.model_fields.keys():
        problems.append(f"{config_name}: {_unknown(name, list(Settings.model_fields))}")
    values = {name: value for name, value in table.items() if name in Settings.model_fields}
    return values, set(values)


def _service_link(variable: str, value: str) -> bool:
    if variable.endswith("_PORT"):
        return _SERVICE_LINK_PORT.match(value) is not None or _SERVICE_LINK.fullmatch(variable) is not None
    return _SERVICE_LINK.fullmatch(variable) is not None


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name.upper() if known[0].isupper() else name, known, n=1, cutoff=0.0)[0]
    return f"{name}: no such setting; the nearest is {near}"


def _contradiction(field: str, right: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{right}", {"field": field, "right": right})


def _field(fault: Mapping[str, Any]) -> str:
    return str(fault["ctx"]["field"] if fault["type"] == "contradiction" else fault["loc"][0])


def _line(fault: Mapping[str, Any], values: Mapping[str, Any], config_name: str | None) -> str:
    field = _field(fault)
    cause = fault.get("ctx", {}).get("error")
    right = str(cause) if isinstance(cause, ValueError) else str(fault["msg"]).removeprefix("Input should be ")
    value = values.get(field, _texts(Settings())[field])
    if isinstance(value, list | dict) and field in _TABLES:
        # what is wrong in there may be a secret
        value = "these tables"
    where = f" (in {config_name})" if config_name else ""
    return f"{env_name(field)}{where}: {hide_secrets(str(value)) or 'not set'}: must be {right}"
