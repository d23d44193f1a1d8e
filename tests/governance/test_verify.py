"""Verification: what holds is told step by step; what cannot be told is listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.governance.releases import World, failure, identity, make_world

from cloister.errors import InputError, VerificationError
from cloister.governance import Released, TrustAnchors, verify_files, verify_release
from cloister.governance import verify as module_or_function
from cloister.governance.folder import CERTIFICATE, MODEL, PLAN, PROOF, SEALED_MODEL, read_release
from cloister.governance.verify import STEPS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("verify"), lost={2: {"site1"}})


@pytest.fixture(scope="module")
def released(world: World) -> Released:
    return world.release()


def test_the_steps_of_the_docstring_are_the_steps_made(world: World, released: Released) -> None:
    verdict = verify_release(released.folder, world.anchors)
    assert verdict.ok
    assert verdict.failed is None
    assert [step.number for step in verdict.steps] == list(range(1, 13))
    assert tuple(step.name for step in verdict.steps) == STEPS
    text = module_or_function.__doc__ or ""
    for number, name in enumerate(STEPS, start=1):
        assert f"{number}." + " " * (4 - len(str(number)) - 1) + name in text
    verdict.require()
    assert verdict.files == released.files
    assert verdict.certificate == released.certificate


def test_the_labels_in_the_code_are_the_numbers() -> None:
    import inspect

    from cloister.governance import checks

    for number, check in enumerate(checks.CHECKS, start=1):
        assert f"    # {number}. " in inspect.getsource(check)
        assert check.__name__ == "_" + STEPS[number - 1]


def test_what_cannot_be_told_is_said(world: World, released: Released) -> None:
    unchecked = " ".join(verify_release(released.folder, world.anchors).unchecked)
    for word in ("revocation", "time", "honest execution", "rows", "log"):
        assert f"{word}:" in unchecked


def test_the_first_failure_is_named_and_later_steps_are_not_made(world: World, released: Released) -> None:
    verdict = verify_files({**released.files, MODEL: b"another"}, world.anchors)
    assert failure(verdict) == (4, "files")
    assert [step.ok for step in verdict.steps] == [True] * 3 + [False] + [None] * 8
    assert all(step.detail == "not reached" for step in verdict.steps[4:])
    with pytest.raises(VerificationError, match=r"step 4, files: model\.safetensors is not what") as caught:
        verdict.require()
    assert caught.value.exit_code == 1


def test_trust_is_the_verifiers(world: World, released: Released) -> None:
    nobody = TrustAnchors.of([])
    assert failure(verify_release(released.folder, nobody)) == (2, "signature")
    hub_alone = TrustAnchors.of([world.hub.public])
    assert failure(verify_release(released.folder, hub_alone)) == (6, "roster")
    without_hub = TrustAnchors.of([site.public for site in world.sites])
    assert failure(verify_release(released.folder, without_hub)) == (2, "signature")
    for missing in range(4):
        others = [site.public for n, site in enumerate(world.sites) if n != missing]
        verdict = verify_release(released.folder, TrustAnchors.of([world.hub.public, *others]))
        assert failure(verdict) == (6, "roster")
        assert verdict.failed is not None
        assert f"site{missing}" in verdict.failed.detail
    strangers = [identity("stranger").public, identity("reader").public]
    more = TrustAnchors.of([*world.anchors.identities, *strangers])
    assert verify_release(released.folder, more).ok


def test_a_namesake_with_other_keys_is_not_trusted(world: World, released: Released) -> None:
    from cloister.crypto import Identity

    namesakes = [Identity.generate(each.name).public for each in world.anchors.identities]
    assert failure(verify_release(released.folder, TrustAnchors.of(namesakes))) == (2, "signature")


def test_no_folder_is_no_verdict(tmp_path: Path, world: World) -> None:
    for path in (tmp_path / "absent", tmp_path / "file"):
        if path.name == "file":
            path.write_text("x")
        with pytest.raises(InputError, match="cannot read the release"):
            verify_release(path, world.anchors)


def copy_of(released: Released, target: Path) -> Path:
    for name, content in released.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


def test_a_copy_verifies(released: Released, world: World, tmp_path: Path) -> None:
    assert verify_release(copy_of(released, tmp_path), world.anchors).ok


@pytest.mark.parametrize("name", [CERTIFICATE, PROOF, PLAN, MODEL])
def test_a_missing_file_is_named(name: str, released: Released, world: World, tmp_path: Path) -> None:
    (copy_of(released, tmp_path) / name).unlink()
    verdict = verify_release(tmp_path, world.anchors)
    assert failure(verdict) == (1, "folder")
    assert verdict.failed is not None
    assert name in verdict.failed.detail


@pytest.mark.parametrize(
    "name",
    [
        "README",
        "model.pkl",
        ".hidden",
        "manifests/extra.txt",
        "manifests/../certificate.dsse.json",
        "manifests/UPPER.dsse.json",
        "other/site0.dsse.json",
        "countersignatures/site0.dsse.json",
        "countersignatures/00/site0.dsse.json",
        "countersignatures/x/site0.dsse.json",
        "countersignatures/0/0/site0.dsse.json",
        "manifests/0/site0.dsse.json",
        SEALED_MODEL,
    ],
)
def test_a_file_that_does_not_belong_is_refused(
    name: str, released: Released, world: World, tmp_path: Path
) -> None:
    if ".." in name:
        files = {**released.files, name: b"x"}
        assert failure(verify_files(files, world.anchors)) == (1, "folder")
        return
    target = copy_of(released, tmp_path) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"x")
    assert failure(verify_release(tmp_path, world.anchors)) == (1, "folder")


def test_a_well_named_file_of_nobody_is_refused(released: Released, world: World, tmp_path: Path) -> None:
    copy_of(released, tmp_path)
    (tmp_path / "manifests" / "site9.dsse.json").write_bytes(b"x")
    assert failure(verify_release(tmp_path, world.anchors)) == (4, "files")


def test_links_folders_and_pipes_are_refused(released: Released, world: World, tmp_path: Path) -> None:
    for number, kind in enumerate(("link", "folder", "pipe", "linked folder")):
        folder = copy_of(released, tmp_path / str(number))
        if kind == "linked folder":
            (folder / "manifests").rename(tmp_path / "manifests")
            (folder / "manifests").symlink_to(tmp_path / "manifests")
        else:
            (folder / PLAN).unlink()
            if kind == "link":
                (tmp_path / "plan").write_bytes(released.files[PLAN])
                (folder / PLAN).symlink_to(tmp_path / "plan")
            elif kind == "folder":
                (folder / PLAN).mkdir()
            else:
                os.mkfifo(folder / PLAN)
        assert failure(verify_release(folder, world.anchors)) == (1, "folder"), kind


def test_a_file_beyond_its_limit_is_refused_unread(released: Released, world: World, tmp_path: Path) -> None:
    copy_of(released, tmp_path)
    with (tmp_path / PLAN).open("wb") as file:
        file.truncate(1 << 40)  # sparse
    verdict = verify_release(tmp_path, world.anchors)
    assert failure(verdict) == (1, "folder")
    assert verdict.failed is not None
    assert "larger" in verdict.failed.detail


def test_too_many_files_are_refused(
    released: Released, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(released, tmp_path)
    monkeypatch.setattr("cloister.governance.folder.MOST_FILES", len(released.files))
    assert verify_release(tmp_path, world.anchors).ok
    (tmp_path / "manifests" / "more.dsse.json").touch()
    verdict = verify_release(tmp_path, world.anchors)
    assert failure(verdict) == (1, "folder")
    assert verdict.failed is not None
    assert "more than" in verdict.failed.detail


def test_files_beyond_the_limit_together_are_refused_unread(
    released: Released, world: World, tmp_path: Path
) -> None:
    copy_of(released, tmp_path)
    for number in range(90):
        with (tmp_path / "manifests" / f"s{number}.dsse.json").open("wb") as file:
            file.truncate(16 << 20)  # sparse
    verdict = verify_release(tmp_path, world.anchors)
    assert failure(verdict) == (1, "folder")
    assert verdict.failed is not None
    assert "together" in verdict.failed.detail


def test_what_is_read_is_what_is_checked(released: Released, world: World) -> None:
    assert read_release(released.folder) == released.files


def test_a_release_of_a_study_in_the_ring_of_8_bits_verifies(tmp_path: Path) -> None:
    world = make_world(tmp_path, aggregation={"bits": 8})
    released = world.release()
    assert released.certificate.statement.predicate.aggregation.bits == 8
    assert verify_release(released.folder, world.anchors).ok
