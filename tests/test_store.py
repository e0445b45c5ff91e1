"""Artifacts are whole or not there; damage is found before use; runs are continued, numbered and found again."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tunesmith.errors import StoreError
from tunesmith.store import MANIFEST, Identity, Store, find_run, list_runs, open_run, verify, write_atomic
from tunesmith.types import Artifact, Outcome


def identity(**section: object) -> Identity:
    return Identity("ingest", 1, dict(section), {})


def commit(store: Store, who: Identity, files: dict[str, str], **facts: object) -> Artifact:
    store.create()
    partial = store.partial_dir(who)
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
    return store.commit(who, Outcome("thing", {"rows": 1}, dict(facts)), 1.0)


def test_the_key_depends_on_stage_version_section_and_inputs() -> None:
    base = Identity("a", 1, {"x": 1}, {"in": "d"})
    others = [
        Identity("b", 1, {"x": 1}, {"in": "d"}),
        Identity("a", 2, {"x": 1}, {"in": "d"}),
        Identity("a", 1, {"x": 2}, {"in": "d"}),
        Identity("a", 1, {"x": 1}, {"in": "e"}),
    ]
    assert len({base.key, *(other.key for other in others)}) == 5
    assert base.key == Identity("a", 1, {"x": 1}, {"in": "d"}).key


def test_an_artifact_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    store, who = Store(tmp_path), identity(a=1)
    partial, final = store.partial_dir(who), commit(store, who, {"deep/rows.jsonl": "{}"}).path
    rename = calls.index(f"replace {partial} {final}")
    before = [
        f"fsync {path}" for path in (partial / "deep" / "rows.jsonl", partial / "deep", partial / "manifest.json")
    ]
    assert set(before) < set(calls[:rename]) and calls[rename - 1] == f"fsync {partial}"
    assert calls.index(before[0]) < calls.index(before[1])
    assert calls[rename + 1 :] == [f"fsync {final.parent}", f"fsync {partial.parent}"]


def test_a_commit_moves_everything_but_scratch_in_one_rename(tmp_path: Path) -> None:
    store, who = Store(tmp_path), identity(a=1)
    assert store.find(who) is None
    artifact = commit(store, who, {"rows.jsonl": "{}\n", "scratch/big": "x", "logs/speed": "fast"})
    assert not store.partial_dir(who).exists()
    assert sorted(artifact.manifest.files) == ["logs/speed", "rows.jsonl"]
    found = store.find(who)
    assert found is not None
    assert found.manifest == artifact.manifest


def test_the_digest_ignores_logs_and_provenance_but_not_content_or_facts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = commit(store, identity(n=1), {"rows": "a", "logs/t": "1 s"}, size=1).manifest.digest
    same = commit(store, identity(n=2), {"rows": "a", "logs/t": "9 s"}, size=1).manifest.digest
    other_fact = commit(store, identity(n=3), {"rows": "a"}, size=2).manifest.digest
    other_content = commit(store, identity(n=4), {"rows": "b"}, size=1).manifest.digest
    assert first == same
    assert len({first, other_fact, other_content}) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest"])
def test_damage_is_found_before_use(tmp_path: Path, damage: str) -> None:
    store, who = Store(tmp_path), identity(a=1)
    path = commit(store, who, {"rows": "abcdef"}).path
    target = path / (MANIFEST if damage == "manifest" else "rows")
    if damage == "delete":
        target.unlink()
    elif damage == "manifest":
        target.write_text(target.read_text().replace('"rows": 1', '"rows": "one"'))
    else:
        target.write_bytes(b"abcdeX" if damage == "flip" else b"abc")
    with pytest.raises(StoreError) as caught:
        store.find(who)
    assert str(path) in str(caught.value)
    store.set_aside(who)
    assert store.find(who) is None


def test_a_fact_changed_by_hand_is_found(tmp_path: Path) -> None:
    artifact = commit(Store(tmp_path), identity(a=1), {"rows": "a"}, num_train=3)
    artifact.manifest.facts["num_train"] = 4
    with pytest.raises(StoreError, match="changed by hand"):
        verify(artifact)


def test_an_unfinished_folder_is_no_artifact(tmp_path: Path) -> None:
    store, who = Store(tmp_path), identity(a=1)
    store.partial_dir(who).mkdir(parents=True)
    (store.partial_dir(who) / "rows").write_text("half")
    assert store.find(who) is None


def _hold(root: Path, ready: object, release: object) -> None:
    store = Store(root)
    with store.lock(identity(a=1)):
        ready.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_two_processes_cannot_work_on_one_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    spawn = multiprocessing.get_context("spawn")
    ready, release = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(StoreError, match="another process"), store.lock(identity(a=1)):
            pass
        with store.lock(identity(a=2)):
            pass
        holder.kill()  # as kill -9 does: the lock is free again
        holder.join(10)
        with store.lock(identity(a=1)):
            pass
    finally:
        holder.kill()


def test_an_unfinished_run_of_the_same_recipe_is_continued_and_a_finished_one_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    first = open_run(store, "desk", "d1")
    assert open_run(store, "desk", "d1").name == first.name == "desk-001"
    assert open_run(store, "desk", "d2").name == "desk-002"
    second = open_run(store, "desk", "d2")
    second.update(status="finished")
    assert open_run(store, "desk", "d2").name == "desk-003"
    assert [run.name for run in list_runs(tmp_path)] == ["desk-001", "desk-002", "desk-003"]


def test_a_run_is_found_by_name_by_recipe_by_folder_and_as_the_latest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    run = open_run(store, "desk", "d1")
    artifact = commit(store, identity(a=1), {"rows": "a"})
    run.link("ingest", artifact)
    for reference in ("desk", "desk-001", "latest", str(tmp_path / "desk-001")):
        found = find_run(reference, tmp_path).artifact("ingest")
        assert found is not None
        assert found.manifest.digest == artifact.manifest.digest
    assert (run.path / "ingest" / "rows").read_text() == "a"
    with pytest.raises(StoreError, match="no run 'desks'") as caught:
        find_run("desks", tmp_path)
    assert "desk-001" in str(caught.value.hint)


def test_a_root_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="run folder") as caught:
        Store(tmp_path / "file" / "runs").create()
    assert "--root" in str(caught.value.hint)


def test_a_full_disk_names_path_and_size_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.store.os.fsync", full)
    with pytest.raises(StoreError, match="no room to write 5 bytes") as caught:
        write_atomic(path, b"newer")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    run = open_run(store, "desk", "d1")
    again = Store(tmp_path).lock_run(open_run(store, "desk", "d1"))
    with store.lock_run(run), pytest.raises(StoreError, match="another process is running desk-001"), again:
        pass


@pytest.mark.parametrize("content", [b"", b'{"name": ', b"[]"])
def test_a_damaged_record_is_named_and_the_next_run_takes_a_new_number(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.create()
    run = open_run(store, "desk", "d1")
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(StoreError, match="record is damaged"):
        _ = run.info
    assert run.damaged
    assert open_run(store, "desk", "d1").name == "desk-002"
    assert find_run("latest", tmp_path).name == "desk-002"
