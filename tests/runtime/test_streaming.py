"""Large pictures pass through the API process without being held there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shared import images
from shared.images import Picture
from tests.stack import Stack

MIB = 2**20


def private_bytes(pid: int) -> int:
    """Memory that the process alone holds, in bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in rollup.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("Private_Clean", "Private_Dirty"))


def test_eight_pictures_of_8_mib_in_and_out_at_once_leave_the_api_process_small(stack: Stack) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1670, 1674, 3), dtype=np.uint8)
    picture = images.encode(Picture(noise), "image/png")
    assert len(picture) >= 8 * MIB
    stack.call("noop", {})
    api = stack.processes["api"].pid
    before, peak = private_bytes(api), 0

    def call(_: int) -> int:
        files = {"image": ("a.png", picture)}
        headers = {**stack.signed("blur"), "Prefer": "wait=300"}
        with stack.http.stream("POST", "/v1/diagnostic/blur", files=files, headers=headers) as response:
            assert response.status_code == 200
            return sum(len(part) for part in response.iter_bytes())

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, number) for number in range(8)]
        while not all(one.done() for one in calls):
            peak = max(peak, private_bytes(api))
            time.sleep(0.005)
        sizes = [one.result() for one in calls]
    assert min(sizes) > MIB, "the blurred pictures came back"
    assert peak - before < 32 * MIB


def test_no_picture_passes_through_redis(stack: Stack) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    picture = images.encode(Picture(noise), "image/png")
    job_id = stack.call("blur", files={"image": ("a.png", picture)}).json()["id"]
    assert sum(len(name) + len(value) for name, value in stack.record(job_id).items()) < 8_000
    assert all(len(stack.redis.dump(name) or b"") < 20_000 for name in raw_keys(stack))


def raw_keys(stack: Stack) -> list[str]:
    return [str(name) for name in stack.redis.scan_iter("tf:diagnostic:job:*", count=1000)]
