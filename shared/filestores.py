"""Which file store an installation has."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.files import FileStore
from shared.localfiles import LocalFiles
from shared.settings import InternalSettings

API_PATIENCE_S = 10.0  # a caller waits
WORKER_PATIENCE_S = 60.0  # a computed result waits


def open_store(settings: InternalSettings, patience_s: float) -> FileStore:
    """The store that `TENFOLD_FILES_URL` names, or the folder in `TENFOLD_HOME`. Asks nothing of it yet.

    patience_s  how long an object store that does not answer is asked again

    Raises `RuntimeError` where the package for object stores is missing, or refuses the URL.
    """
    scheme, _, rest = settings.files_url.partition("://")
    if not rest:
        return LocalFiles(settings.files_path)
    if scheme == "file":
        return LocalFiles(Path(unquote(urlsplit(settings.files_url).path)))
    try:
        from obstore.exceptions import BaseError

        from shared.objectfiles import ObjectFiles
    except ImportError as error:
        raise RuntimeError(
            f"TENFOLD_FILES_URL is {scheme}://…, which needs the package obstore: "
            "pip install 'tenfold-server[object-store]'"
        ) from error
    try:
        return ObjectFiles(settings.files_url, patience_s)
    except (BaseError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise RuntimeError(f"TENFOLD_FILES_URL: {scheme}://… cannot be used: {said}") from error
