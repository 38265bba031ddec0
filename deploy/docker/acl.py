"""Who may do what in the two Redis servers, as their ACL files say it: one user a method, and one each for the rest.

A method's API and worker share a user. It reaches the method's job records, queues and unacknowledged messages, and
nothing of another method; no user may administer a server, list its keys, or load a script library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from gateway.custody.database import ACL_RULES
from shared.jobs import prefix, queues

GATEWAY = "gateway"
TRAINER = "trainer"
SHARED_WORKER = "worker"

_COMMANDS = (
    "-@all +@hash +@list +@set +@sortedset +@string +@stream +@pubsub +@transaction +evalsha +script|load +del +unlink "
    "+exists +type +expire +pexpire +ttl +pttl +time +ping +hello +select +client|setinfo +client|setname -@dangerous "
    "-pubsub"
)
_EVERYBODY = (
    "user default reset",
    "user health on nopass resetkeys resetchannels -@all +ping",  # the container's health check
)


def broker_users(methods: Sequence[str], training: Sequence[str]) -> dict[str, Sequence[str]]:
    """The methods that each user of the broker may work for, the gateway apart."""
    users: dict[str, Sequence[str]] = {method: [method] for method in methods}
    if taken := users.keys() & {GATEWAY, TRAINER, SHARED_WORKER, "default", "health"}:
        raise ValueError(f"no method may be named {', '.join(sorted(taken))}: these are users of the broker")
    return users | ({TRAINER: training} if training else {}) | {SHARED_WORKER: methods}


def broker_acl(users: Mapping[str, Sequence[str]], passwords: Mapping[str, str]) -> str:
    """The broker's ACL file. `passwords` has one for every user and for the gateway."""
    methods = sorted({method for served in users.values() for method in served})
    lines = [_user(GATEWAY, passwords, [*_queues(methods), "~tf:*", "&tf:*"], f"{_COMMANDS} +info")]
    for user, served in users.items():
        lines.append(_user(user, passwords, _reach_of(served), _COMMANDS))
    return "\n".join([*_EVERYBODY, *lines]) + "\n"


def custody_acl(passwords: Mapping[str, str]) -> str:
    """Custody's ACL file: nobody but the gateway."""
    return "\n".join([*_EVERYBODY, _user(GATEWAY, passwords, [], ACL_RULES)]) + "\n"


def _queues(methods: Sequence[str]) -> list[str]:
    return [f"~{queue}" for method in methods for queue in queues(method).values()]


def _reach_of(methods: Sequence[str]) -> list[str]:
    return [
        *_queues(methods),
        *(f"~_kombu.{table}.{queue[1:]}" for queue in _queues(methods) for table in ("binding", "binding_permanent")),
        *(f"{kind}{prefix(method)}*" for method in methods for kind in "~&"),
        "~tf:limits:*",  # what principals have used, which every method counts
    ]


def _user(name: str, passwords: Mapping[str, str], reach: Sequence[str], commands: str) -> str:
    digest = hashlib.sha256(passwords[name].encode()).hexdigest()
    return " ".join([f"user {name} on #{digest} resetkeys resetchannels", *reach, commands])
