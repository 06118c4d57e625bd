"""All sides, by the name they have in the table; in each case the others are held against the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.bench.limits import Limit, LimitC, ReceiveOnly, WriteOnly
from tests.bench.peers import PEERS
from tests.bench.sides import Attachd, AttachdS3, AttachdS3Crowded, AttachdTwo, Bare, Naive, Side

SIDES: Final[Mapping[str, type[Side]]] = {
    "attachd": Attachd,
    "attachd-2": AttachdTwo,
    "attachd-s3": AttachdS3,
    "attachd-s3-crowded": AttachdS3Crowded,
    "receive": ReceiveOnly,
    "write": WriteOnly,
    "limit-c": LimitC,
    "limit": Limit,
    "naive": Naive,
    "bare-boto3": Bare,
    **PEERS,
}
