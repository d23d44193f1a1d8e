"""`cloister clients`: who may ask the services of this home.

    cloister clients add NAME     make a token, shown once
    cloister clients ls           names
    cloister clients rm NAME      let somebody ask no more

A service reads the file when it starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.common import JsonOption, emit, say
from cloister.cli.serve import clients_path

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Say who may ask the services of this home.")

FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="The file of clients; this home's without it.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The client's name.", show_default=False)]


@app.command()
def add(name: NameArgument, file: FileOption = None, as_json: JsonOption = False) -> None:
    """Make a client and print its token, which is kept nowhere: only its hash is."""
    from cloister.inference.service import add_client

    path = file or clients_path()
    token = add_client(path, name)
    emit({"name": name, "token": token, "file": str(path)}, as_json=as_json, text=token)
    say(f"{name} may ask with this token, from the next start of `cloister serve` on. It is not shown again.")


@app.command()
def ls(file: FileOption = None, as_json: JsonOption = False) -> None:
    """List the clients."""
    from cloister.inference.service import list_clients

    path = file or clients_path()
    names = [client.name for client in list_clients(path)] if file or path.exists() else []
    emit({"clients": names}, as_json=as_json, text="\n".join(names or ["Nobody may ask."]))


@app.command()
def rm(name: NameArgument, file: FileOption = None, as_json: JsonOption = False) -> None:
    """Remove a client: its token is worth nothing from the next start of `cloister serve` on."""
    from cloister.inference.service import remove_client

    remove_client(file or clients_path(), name)
    emit({"name": name, "removed": True}, as_json=as_json, text=f"{name} is removed.")
