"""`cloister enclave`: evidence of what runs where, and keys that are released to it.

cloister enclave attest                 evidence of this machine
cloister enclave verify EVIDENCE        what it shows, and whether a policy accepts it
cloister enclave pack KIND FILE         what another tool collected, as evidence
cloister enclave policy init|sign|show  which evidence this organisation accepts
"""

from __future__ import annotations

import typer

from cloister.cli import enclavebroker, enclavemachine, enclavepolicy, enclavesetup, enclaveverify

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Show, check and use evidence of what runs where.")
app.command("setup")(enclavesetup.setup)
app.command("attest")(enclavemachine.attest)
app.command("verify")(enclaveverify.verify)
app.command("pack")(enclaveverify.pack)
app.command("seal")(enclavemachine.seal)
app.command("unseal")(enclavemachine.unseal)
app.add_typer(enclavepolicy.app, name="policy")
app.add_typer(enclavebroker.app, name="broker")
