"""`cloister enclave policy`: which evidence this organisation accepts."""

from __future__ import annotations

from typing import Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.enclavedraft import draft
from cloister.errors import InputError

__all__ = ["TEMPLATE", "app"]

app = typer.Typer(no_args_is_help=True, help="Say which evidence this organisation accepts.")
app.command("draft")(draft)

TEMPLATE: Final = """\
# Which evidence this organisation accepts, of hubs and workers. Without this file: sound, fresh
# evidence that is rooted in hardware, nothing else. `allow_` widens that; every other line only refuses more.
# Take away the # of a line to have it. Sign the file after each change: cloister enclave policy sign

# kinds = ["snp", "tdx", "azure-snp-vtpm", "nitro", "tpm"]
# allow_software_tee = true     # swtpm: nothing but software vouches for it; for trying things out
# allow_self_reported = true    # measurements that the measured software made of itself
# allow_debug = true            # machines whose owner may look inside
# tcb_statuses = ["UpToDate", "SWHardeningNeeded"]  # verdicts of Intel's collateral
# grace_days = 14               # how long firmware may lag behind
# rejected_advisories = ["INTEL-SA-00615"]
# collateral_max_age_days = 30
# require_revocation = true
# platforms = []                # identifiers of your machines, as `verify` prints them

# [tcb_floor]                   # least versions, by component
# snp = 8
# microcode = 115

# [[measurements]]              # one of these images must be what was measured
# name = "worker 0.1.0"
# values = { measurement = "..." }

# [signers]                     # who must have signed the image
# id_key_digest = ["..."]

# [tpm]                         # without both, no TPM counts as hardware
# makers = {}                   # "SHA-256 of a root certificate" = "name"
# verifiers = {}                # identities that activate credentials: fingerprint = "ed25519 key"

# [gpu]
# count = 1
# drivers = ["550.90.07"]
# measured = true
"""


@app.command("init")
def init() -> None:
    """Write an enclave policy with every rule explained, to be edited and signed."""
    from cloister.enclave.policyfile import enclave_policy_path
    from cloister.files import write_atomic

    path = enclave_policy_path(common.home())
    if path.exists():
        raise InputError("there is an enclave policy", where=str(path), fix="Edit it, then sign it")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, TEMPLATE.encode(), replace=False)
    say(f"Wrote {path}. Edit it, then: cloister enclave policy sign")


@app.command("sign")
def sign() -> None:
    """Sign the enclave policy, after checking that it is one."""
    from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy
    from cloister.enclave.policyfile import enclave_policy_path
    from cloister.policy import sign_toml

    path = enclave_policy_path(common.home())
    say(f"Signed: {sign_toml(path, EnclavePolicy, ENCLAVE_POLICY, [common.load_identity()])}")


@app.command("show")
def show(as_json: JsonOption = False) -> None:
    """Show the enclave policy in force, its signature checked."""
    import msgspec

    from cloister.crypto import Identity
    from cloister.enclave.policyfile import enclave_policy_path, load_enclave_policy, policy_toml

    path = enclave_policy_path(common.home())
    owner = Identity.read_public(common.identity_path())
    found = load_enclave_policy(common.home(), owner)
    rules: dict[str, Any] = msgspec.to_builtins(found)
    changed = policy_toml(found).decode().splitlines()
    heads = [] if changed else ["The default: sound, fresh evidence that is rooted in hardware."]
    if found.allow_software_tee:
        heads = ["Software TPMs are accepted: what rests on one is NOT HARDWARE-PROTECTED."]
    emit(
        {"path": str(path), "signed": path.exists(), "digest": found.digest, "policy": rules},
        as_json=as_json,
        text="\n".join([*heads, *changed, f"digest: {found.digest}"]),
    )
