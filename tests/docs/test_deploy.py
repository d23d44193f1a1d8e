"""The files and figures of docs/deploy: manifests that give nothing away, units that systemd accepts, tables that
follow from the formulas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.docs.markdown import ROOT
from tests.runtime.test_forecast import plan_for

from cloister.enclave.sandbox import available
from cloister.enclave.sandbox.walls import REQUIRED
from cloister.runtime.forecast import Sizes, forecast
from cloister.secagg import Params

DEPLOY = ROOT / "docs" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
WALLED = ("cloister-serve", "cloister-site")
PROFILE = DEPLOY / "kubernetes" / "cloister-site.json"
SIZING = (DEPLOY / "sizing.md").read_text(encoding="utf-8")


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def pod_of(path: Path) -> dict[str, Any]:
    (found,) = [each for each in documents(path) if each["kind"] in ("Deployment", "StatefulSet")]
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    assert found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]
    return spec


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_has_no_rights_and_writes_where_it_must(path: Path) -> None:
    pod = pod_of(path)
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["fsGroupChangePolicy"] == "OnRootMismatch"
    assert pod["automountServiceAccountToken"] is False
    for container in pod["initContainers"] + pod["containers"]:
        rights = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if container["name"] == "site":  # whose worker builds walls of its own
            rights["seccompProfile"] = {"type": "Localhost", "localhostProfile": PROFILE.name}
            rights["appArmorProfile"] = {"type": "Unconfined"}
        assert container["securityContext"] == rights
        assert container["resources"]["limits"]["memory"]
        mounted = {each["name"] for each in container["volumeMounts"]}
        claims = {"home"} if path.name == "site.yaml" else set()
        assert mounted <= {each["name"] for each in pod["volumes"]} | claims


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_secrets_are_files_that_only_the_init_container_sees(path: Path) -> None:
    pod = pod_of(path)
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["run"]["emptyDir"]["medium"] == "Memory"
    assert volumes["secrets"]["secret"]["defaultMode"] == 0o400
    (first,), (main,) = pod["initContainers"], pod["containers"]
    assert "umask 077" in first["command"][-1]
    assert "secrets" not in {each["name"] for each in main["volumeMounts"]}
    environment = {each["name"]: each["value"] for each in main["env"]}  # values alone, none from a Secret
    assert environment["CLOISTER_PASSPHRASE_FILE"] == "/run/cloister/passphrase"
    assert environment["XDG_RUNTIME_DIR"] == "/run/cloister"
    assert environment["CLOISTER_HOME"].startswith(
        "/var/lib/cloister/"
    )  # the volume's root is Kubernetes' own


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_nothing_comes_in_and_only_the_broker_is_reached(path: Path) -> None:
    (policy,) = [each["spec"] for each in documents(path) if each["kind"] == "NetworkPolicy"]
    assert policy["ingress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 4222}


def test_the_hub_stands_by_and_a_site_is_alone() -> None:
    by_kind = {each["kind"]: each for path in MANIFESTS for each in documents(path)}
    assert by_kind["Deployment"]["spec"]["replicas"] == 2
    assert by_kind["StatefulSet"]["spec"]["replicas"] == 1
    assert by_kind["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    unit = tmp_path / path.name
    text = path.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/cloister/bin/cloister", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    assert exposure is not None, rated.stderr
    assert float(exposure[1]) < (2.5 if path.stem in WALLED else 2.0)  # a worker needs namespaces


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_keeps_secrets_off_the_disk(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    name = path.stem
    assert ("LimitMEMLOCK=infinity" in lines) is (name == "cloister-serve")
    assert "LimitCORE=0" in lines
    assert "MemorySwapMax=0" in lines
    assert "RuntimeDirectoryPreserve=yes" in lines  # else the epoch's keys go with each restart
    assert f"Environment=XDG_RUNTIME_DIR=%t/{name}" in lines
    assert "Environment=CLOISTER_PASSPHRASE_FILE=%d/passphrase" in lines


# --- walls of a worker under a filter of system calls -------------------------------------------------------

UNDER = """
import errno, json, os, sys
import pyseccomp
default, rules = json.loads(sys.argv[1])
actions = {"allow": pyseccomp.ALLOW, "refuse": pyseccomp.ERRNO(errno.EPERM)}
filtered = pyseccomp.SyscallFilter(actions[default])
for action, names in rules:
    for name in names:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            filtered.add_rule(actions[action], name)
filtered.load()
os.execv(sys.executable, [sys.executable, "-I", "-m", "cloister.enclave.sandbox.trial"])
"""


def missing_under(default: str, action: str, names: set[str]) -> dict[str, str]:
    """Which required walls a worker lacks where system calls are filtered so, and why."""
    pytest.importorskip("pyseccomp")
    lacking = {wall: why for wall, why in available().items() if why and wall in REQUIRED}
    if lacking:
        pytest.skip(f"this machine lacks walls anyway: {lacking}")
    given = json.dumps([default, [[action, sorted(names)]]])
    done = subprocess.run(
        [sys.executable, "-c", UNDER, given],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    return {wall: why for wall, why in json.loads(done.stdout).items() if why and wall in REQUIRED}


def system_calls(group: str) -> set[str]:
    """The names in one of systemd's groups of system calls."""
    if not group.startswith("@"):
        return {group}
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", group],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return {name for line in lines if line and not line.startswith("#") for name in system_calls(line)}


