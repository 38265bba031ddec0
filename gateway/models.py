"""Models, as their tenant sees them: `/v1/models`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from gateway.auth import Caller, require_scope
from gateway.parts import Here

MethodName = Annotated[str, Path(examples=["ifadit"])]
ModelName = Annotated[str, Path(description="With `@version`, or without: the current one.", examples=["small"])]

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelSummary(BaseModel):
    """One version of a model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    """`method/name@version`, as requests name it."""
    method: str
    name: str
    version: int
    versions: list[int]
    """All versions of this name, ascending."""
    kind: str
    """shipped, imported or trained. Only a tenant's own trained models can be deleted."""
    digest: str
    """SHA-256, hexadecimal, over the files."""
    licence: str | None
    """First line of the licence of the weights."""
    figures: dict[str, Any]
    """What was measured."""
    created_at: str


class Model(ModelSummary):
    """One version of a model, with its card."""

    card: str | None
    """Markdown: data, training, figures, where it fails."""


class ModelList(BaseModel):
    """The current version of every model that the tenant can use."""

    models: list[ModelSummary]


@router.get("")
async def list_models(
    caller: Caller, here: Here, method: Annotated[str | None, Query(pattern=r"^[a-z0-9-]{1,63}$")] = None
) -> ModelList:
    """Shipped and imported models, and those that the tenant trained: the current version of each."""
    found = await run_in_threadpool(here.runtime.models.list, caller.tenant, method)
    return ModelList(models=[ModelSummary.model_validate(model.public()) for model in found])


@router.get("/{method}/{name}")
async def read_model(method: MethodName, name: ModelName, caller: Caller, here: Here) -> Model:
    """One model with its card. A `paper` model that nobody imported is 409 with the command that imports it."""
    found = await run_in_threadpool(here.runtime.models.resolve, f"{method}/{name}", caller.tenant)
    return Model.model_validate(found.public())


@router.delete("/{method}/{name}", status_code=204)
async def delete_model(method: MethodName, name: ModelName, caller: Caller, here: Here) -> None:
    """Delete a model that the tenant trained: the version named, or all of them. Needs the scope `use`."""
    require_scope(caller, "use")
    await run_in_threadpool(here.runtime.models.delete, f"{method}/{name}", caller.tenant)
