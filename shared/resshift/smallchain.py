"""The chain of the small denoisers: as many steps as the paper's, a quarter of its noise, and the residual predicted.

Less noise, because a small network that is judged by its pictures gains nothing from it; the residual y - x_0 instead
of x_0, because a small network's normalisations lose mean colours (a trial that predicted x_0 turned scarves blue).
"""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "steps": 15,
    "kappa": 0.5,
    "min_noise": 0.04,
    "sqrt_eta_end": 0.99,
    "power": 0.3,
    "start_rule": "resshift",
    "prediction": "residual",
}
