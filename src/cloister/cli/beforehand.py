"""What `study run`, `up` and `cloister site` look at before a study begins, so that it costs no budget first.

Whether a key broker would release what it keeps, and whether a worker has the walls that the plan asks for.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.cli.brokerkeys import broker_keys, kept_broker
from cloister.cli.common import as_home
from cloister.errors import PolicyRefused, StorageError

if TYPE_CHECKING:
    from cloister.crypto import Identity
    from cloister.learning import Plan

__all__ = ["no_walls", "require_grants", "require_walls"]


def require_walls(plan: Plan, *, sandboxed: bool) -> None:
    """Raise PolicyRefused where a plan asks for evidence of a worker that would have no walls."""
    if plan.reattest_seconds is not None and not sandboxed:
        raise no_walls(plan)


def no_walls(plan: Plan) -> PolicyRefused:
    """Return the refusal of a worker without walls, whose evidence would say nothing about it."""
    return PolicyRefused(
        "the plan asks for evidence of the worker, and rows are worked on inside this process",
        where=plan.study.name,
        fix="Leave out --worker inside",
    )


def require_grants(
    home: Path,
    owner: Identity,
    plan: Plan,
    *,
    sandboxed: bool,
    held_out: str | None = None,
    plan_file: Path | None = None,
) -> None:
    """Do nothing where a home's datasets need no key broker, or it would release them for a plan.

    Only a worker's evidence is left to be judged, when it is there.

    Args:
        home: the home.
        owner: its identity.
        plan: the study's; one that does not name this owner needs nothing.
        sandboxed: whether rows are worked on behind walls.
        held_out: a further dataset that is read.
        plan_file: where the plan is, for the advice.

    Raises:
        PolicyRefused: no worker may have the keys: it has no walls, or its owner granted nothing.
        StorageError: the broker does not answer.
        InputError: there is no such dataset.
    """
    kept = kept_broker(home / "vault")
    named = [each.dataset for each in plan.sites if each.identity == owner.fingerprint]
    if kept is None or not named:
        return
    from cloister.crypto import sha256
    from cloister.enclave.broker import Wanted
    from cloister.vault import Catalog
    from cloister.vault.keyfile import read_keyfile

    catalog = Catalog(home / "vault", owner.public)
    read = [name for name in (*named, held_out) if name is not None and name in catalog.names()]
    local = read_keyfile(home / "vault" / "keystore.json").keks
    wanted = {
        name: Wanted(kek, sha256(catalog.envelope(name)).hex(), plan.digest.hex(), plan.study.purpose)
        for name in read
        if (kek := catalog.manifest(name).kek_id) not in local
    }
    if not wanted:
        return
    if not sandboxed:
        raise PolicyRefused(
            "the dataset's key is with a key broker, which opens it for attested, walled workers alone",
            where=f"{home}, {', '.join(wanted)}",
            fix="Leave out --worker inside",
        )
    keys = broker_keys(*kept, owner)
    try:
        granted = keys.inventory().permissions
    except StorageError as error:
        start = f"Start it with `{as_home(home)}cloister enclave broker serve`"
        fix = start if kept[1] == owner.public else error.fix
        raise StorageError(error.what, where=error.where, fix=fix) from error
    finally:
        keys.close()
    now = datetime.now(UTC)
    open_to = [
        each.permission.wanted
        for each in granted
        if not each.revoked and each.permission.expires > now and each.used < each.permission.uses
    ]
    for name, each in wanted.items():
        if each not in open_to:
            command = f"{as_home(home)}cloister enclave broker grant {name}"
            if kept[1] != owner.public:
                command += f" --socket {shlex.quote(str(kept[0]))} --broker-identity {kept[1].name}"
            study = shlex.quote(str(plan_file)) if plan_file else plan.digest.hex()
            raise PolicyRefused(
                "the key broker releases nothing: no grant for this plan and purpose has a use left",
                where=f"{home}, {name}",
                fix=f"Grant it: `{command} --plan {study}`",
            )
