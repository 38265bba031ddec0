"""The device and the threads of torch, chosen once a process. The only module of the runtime that imports torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def choose(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU. Raises `ValueError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"TENFOLD_DEVICE={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """What frozen networks and autocast of a training compute in: half precision (bfloat16) where it is faster.

    A CPU without bfloat16 instructions emulates them: a convolution then takes fifteen times as long as in float32.
    """
    on_cpu = torch.device(device).type == "cpu"
    emulated = on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def autocast(device: str | torch.device) -> torch.autocast:
    """Autocast to `fast_dtype`: none where that is float32."""
    dtype = fast_dtype(device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def set_threads(threads: int | None, *, train: bool) -> int:
    """Threads of one operation: as set, else all cores in a worker and one in a trainer. One between operations."""
    count = threads or (1 if train else len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    with contextlib.suppress(RuntimeError):  # only the first call of a process may set it
        torch.set_num_interop_threads(1)
    return count


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """What the device thread computes in: no gradients, and no TF32, which would move results beyond the tolerances."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host, had too little memory."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_bytes(device: torch.device) -> int:
    """What tensors take of an accelerator's memory; 0 on the CPU, where it is the process's own."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def release_cache() -> None:
    """Give cached device memory back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
