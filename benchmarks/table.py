"""`docs/performance.md` from the reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
Report = Mapping[str, Any]

_HEAD = """# Performance

Written by `python -m benchmarks` from `benchmarks/reports/*.json`; not edited by hand. Ratios were measured in one run,
with everything on one machine: callers, gateway, worker and both Redis servers share its cores. Load is the one-minute
average before a benchmark began: what is above 1 was somebody else's, and makes every absolute number worse. A kind of
machine has reports of its own.

| benchmark | measured | bars | machine | load | date |
|---|---|---|---|---|---|
"""


def write(reports: Path, page: Path) -> None:
    """Write the page from every report that is there."""
    rows = [_row(json.loads(path.read_text())) for path in sorted(reports.glob("*.json"))]
    page.write_text(_HEAD + "".join(rows))


def _row(report: Report) -> str:
    said = _SENTENCES[report["benchmark"]](report)
    bars = "<br>".join(f"{'met' if met else '**missed**'}: {name}" for name, met in report.get("bars", {}).items())
    machine = f"{report['cores']} cores, {report['machine']}"
    cells = (report["benchmark"], said, bars or "none", machine, report["load_before"], report["date"])
    return "| " + " | ".join(map(str, cells)) + " |\n"


def _noop(r: Report) -> str:
    bare = r.get("bare")  # the yardstick of the machine: reports before it have none
    yardstick = f"; bare FastAPI in the same run: {bare['p50_ms']} ms p50, {bare['cpu_ms']} ms CPU" if bare else ""
    return (
        f"{r['p50_ms']} ms p50, {r['p95_ms']} ms p95, {r['cpu_ms_a_call']['all']} ms CPU a call, one caller; "
        f"{r['concurrency_32']['rps']} calls a second with 32{yardstick}"
    )


def _model(r: Report) -> str:
    rows = r["by_concurrency"].items()
    listed = [
        f"{c} callers: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items()) for c, row in rows
    ]
    return f"model of {r['model_ms']} ms, calls a second over those of others: " + "; ".join(listed)


def _batching(r: Report) -> str:
    return f"{r['ratio']} times the calls a second of one after the other, where eight cost what two cost"


def _backlog(r: Report) -> str:
    return (
        f"{r['jobs']} jobs; last thousand over first: {r['enqueue']['last_over_first']} queued, "
        f"{r['complete']['last_over_first']} done; {r['broker_bytes_a_job']} bytes a waiting job"
    )


def _mixed(r: Report) -> str:
    return (
        f"p95 {r['alone']['p95_ms']} ms alone, {r['beside']['p95_ms']} ms beside a training and 500 units of "
        f"{r['unit_s']} s"
    )


def _soak(r: Report) -> str:
    slopes = r["mib_a_minute"]
    return f"{r['seconds'] / 60:.0f} min, {r['calls']} calls; MiB a minute: " + ", ".join(
        f"{name} {slope}" for name, slope in slopes.items()
    )


def _streaming(r: Report) -> str:
    return (
        f"{r['up_mib_a_second']} MiB/s up, {r['down_mib_a_second']} MiB/s down, {r['at_once']} files of "
        f"{r['file_mib']:.0f} MiB at once; gateway {r['gateway_mib']['idle']} MiB idle, {r['gateway_mib']['peak']} peak"
    )


def _faces(r: Report) -> str:
    return f"{r['alone_ms_a_face']} ms a face alone, {r['batched_ms_a_face']} ms in a batch of {r['faces']}"


def _fitting(r: Report) -> str:
    return (
        f"a detector fitted to {r['pictures']} pictures of {r['side_px']} px in {r['fit_s']} s ({r['fit_cpu_s']} s of "
        f"CPU), with one thread; {r['scored_a_second']} pictures of an archive scored a second, "
        f"{r['scored_a_cpu_second']} a second of CPU"
    )


def _guard(r: Report) -> str:
    return (
        f"a photograph anonymized in {r['ms']['plain']} ms, {r['ms']['guarded']} ms with a guard: {r['ratio']} times, "
        f"{r['cpu_ratio']} times the CPU; the guard's score alone takes {r['ms']['score_alone']} ms"
    )


def _stacks(r: Report) -> str:
    return "; ".join(
        f"{len(r[name]['methods'])} methods: {r[name]['started_mib']['all']} MiB started, "
        f"{r[name]['after_the_demo_mib']['all']} MiB after the demo, {r[name]['cpu_s_to_start']} s of CPU to start"
        for name in ("three", "all")
    )


def _denoiser(r: Report) -> str:
    return (
        f"a step of DiT-SR at paper size, latent of {r['latent']}, one thread: {r['ours_cpu_s']} CPU s, plain form "
        f"{r['plain_cpu_s']}, ratio {r['ratio']}; largest difference {r['largest_difference']:.1e}"
    )


def _autoencoder(r: Report) -> str:
    seconds = r["cpu_s"]
    return (
        f"VQ-f4, {r['side_px']} px, one thread: encode {seconds['encode']} s, decode {seconds['decode']} s; plain form "
        f"{seconds['plain_encode']} s and {seconds['plain_decode']} s: {r['speed_up']} times as fast; results differ "
        f"by {r['largest_difference']:.1e} at most"
    )


def _detector(r: Report) -> str:
    return (
        f"DLSR: {r['batch']} vectors at paper size, one thread: {r['ours_cpu_s']} CPU s, plain sampler "
        f"{r['plain_cpu_s']}, {r['speed_up']} times as fast; dlsr/small: {r['pictures_a_second']} pictures a second, "
        f"{r['cpu_ms_a_picture']} CPU ms each"
    )


_SENTENCES: Mapping[str, Callable[[Report], str]] = {
    "noop": _noop,
    "model": _model,
    "batching": _batching,
    "backlog": _backlog,
    "mixed": _mixed,
    "soak": _soak,
    "streaming": _streaming,
    "faces": _faces,
    "denoiser": _denoiser,
    "fitting": _fitting,
    "guard": _guard,
    "stacks": _stacks,
    "autoencoder": _autoencoder,
    "detector": _detector,
}
