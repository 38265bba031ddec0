"""Callers that are slow, half there or gone: nobody else waits for them, and they leave nothing behind."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.stack import Stack

CROWD = 100


@pytest.fixture
def connections(stack: Stack) -> Iterator[Callable[[bytes], socket.socket]]:
    """Connections to the API that have sent so much and stay as they are."""
    with contextlib.ExitStack() as opened:

        def connect(sent: bytes) -> socket.socket:
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=30))
            connection.sendall(sent)
            return connection

        yield connect


def head(stack: Stack, operation: str, length: int, kind: str) -> bytes:
    lines = [f"POST /v1/diagnostic/{operation} HTTP/1.1", "Host: localhost", f"Content-Length: {length}"]
    lines += [f"Content-Type: {kind}", *(f"{name}: {value}" for name, value in stack.signed(operation).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def test_callers_that_stop_in_mid_request_keep_nobody_waiting(
    stack: Stack, connections: Callable[[bytes], socket.socket]
) -> None:
    in_body = head(stack, "noop", 1000, "application/json") + b'{"text": "'
    for number in range(CROWD):
        connections((b"", b"POST /v1/diagn", in_body)[number % 3])
    assert stack.call("noop", {"text": "served"}).json()["result"]["text"] == "served"


def test_a_caller_that_leaves_in_mid_upload_leaves_no_file_and_no_job(
    stack: Stack, connections: Callable[[bytes], socket.socket], picture: Callable[..., bytes]
) -> None:
    files, jobs = stack.files(), stack.redis.zcard("tf:diagnostic:tenant:acme")
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    connection = connections(head(stack, "blur", 10**6, "multipart/form-data; boundary=b") + start + picture())
    connection.close()
    assert stack.call("noop", {}).status_code == 200  # the API has looked at its connections since
    stack.until(lambda: stack.files() == files)
    assert stack.redis.zcard("tf:diagnostic:tenant:acme") == jobs + 1


def test_a_caller_that_reads_nothing_keeps_nobody_waiting(
    stack: Stack, connections: Callable[[bytes], socket.socket]
) -> None:
    body = b'{"text": "' + b"x" * 900 + b'"}'
    for _ in range(20):
        connections((head(stack, "noop", len(body), "application/json").replace(b"image/png", b"*/*") + body) * 4)
    assert stack.call("noop", {"text": "served"}).json()["result"]["text"] == "served"
