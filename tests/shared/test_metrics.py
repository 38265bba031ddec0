"""Every series is in the guide, and none has a label that could name a tenant or grow without end."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from gateway.custody.series import CustodySeries
from gateway.metrics import Metrics
from shared.census import Census, Queue
from shared.metrics import JobSeries, ServiceSeries, WorkerSeries, page, served
from tests.redis_server import free_port

GUIDE = (Path(__file__).parents[2] / "docs/guide/observability.md").read_text()
LABELS = {
    *(
        "method",
        "operation",
        "route",
        "http_method",
        "status",
        "upstream",
        "kind",
        "state",
        "queue",
        "stage",
        "outcome",
        "policy",
    ),
    *("code", "action", "decision", "reason", "store"),
}
CENSUS = Census("m", 1, 2, 3, (Queue("compute", 1, 0.5),), {("o", "failed"): 1}, 4, 5.0)


def sources() -> Iterator[Collector | CollectorRegistry]:
    yield from (ServiceSeries().registry, WorkerSeries().registry, Metrics().registry, CustodySeries().registry)
    yield JobSeries([CENSUS])


def ours() -> set[str]:
    names = {family.name + "_total" * (family.type == "counter") for one in sources() for family in one.collect()}
    return {name for name in names if name.startswith("tenfold_")}


def documented() -> set[str]:
    """The names in the table; `…_x` stands for the first name of its line up to a common part."""
    found: set[str] = set()
    for line in GUIDE.splitlines():
        if line.startswith("|"):
            names = re.findall(r"`(tenfold_[a-z_]+)`", line)
            for rest in re.findall(r"`…_([a-z_]+)`", line):
                names += [name for name in ours() if name.endswith(f"_{rest}") and name[:16] == names[0][:16]]
            found.update(names)
    return found


def test_every_series_is_in_the_guide_and_the_guide_invents_none() -> None:
    assert documented() == ours()


def test_no_label_is_one_that_a_caller_chooses() -> None:
    collectors = {
        collector
        for source in (ServiceSeries(), WorkerSeries(), Metrics(), CustodySeries())
        for collector in source.registry._collector_to_names
    }
    found = {name for collector in collectors for name in getattr(collector, "_labelnames", ())}
    found |= {name for family in JobSeries([CENSUS]).collect() for one in family.samples for name in one.labels}
    assert found == LABELS


def test_a_page_shows_each_source_once() -> None:
    text = page(ServiceSeries().registry, JobSeries([CENSUS])).decode()
    kinds = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(kinds) == len(set(kinds))
    assert 'tenfold_queue_oldest_seconds{method="m",queue="compute"} 0.5' in text
    assert "process_resident_memory_bytes" in text


class TestServing:
    def test_a_port_shows_the_registry_until_the_block_ends(self) -> None:
        port = free_port()
        with served("127.0.0.1", port, WorkerSeries().registry):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert "process_open_fds" in answer.read().decode()
            with pytest.raises(ValueError, match=f"127.0.0.1:{port}.*TENFOLD_METRICS_PORT"):
                served("127.0.0.1", port, CollectorRegistry()).__enter__()
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)

    def test_without_a_port_nothing_is_opened(self) -> None:
        with served("127.0.0.1", None, CollectorRegistry()):
            pass
