"""A Python peer under uvicorn, as its README mounts it: `python asgi_peer.py NAME PORT DIRECTORY`.

Run by the peers' own environment, which has none of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn  # type: ignore[import-not-found]
from fastapi import FastAPI  # type: ignore[import-not-found]


def application(name: str, directory: str) -> Any:
    app = FastAPI()
    if name == "tuspyserver":
        from tuspyserver import create_tus_router  # type: ignore[import-not-found] # noqa: PLC0415

        app.include_router(create_tus_router(files_dir=directory))
    else:
        from resumable_upload import SQLiteStorage, TusServer  # type: ignore[import-not-found] # noqa: PLC0415
        from resumable_upload.asgi import TusASGIApp  # type: ignore[import-not-found] # noqa: PLC0415

        # beside the files, which are removed after each round
        database = str(Path(directory).parent / "uploads.db")
        storage = SQLiteStorage(db_path=database, upload_dir=directory)
        app.mount("/files", TusASGIApp(TusServer(storage=storage, base_path="/files")))
    return app


if __name__ == "__main__":
    _, peer, port, files = sys.argv
    uvicorn.run(application(peer, files), host="127.0.0.1", port=int(port), loop="uvloop", log_level="warning")
