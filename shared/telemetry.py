"""Logs as events with fields. Counters are in `shared.metrics`, spans in `shared.tracing`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, Literal

import structlog

# A field that is not here never reaches a log: secrets, request bodies and pictures have no name in this list.
FIELDS = frozenset(
    {"event", "level", "timestamp", "exception", "error", "detail", "code", "reason", "signal", "trace_id"}
    | {"request_id", "http_method", "path", "status", "tenant", "principal"}
    | {"job_id", "method", "operation", "state", "stage", "attempt", "worker", "queue_s", "service_s", "batch"}
    | {"model", "version", "device", "threads", "lease", "key_id", "seconds", "delay_s", "count", "bytes"}
    | {"lost", "stray", "late", "removed", "name", "pid", "port", "url", "exit_code"}
)


def _allow_listed(_: Any, __: str, event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name in FIELDS}


def configure(level: str, style: Literal["json", "console"]) -> None:
    """Set up logging of this process: call once, at start."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = structlog.processors.JSONRenderer()
    if style == "console":
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _allow_listed,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=max(numeric, logging.WARNING), stream=sys.stderr, format="%(name)s: %(message)s", force=True
    )
