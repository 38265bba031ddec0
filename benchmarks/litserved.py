"""LitServe around the same network, as its authors show it; run by the interpreter that has it.

It reads annotations as they are: no `from __future__ import annotations` here.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import litserve  # type: ignore[import-not-found]
import torch

from tests.diagnostic.network import Thinker, think


class ThinkApi(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.network = Thinker()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, wish: dict[str, Any]) -> float:
        with torch.inference_mode():
            return think(self.network, [int(wish.get("seed", 0))], int(wish["layers"]))[0]

    def encode_response(self, value: float) -> dict[str, float]:
        return {"value": value}


if __name__ == "__main__":
    server = litserve.LitServer(ThinkApi(api_path="/think"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
