"""Tracing that nobody asked for costs nothing; a misconfigured one says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
import structlog

from shared import tracing

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def loaded(statement: str, **environment: str) -> set[str]:
    """Modules of a fresh process in which `statement` was executed."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    return set(done.stdout.split())


class TestOff:
    # redis-py and fastapi import what is installed of OpenTelemetry by themselves; none of it traces.
    @pytest.mark.parametrize(
        ("before", "ours"),
        [
            ("import redis.asyncio", "import shared.worker"),
            ("import redis.asyncio, fastapi", "import deploy.run, gateway.app, shared.api"),
        ],
    )
    def test_no_process_of_ours_imports_more_of_opentelemetry(self, before: str, ours: str) -> None:
        run = "from shared import tracing\nwith tracing.exported('x'): tracing.begin('x', None).child('y').end()"
        added = loaded(f"{before}\n{ours}\n{run}") - loaded(before)
        assert "shared.tracing" in added
        assert not [name for name in added if name.startswith("opentelemetry") or name == "shared.otel"]
        assert not [
            name for name in added if name.startswith(("opentelemetry.sdk.trace", "requests", "google.protobuf"))
        ]

    @pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"])
    def test_standard_names_switch_it_off(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        off = {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv(name, off[name])
        with tracing.exported("worker"):
            assert tracing.begin("x", None).traceparent is None

    def test_the_callers_trace_is_passed_on_and_logged(self) -> None:
        with tracing.entered(tracing.begin("x", GIVEN)) as span:
            assert span.child("y").traceparent == tracing.current().traceparent == GIVEN
            assert structlog.contextvars.get_contextvars()["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert tracing.current().traceparent is None
        assert "trace_id" not in structlog.contextvars.get_contextvars()

    @pytest.mark.parametrize(
        "bad",
        ["", "x", GIVEN.upper(), GIVEN[:-1], f"{GIVEN}-01", f"ff{GIVEN[2:]}", f"00-{'0' * 32}{GIVEN[35:]}", "é" * 55],
    )
    def test_a_bad_one_is_not(self, bad: str) -> None:
        assert tracing.begin("x", bad).traceparent is None


class TestOn:
    def test_another_protocol_is_refused_at_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with pytest.raises(ValueError, match="http/protobuf"), tracing.exported("worker"):
            pass

    def test_the_missing_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setitem(sys.modules, "shared.otel", None)
        with pytest.raises(ValueError, match=r"tenfold-server\[otel\]"), tracing.exported("worker"):
            pass

    def test_an_attribute_that_nobody_allowed_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_TRACES_SAMPLER": "always_off",
        }.items():
            monkeypatch.setenv(name, value)
        with tracing.exported("worker"), pytest.raises(KeyError, match="api_key"):
            tracing.begin("x", None, api_key="secret")

    def test_a_collector_that_hangs_delays_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            began = time.monotonic()
            with tracing.exported("worker"):
                tracing.begin("x", None).end()
            assert time.monotonic() - began < 9, "the exporter alone would take ten seconds"

    def test_a_caller_that_is_not_sampled_stays_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        with tracing.exported("worker"):
            assert (tracing.begin("x", f"{GIVEN[:-2]}00").traceparent or "").endswith("-00")
