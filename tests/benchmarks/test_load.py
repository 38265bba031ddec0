"""The load generator against a server whose times are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks import table
from benchmarks.load import Measured, closed, open_loop, post
from deploy.serving import server, tcp_socket

ANSWER_S = 0.05


@asynccontextmanager
async def slow_server(seen: list[int]) -> AsyncIterator[str]:
    """Answers after 50 ms; `seen` gets how many calls are under way at each arrival."""
    under_way = 0

    async def answer(_: Request) -> PlainTextResponse:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        status = 429 if len(seen) == 3 else 200
        await asyncio.sleep(ANSWER_S)
        under_way -= 1
        return PlainTextResponse("answered", status)

    with tcp_socket("127.0.0.1", 0) as listener:
        serving = server(Starlette(routes=[Route("/", answer, methods=["POST"])]), 1)
        task = asyncio.create_task(serving.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            serving.end()
            await task


def test_a_closed_loop_never_has_more_under_way_than_callers() -> None:
    async def main() -> tuple[Measured, list[int]]:
        seen: list[int] = []
        async with slow_server(seen) as url:
            return await closed(url, post("/", {}), concurrency=4, seconds=0.6, warm_up_s=0), seen

    measured, seen = asyncio.run(main())
    assert max(seen) <= 4
    assert measured.statuses == {"200": len(seen) - 1, "429": 1}
    assert len(measured.latencies) == len(seen) - 1, "a refusal is no answer"
    assert measured.percentile(0.0) >= ANSWER_S * 0.9


def test_an_open_loop_calls_whether_answers_come_or_not() -> None:
    async def main() -> tuple[Measured, list[int]]:
        seen: list[int] = []
        async with slow_server(seen) as url:
            return await open_loop(url, post("/", {}), per_second=100, seconds=0.5), seen

    measured, seen = asyncio.run(main())
    assert len(seen) == 50
    assert max(seen) > 1
    assert measured.percentile(0.5) >= ANSWER_S * 0.9


def test_percentiles_are_of_the_ordered_times() -> None:
    measured = Measured(1.0, [number / 100 for number in range(100, 0, -1)])
    assert measured.percentile(0.5) == 0.51
    assert measured.percentile(1.0) == 1.0


def test_every_report_has_its_line_and_a_missed_bar_is_said(tmp_path: Path) -> None:
    report = {
        "benchmark": "batching",
        "ratio": 2.5,
        "bars": {"batched/alone >= 3": False},
        "cores": 2,
        "machine": "x86_64 AVX2",
        "load_before": 0.1,
        "date": "2026-01-01",
    }
    (tmp_path / "batching.json").write_text(json.dumps(report))
    table.write(tmp_path, tmp_path / "page.md")
    (line,) = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| batching")]
    assert "2.5 times" in line
    assert "**missed**: batched/alone >= 3" in line
