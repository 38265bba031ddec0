"""What `docker compose up` needs on disk before the first start: folders, passwords, ACL files, keys.

.containers/
  secrets/                mounted file by file, each into the containers that need it; kek.json into the gateway alone
  broker/ custody/        append-only files of the two Redis servers
  files/ models/ audit/   the gateway's and the services' state
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy.docker.acl import GATEWAY, broker_acl, broker_users, custody_acl
from deploy.local.home import KekLost, write_once, write_private

FOLDER = ".containers"
CONTAINER_ID = 10001  # user and group of the containers, where whoever prepares may give files away

_FOLDERS = ("secrets", "broker", "custody", "files", "models", "audit")
_ENVIRONMENT = ".env"


def prepare(project: Path, methods: Sequence[str], training: Sequence[str]) -> Path:
    """Make what is not there yet under `project`, the folder of docker-compose.yml. Returns the folder made.

    Run again after a method was added: passwords and keys stay, ACL files are written anew. As root, everything is
    given to the containers' user; as anybody else, the containers are told (in `.env`) to run as that user.

    Raises `KekLost` rather than put a new key-encryption key beside secrets that it cannot open.
    """
    home = project / FOLDER
    for folder in (home, *(home / name for name in _FOLDERS)):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
    kept = home / "secrets"
    if not (kept / "kek.json").exists() and (home / "custody" / "appendonlydir").exists():
        raise KekLost(
            f"{kept / 'kek.json'} is missing, and {home / 'custody'} holds secrets that only it can open. Put it back "
            "from a backup; or, if nothing has to be recovered any more, remove that folder."
        )
    write_once(kept / "kek.json", json.dumps({"1": base64.b64encode(secrets.token_bytes(32)).decode()}) + "\n")
    for name in ("internal_secret", "api_key_pepper"):
        write_once(kept / name, secrets.token_urlsafe(32))
    users = broker_users(methods, training)
    passwords = {user: _password(kept / f"broker_url.{user}", user, "broker-redis") for user in (GATEWAY, *users)}
    write_private(kept / "broker.acl", broker_acl(users, passwords), 0o400)
    custodian = {GATEWAY: _password(kept / "custody_url", GATEWAY, "custody-redis")}
    write_private(kept / "custody.acl", custody_acl(custodian), 0o400)
    variables = {"COMPOSE_PROFILES": "cpu"}
    if os.geteuid() == 0:
        _give_away(home)
    else:
        variables["CONTAINER_USER"] = f"{os.geteuid()}:{os.getegid()}"
    _choose(project / _ENVIRONMENT, variables)
    return home


def _password(path: Path, user: str, host: str) -> str:
    """The password in the address that the file holds; made with the file."""
    write_once(path, f"redis://{user}:{secrets.token_hex(32)}@{host}:6379/0")
    password = urlsplit(path.read_text().strip()).password
    if not password:
        raise ValueError(f"{path} holds no redis://user:password@host:port/0; remove it, and a new one is made")
    return password


def _give_away(home: Path) -> None:
    for path in (home, *home.rglob("*")):
        os.chown(path, CONTAINER_ID, CONTAINER_ID, follow_symlinks=False)


def _choose(path: Path, variables: Mapping[str, str]) -> None:
    """Add the variables that the file does not set yet. It stays its owner's, or becomes the folder's owner's."""
    text = path.read_text() if path.exists() else ""
    present = {line.partition("=")[0].strip() for line in text.splitlines()}
    missing = [f"{name}={value}\n" for name, value in variables.items() if name not in present]
    if not missing:
        return
    with path.open("a") as file:
        file.write(("\n" if text and not text.endswith("\n") else "") + "".join(missing))
    owner = path.parent.stat()
    if os.geteuid() == 0 and not text:
        os.chown(path, owner.st_uid, owner.st_gid)
