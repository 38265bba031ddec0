"""Bare FastAPI around the network of the benchmarks, as people write it: `python -m benchmarks.bare PORT`."""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.diagnostic.network import Thinker, think


class Wish(BaseModel):
    layers: int
    seed: int = 0


def app() -> FastAPI:
    torch.set_num_threads(1)
    network = Thinker()
    bare = FastAPI()

    @bare.post("/noop")
    async def noop(wish: Wish) -> dict[str, int]:
        return {"seed": wish.seed}

    @bare.post("/think")
    async def one_at_a_time(wish: Wish) -> dict[str, float]:
        with torch.inference_mode():
            return {"value": think(network, [wish.seed], wish.layers)[0]}

    @bare.post("/think-in-threads")
    def side_by_side(wish: Wish) -> dict[str, float]:
        with torch.inference_mode():
            return {"value": think(network, [wish.seed], wish.layers)[0]}

    return bare


if __name__ == "__main__":
    uvicorn.run(app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
