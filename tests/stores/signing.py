"""Signing a request again that a proxy has changed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from tests.stores.servers import Store
    from tests.stores.wire import Head

_SIGNED: Final = re.compile(r"SignedHeaders=([^,\s]+)")


def sign(store: Store, head: Head) -> None:
    """The request's signature holds for its fields as they are now; one without a signature stays without.

    The digest of the body is taken from its field. A presigned URL signs no field but Host, and stays good.
    """
    found = _SIGNED.search(head.get("authorization") or "")
    if not found:
        return
    method, target, _ = head.first.split(" ", 2)
    names = set(found[1].split(";"))
    request: Any = AWSRequest(
        method=method,
        url=f"{store.endpoint}{target}",
        headers={key: value for key, value in head.fields if key.lower() in names},
    )
    _Signer(store, head.get("x-amz-content-sha256") or "UNSIGNED-PAYLOAD").add_auth(request)
    for key, value in request.headers.items():
        head.put(key, value)


class _Signer(S3SigV4Auth):
    """Takes the body's digest as it is given."""

    def __init__(self, store: Store, digest: str) -> None:
        super().__init__(Credentials(store.access_key, store.secret_key), "s3", store.region)
        self._digest = digest

    def payload(self, request: Any) -> str:
        return self._digest
