"""The methods of this installation. A new one adds a line to each table that concerns it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from shared.service import Service

# method: where its Service is, as module:attribute
METHODS: Mapping[str, str] = {
    "dit-sr": "services.dit_sr.service:service",
    "dlsr": "services.dlsr.service:service",
    "ifadit": "services.ifadit.service:service",
    "tad-sr": "services.tad_sr.service:service",
}

# set of golden vectors: the module whose `runners()` compute its kinds
VERIFIERS: Mapping[str, str] = {
    "dit-sr": "services.dit_sr.verify",
    "dlsr": "services.dlsr.verify",
    "ifadit": "services.ifadit.verify",
    "resshift-diffusion": "shared.resshift.verify",
    "tad-sr": "services.tad_sr.verify",
}

# method: the module whose `convert(sources, target)` turns the authors' published files into a model of ours
IMPORTERS: Mapping[str, str] = {
    "dit-sr": "services.dit_sr.convert",
    "dlsr": "services.dlsr.convert",
    "ifadit": "services.ifadit.convert",
    "tad-sr": "services.tad_sr.convert",
}


def load_service(place: str) -> Service:
    """The service at `module:attribute`. Raises `ValueError` if there is none."""
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(module), attribute or "service", None)
    if not isinstance(found, Service):
        raise ValueError(f"{place} is no Service")
    return found
