"""A first enclave policy from what a machine showed: it accepts that, and as little else as can be said.

    policy = drafted(claims, name)          what to accept, from an appraisal under the default policy
    text = draft_text(policy, notes)        TOML for people to read, compare and sign

What was seen is not what is wanted: a draft pins what a machine shows, whoever runs it. The one who signs it
compares the values with those of a build of their own, or with what the operator publishes elsewhere.

A draft allows a software TPM and self-reported measurements where there is nothing better, and says so.
It never allows a machine whose owner may look inside, evidence without a nonce, or firmware that its maker
calls out of date: such a machine stays refused, and a person decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Kind
from cloister.enclave.launch import LAUNCH
from cloister.enclave.policy import EnclavePolicy, GpuRules, Reference
from cloister.enclave.policyfile import policy_toml, toml_value

__all__ = ["draft_text", "drafted"]

_MADE_AT_START = ("start:interpreter", "start:package", "start:dependencies", "start:hooks")
_ALSO: Mapping[Kind, tuple[str, ...]] = {
    "tdx": ("rtmr0", "rtmr1", "rtmr2"),
    "azure-tdx-vtpm": ("rtmr0", "rtmr1", "rtmr2"),
}
_WHY = {
    "allow_software_tee": "NOT HARDWARE-PROTECTED: nothing but software vouches for it; for trials alone",
    "allow_self_reported": "the software that is judged measured itself",
}


def drafted(claims: Claims, name: str) -> EnclavePolicy:
    """Return the narrowest policy that can be drafted from claims; it may still refuse them.

    Args:
        claims: of a machine's evidence, with its devices.
        name: of the image, for messages.
    """
    software = claims.kind == "tpm" and claims.software_only and claims.chain is None
    reported = claims.self_reported is True
    wanted = {
        *LAUNCH.get(claims.kind, ()),
        *_ALSO.get(claims.kind, ()),
        *(_MADE_AT_START if reported else ()),
    }
    measured = {
        key: value
        for key, value in sorted(claims.measurements.items())
        if key in wanted and len(set(value)) > 1  # a register that nothing was measured into says nothing
    }
    gpus = [device for device in claims.devices if device.kind == "nvidia-gpu"]
    return EnclavePolicy(
        kinds=(claims.kind,),
        allow_software_tee=software,
        allow_self_reported=reported,
        measurements=(Reference(name, measured),) if measured else (),
        gpu=GpuRules(count=len(gpus), switches=len(claims.devices) - len(gpus)),
    )


def draft_text(policy: EnclavePolicy, notes: Sequence[str]) -> str:
    """Return TOML that reads back as the policy, each line that widens it explained.

    Args:
        policy: what `drafted` returned.
        notes: lines for its head, without the "#".
    """
    plain = msgspec.structs.replace(policy, measurements=(), gpu=GpuRules())
    lines = [f"# {note}" if note else "#" for note in notes]
    lines.append("")
    for line in policy_toml(plain).decode().splitlines():
        why = _WHY.get(line.partition(" =")[0])
        lines.append(f"{line:32}# {why}" if why else line)
    for each in policy.measurements:
        lines += ["", "[[measurements]]", f"name = {toml_value(each.name)}", "", "[measurements.values]"]
        lines += [f"{toml_value(key)} = {toml_value(value)}" for key, value in each.values.items()]
    if policy.gpu.count or policy.gpu.switches:
        lines += ["", "[gpu]", f"count = {policy.gpu.count}", f"switches = {policy.gpu.switches}"]
    return "\n".join(lines) + "\n"