def allowed_by(unit: str) -> set[str]:
    """What the SystemCallFilter lines of a unit allow, in their order."""
    allowed: set[str] = set()
    for said in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = {name for group in said.lstrip("~").split() for name in system_calls(group)}
        allowed = allowed - names if said.startswith("~") else allowed | names
    return allowed | {"execve"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize("name", WALLED)
def test_a_unit_leaves_its_worker_the_walls(name: str) -> None:
    """Of the unit's restrictions these two could take walls away: the filter, and which namespaces there are."""
    unit = (DEPLOY / "systemd" / f"{name}.service").read_text(encoding="utf-8")
    assert missing_under("refuse", "allow", allowed_by(unit)) == {}
    assert "RestrictNamespaces=user pid net ipc uts mnt" in unit.splitlines()
    without = "\n".join(
        unit.splitlines()[: unit.splitlines().index("SystemCallFilter=~@privileged @resources")]
    )
    assert "mounts" in set(missing_under("refuse", "allow", allowed_by(without)))


def test_a_sites_seccomp_profile_leaves_its_worker_the_walls() -> None:
    profile = json.loads(PROFILE.read_text(encoding="utf-8"))
    (rule,) = profile["syscalls"]
    assert (profile["defaultAction"], rule["action"]) == ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
    assert missing_under("allow", "refuse", set(rule["names"])) == {}
    attacks = {"bpf", "ptrace", "process_vm_readv", "io_uring_setup", "keyctl", "kexec_load", "setns"}
    assert attacks <= set(rule["names"])


# --- sizing -----------------------------------------------------------------------------------------------


def rows_after(marker: str) -> list[list[str]]:
    """The cells of the first table after a marker, without its head."""
    lines = SIZING[SIZING.index(marker) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table[2:]


def says(cell: str, value: float) -> bool:
    """Whether a cell shows a value, rounded to the digits it has or to one part in twenty."""
    scale = {"": 1.0, "s": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2**20}
    text, _, unit = cell.replace(",", "").partition(" ")
    digits = len(text.partition(".")[2])
    return abs(float(text) * scale[unit] - value) <= max(0.05 * value, 0.501 * 10**-digits * scale[unit])


def test_who_may_be_away_follows_from_the_parameters() -> None:
    table = rows_after("## Who may be away")
    assert len(table) == 6
    for row in table:
        n, threshold, minimum, away = map(int, row)
        params = Params.derive(n)
        assert (threshold, minimum) == (params.threshold, params.minimum)
        assert away == params.tolerated_dropouts


def test_predicted_figures_are_those_of_the_forecast() -> None:
    table = rows_after("<!-- figures: forecast -->")
    assert len(table) == 8
    for row in table:
        size, sites = int(row[0].replace(",", "")), int(row[1])
        fast, slow = (
            forecast(plan_for(sites, 100), Sizes(size, size, None), link_mbit=speed)
            for speed in (1000.0, 100.0)
        )
        expected = (
            fast.upload_bytes,
            fast.setup_bytes,
            fast.study_sent_bytes,
            fast.hub_memory_bytes,
            fast.site_memory_bytes,
            fast.round_seconds,
            slow.round_seconds,
        )
        for cell, value in zip(row[2:], expected, strict=True):
            assert says(cell, value), (row, cell, value)


@pytest.mark.parametrize("heading", ["## From 3 to 100 sites", "## From 100 to 10,000"])
def test_the_capacity_plan_follows_from_its_formulas(heading: str) -> None:
    attempts, vector = 100, 4e6
    small = "3 to 100" in heading
    counts = (3, 10, 30, 100) if small else (300, 1000, 10_000)
    first = 2 if small else 1
    formulas = {
        "pairs": lambda n: n * (n - 1) / 2,
        "shares that a site deals": lambda n: n * 2 * attempts,
        "bytes of these shares": lambda n: n * 66 * attempts,
        "hashes of them": lambda n: n * 64 * attempts,
        "set-up sent by a site": lambda n: n * 130 * attempts,
        "set-up through the hub": lambda n: 130 * n * n * attempts,
        "hashes the hub keeps": lambda n: 64 * n * n * attempts,
        "joining": lambda n: 2800 * n * n,
        "keystream": lambda n: n * vector,
        "vectors on links": lambda n: n * vector * 2,
        "the same in seconds": lambda n: n * vector * 8 / 10e9 * 2,
    }
    seen = 0
    for row in rows_after(heading):
        key = next(key for key in formulas if row[0].startswith(key))
        for n, cell in zip(counts, row[first:], strict=True):
            assert says(cell, formulas[key](n)), (row[0], n, cell, formulas[key](n))
            seen += 1
    assert seen > 20
