"""What is served: `/v1/methods`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel

from gateway.auth import Caller
from gateway.parts import Here

MethodName = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,63}$", examples=["ifadit"])]

router = APIRouter(prefix="/v1/methods", tags=["methods"])


class MethodList(BaseModel):
    """All methods of this installation. One whose service is down has `available: false` and says why."""

    methods: list[dict[str, Any]]


@router.get("")
async def list_methods(caller: Caller, here: Here) -> MethodList:
    """What is served: operations with their schemas, default model, and the numbers of the moment."""
    return MethodList(methods=await here.catalogue.listed())


@router.get("/{method}")
async def read_method(method: MethodName, caller: Caller, here: Here) -> dict[str, Any]:
    """One method: its operations with their schemas, default model, workers, queue and mean service time."""
    return await here.catalogue.described(method)
