"""A private inference service: a model in a walled worker, asked through the private exchange alone.

    service = Service(TableModel(artifact), attester=attester, clients=list_clients(path))
    with service, serving(service) as url: ...

`front` is what a server calls and sees ciphertext; `door` is in the worker, and opens it; `pipe` lies
between the two. `boot`, `process` and `launch` bring the worker up, `loading` the model in it,
`connections` sockets to an engine on this machine.
"""

from cloister.inference.service.connections import Address
from cloister.inference.service.credentials import (
    Client,
    Register,
    add_client,
    list_clients,
    remove_client,
)
from cloister.inference.service.launch import Service
from cloister.inference.service.limits import Limits
from cloister.inference.service.server import run, serving
from cloister.inference.service.source import (
    AdapterModel,
    LanguageModel,
    LoopbackEngine,
    SealedFolder,
    Source,
    TableModel,
)

__all__ = [
    "AdapterModel",
    "Address",
    "Client",
    "LanguageModel",
    "Limits",
    "LoopbackEngine",
    "Register",
    "SealedFolder",
    "Service",
    "Source",
    "TableModel",
    "add_client",
    "list_clients",
    "remove_client",
    "run",
    "serving",
]
