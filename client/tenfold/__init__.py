"""Ten published vision methods as a service, from Python.

>>> from tenfold import Client
>>> with Client() as client:
...     result = client.ifadit.anonymize("photo.jpg")
...     result.image.save("anonymized.png")
...     print(f"{len(result.faces)} faces, key {result.key_id}")

The address and the API key come from `TENFOLD_URL` and `TENFOLD_API_KEY`, or are given as `Client(base_url, api_key)`.
What the key of an officer brings back:

>>> with Client(api_key=officer_key) as officer:
...     recovered = officer.ifadit.recover("anonymized.png", purpose="court order 17")
...     recovered.image.save("recovered.png")

`AsyncClient` has the same surface for asyncio. Whatever goes wrong is a `Problem` with a `code`, a `status`, a `detail`
and the `request_id`; its subclasses are the different reactions that make sense.
"""

from tenfold._inputs import FileInput
from tenfold.client import AsyncClient, Client
from tenfold.problems import (
    AuthenticationFailed,
    Conflict,
    ConnectionFailed,
    InvalidInput,
    NotAllowed,
    NotFound,
    Problem,
    RateLimited,
    ServerFault,
    TimedOut,
    Unavailable,
)
from tenfold.types import (
    AsyncFile,
    AuditEntry,
    Box,
    Facts,
    File,
    Guard,
    Health,
    Job,
    JobEvent,
    Key,
    Method,
    Model,
    Operation,
    Result,
    StoredFile,
)

__all__ = [
    "AsyncClient",
    "AsyncFile",
    "AuditEntry",
    "AuthenticationFailed",
    "Box",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Facts",
    "File",
    "FileInput",
    "Guard",
    "Health",
    "InvalidInput",
    "Job",
    "JobEvent",
    "Key",
    "Method",
    "Model",
    "NotAllowed",
    "NotFound",
    "Operation",
    "Problem",
    "RateLimited",
    "Result",
    "ServerFault",
    "StoredFile",
    "TimedOut",
    "Unavailable",
]
