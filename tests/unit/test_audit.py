"""Archives: what they contain, where they begin and end, and what their check finds."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from proofs import audit_tampering
from proofs.audit_world import START_MS, World, make
from stream_scorer.audit.archive import Archive
from stream_scorer.audit.export import Scope, export_archive, letter_offsets
from stream_scorer.audit.findings import AuditReport, Findings
from stream_scorer.audit.integrity import _check_starts
from stream_scorer.audit.models import keep_version
from stream_scorer.audit.parts import read_part
from stream_scorer.audit.recomputation import Models
from stream_scorer.audit.seal import Seal, render
from stream_scorer.audit.signature import Key, sign
from stream_scorer.audit.verify import Expected, verify_archive
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.cli.main import cli
from stream_scorer.ensemble.manifest import manifest_bytes, read_manifest
from stream_scorer.ensemble.registry import local_version
from stream_scorer.errors import CheckFailed, SettingsError, StreamScorerError, UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords

BATCH_MS = 500
END = 2 * START_MS
# The digest of the archive in `data`.
SAMPLE_DIGEST = "a8f792f9c23853b3b762a7a018fdedae8d2d17164c57d8a7fe13bef419132d58"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"), 1, 8, partitions=1)


def export(world: World, folder: Path, *, models: bool = True, **scope: Any) -> Seal:
    given = Scope(**{"since": None, "until": END} | scope)

    def keep(root: Path, version: tuple[str, str, str]) -> Any:
        return keep_version(root, world.folders[version[2]], *version, with_models=models)

    return export_archive(world.topics, Topics(), folder, given, keep, START_MS)


def verify(folder: Path, **expected: Any) -> AuditReport:
    return verify_archive(folder, Expected(**expected), 0.0)


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "whole"
    export(world, folder)
    return folder


def content(folder: Path) -> bytes:
    """Everything in the parts of an archive."""
    out = []
    for part in Archive(folder).seal.parts:
        for records in read_part(folder, part):
            out += [*filter(None, records.key), *filter(None, records.value), repr(records.headers).encode()]
    return b"\n".join(out)


def test_transactions_and_headers_of_the_user_are_not_kept(world: World, whole: Path, tmp_path: Path) -> None:
    found = content(whole)
    assert b"a secret of the user" not in found
    assert b"4111 1111" not in found
    assert b"card 4111" not in found
    assert b"bad_json" in found
    export(world, tmp_path / "all", with_transactions=True)
    assert b"4111 1111" in content(tmp_path / "all")
    assert verify(tmp_path / "all").different == 0


def test_a_period_has_whole_micro_batches_and_continues_without_a_gap(world: World, tmp_path: Path) -> None:
    first, second, later = (tmp_path / name for name in ("first", "second", "later"))
    middle = START_MS + 2 * BATCH_MS
    export(world, first, until=middle)
    with pytest.raises(UsageError, match="no scores"):  # nothing was scored in these 19 ms
        export(world, second, until=middle + 19, previous=Archive(first))
    export(world, second, previous=Archive(first))
    reports = [verify(first), verify(second, previous=first)]
    assert [(report.different, report.notes) for report in reports] == [(0, [])] * 2
    assert [report.records["lineage"] for report in reports] == [2, 6]
    export(world, later, since=START_MS + 3 * BATCH_MS)
    assert verify(later).records["scores"] == 5 * 49
    gap = verify(later, previous=first)
    assert {difference.kind for difference in gap.first} == {"previous"}
    assert any("begins at source offset" in difference.what for difference in gap.first)


def test_a_partition_that_the_next_archive_lacks_is_a_difference(tmp_path: Path) -> None:
    both = make(tmp_path / "world", 1, 8, partitions=2)
    export(both, tmp_path / "first", until=START_MS + 4 * BATCH_MS)
    export(both, tmp_path / "second", previous=Archive(tmp_path / "first"))
    assert verify(tmp_path / "second", previous=tmp_path / "first").different == 0
    topics, names = copy.deepcopy(both.topics), Topics()
    for name in (names.lineage, names.contributions, names.scores):
        del topics.records[SourcePartition(name, 1)]
    export(World(topics, both.folders), tmp_path / "partial", previous=Archive(tmp_path / "first"))
    assert verify(tmp_path / "partial").different == 0
    report = verify(tmp_path / "partial", previous=tmp_path / "first")
    assert report.by_kind == {"previous": 4}
    assert report.first[0].what.startswith("lineage[1] is missing")


def test_an_input_that_was_scored_twice_in_one_micro_batch_is_a_difference(world: World, tmp_path: Path) -> None:
    topics, names = copy.deepcopy(world.topics), Topics()
    for name in (names.scores, names.contributions):
        records = topics.records[SourcePartition(name, 0)]
        assert records[49][0] == 50  # offset 49 is a transaction marker
        records.insert(49, (49, *records[48][1:]))
    lineage = topics.records[SourcePartition(names.lineage, 0)]
    offset, timestamp, key, value, headers = lineage[0]
    lineage[0] = offset, timestamp, key, last_row_twice(value or b""), headers
    export(World(topics, world.folders), tmp_path / "archive")
    report = verify(tmp_path / "archive")
    assert report.by_kind == {"input": 1}
    assert report.first[0].what.endswith("was scored more than once")


def last_row_twice(value: bytes) -> bytes:
    return with_table(value, lambda table: pa.concat_tables([table, table.slice(len(table) - 1)]).combine_chunks())


def with_table(value: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """A lineage record whose table is changed, by Arrow's own reader and writer."""
    with pa.input_stream(pa.py_buffer(value), compression="zstd") as stream:
        table = change(pa.ipc.open_stream(stream).read_all())
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed, pa.ipc.new_stream(packed, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def test_dead_letters_after_the_last_score_belong_to_the_period(world: World, tmp_path: Path) -> None:
    topics, names = copy.deepcopy(world.topics), Topics()
    for _ in range(3):
        offset = topics.append(names.transactions, 0, START_MS + 9_000, None, b"bad")
        headers = [("source.topic", b"transactions"), ("source.offset", b"%d" % offset)]
        topics.append(names.dead_letters, 0, START_MS + 9_000, None, b"bad", headers)
    export(World(topics, world.folders), tmp_path / "a")
    report = verify(tmp_path / "a")
    assert (report.different, report.records["dead_letters"]) == (0, 8 + 3)
    assert Archive(tmp_path / "a").seal.inputs[0].next == offset + 1


def test_a_dead_letter_of_a_label_does_not_end_the_period(world: World, tmp_path: Path) -> None:
    topics, letters = copy.deepcopy(world.topics), SourcePartition(Topics().dead_letters, 0)
    # The last micro-batch's letter follows that of a label, and both come after the period.
    kept = topics.records[letters][-1]
    label = [("source.topic", b"labels"), ("source.offset", b"7")]
    topics.records[letters][-1] = kept[0], START_MS + 9_000, b"k", b"bad label", label
    topics.records[letters].append((kept[0] + 1, START_MS + 9_000, *kept[2:]))
    assert topics.next_offset[letters] == kept[0] + 2
    export(World(topics, world.folders), tmp_path / "a", until=START_MS + 8_000)
    report = verify(tmp_path / "a")
    assert (report.by_kind, report.records["dead_letters"]) == ({}, 8 + 1)


def test_an_input_that_was_dead_lettered_twice_is_a_difference(world: World, tmp_path: Path) -> None:
    topics, names = copy.deepcopy(world.topics), Topics()
    letters = topics.records[SourcePartition(names.dead_letters, 0)]
    letters.insert(1, (letters[0][0] + 1, *letters[0][1:]))  # at the offset of a transaction marker
    export(World(topics, world.folders), tmp_path / "a")
    (found,) = verify(tmp_path / "a").first
    assert (found.kind, found.what.endswith("was dead-lettered more than once")) == ("input", True)


def test_dead_letters_of_the_next_micro_batch_are_left_to_it(world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    # Between a dead letter of the third micro-batch and its scores.
    export(world, first, until=START_MS + 2 * BATCH_MS + 10)
    export(world, second, previous=Archive(first))
    reports = [verify(first), verify(second, previous=first)]
    assert [report.different for report in reports] == [0, 0]
    assert [report.records["lineage"] for report in reports] == [2, 6]
    assert sum(report.records["dead_letters"] for report in reports) == 8


def test_commands_that_were_written_again_contradict_the_archive_before(world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export(world, first, until=START_MS + 5 * BATCH_MS)
    export(world, second, previous=Archive(first))
    audit_tampering.seal_again(second, {"control": first_author})
    what = "control: command number 1 differs from that of the previous archive"
    assert [(found.kind, found.what) for found in verify(second, previous=first).first] == [("previous", what)]
    for name, change in (("offset", -1), ("timestamp", -60_000)):  # within what other checks tolerate
        later = tmp_path / name
        export(world, later, previous=Archive(first))
        audit_tampering.seal_again(later, {"control": moved(name, change)})
        assert what in [found.what for found in verify(later, previous=first).first]
    assert verify(second).notes


def test_a_scorer_that_ignores_a_command_is_a_difference(world: World, tmp_path: Path) -> None:
    topics, names = copy.deepcopy(world.topics), Topics()
    control, lineage = (SourcePartition(name, 0) for name in (names.control, names.lineage))
    last = msgspec.json.decode(topics.records[control][-1][3] or b"")
    for change in ({"action": "hold"}, {"expected_offset": 0}, {"ensemble": "other"}):  # none of them changes decisions
        command = last | {"expected_offset": topics.next_offset[control]} | change
        topics.append(names.control, 0, START_MS + 4_000, b"c", msgspec.json.encode(command))

    def differences(name: str, place: int, delay: int) -> dict[str, int]:
        offset, timestamp, *rest = topics.records[lineage][place]
        topics.records[lineage][place] = offset, timestamp + delay, *rest  # type: ignore[assignment]
        export(World(topics, world.folders), tmp_path / name)
        return verify(tmp_path / name).by_kind

    assert differences("last", -1, 3_600_000) == {}
    assert differences("near", 0, 240_000) == {}
    assert differences("first", 0, 70_000) == {"control": 49}


def moved(column: str, change: int) -> Any:
    """The first command with another offset or time."""

    def edit(_part: Any, records: Any) -> Any:
        columns = {name: getattr(records, name).copy() for name in ("offset", "timestamp")}
        columns[column][0] += change
        return RawRecords(
            records.topic, records.partition, *columns.values(), records.key, records.value, records.headers
        )

    return edit


def first_author(part: Any, records: Any) -> Any:
    values = list(records.value)
    values[0] = msgspec.json.encode(msgspec.json.decode(values[0]) | {"who": "somebody else"})
    return audit_tampering._with_values(records, values)


def without(world: World, topic: str, n: int) -> World:
    """The world after retention has removed the first `n` records of a topic."""
    topics = copy.deepcopy(world.topics)
    source = SourcePartition(topic, 0)
    topics.records[source] = topics.records[source][n:]
    return World(topics, world.folders)


@pytest.mark.parametrize("topic", ["contributions", "scores"])
def test_a_period_that_retention_has_shortened_is_refused(world: World, tmp_path: Path, topic: str) -> None:
    with pytest.raises(UsageError, match=rf"{topic}\[0\] ") as raised:
        export(without(world, topic, 3), tmp_path / "a")
    assert "--from" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_gone_are_noted(world: World, tmp_path: Path) -> None:
    shortened = without(world, "transactions", 3)
    original = shortened.topics.bounds
    shortened.topics.__class__ = type(
        "Shortened", (type(shortened.topics),),
        {"__slots__": (), "bounds": lambda self, topic: {s: (3, n) for s, (_, n) in original(topic).items()}
         if topic == "transactions" else original(topic)},
    )  # fmt: skip
    export(shortened, tmp_path / "a")
    report = verify(tmp_path / "a")
    assert report.different == 0
    assert "whether all inputs were scored is not checked" in report.notes[0]


def test_an_archive_without_models_says_that_it_recomputes_nothing(world: World, whole: Path, tmp_path: Path) -> None:
    export(world, tmp_path / "a", models=False)
    report = verify(tmp_path / "a")
    assert (report.different, report.recomputed, len(report.notes)) == (0, 0, 3)
    report = verify(tmp_path / "a", models=whole / "ensembles")
    assert (report.different, report.recomputed, report.notes) == (0, 8 * 49, [])
    # Under the right name, the models of a version that did not decide.
    decided, *_, other = (version.manifest_sha256 for version in Archive(whole).seal.versions)
    shutil.copytree(whole / "ensembles", tmp_path / "models")
    shutil.rmtree(tmp_path / "models" / decided)
    (tmp_path / "models" / other).rename(tmp_path / "models" / decided)
    report = verify(tmp_path / "a", models=tmp_path / "models")
    assert report.by_kind == {"model": 1}
    assert f"but the version that decided has {decided[:12]}" in report.first[0].what


def test_a_folder_that_exists_is_never_overwritten(world: World, whole: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        export(world, whole)


def secret(folder: Path) -> tuple[Path, Path]:
    path = folder / "key"
    path.write_text("5f" * 32)
    return path, path


def key_pair(folder: Path) -> tuple[Path, Path]:
    key, private, public = Ed25519PrivateKey.generate(), folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.parametrize("make_keys", [secret, key_pair])
def test_a_signature_shows_who_sealed(
    world: World, tmp_path: Path, make_keys: Callable[[Path], tuple[Path, Path]]
) -> None:
    (tmp_path / "other").mkdir()
    private, public = make_keys(tmp_path)
    seal = export(world, tmp_path / "a", until=START_MS + BATCH_MS)
    assert "not signed" in verify(tmp_path / "a").signature
    assert verify(tmp_path / "a", key=Key(public)).by_kind == {"signature": 1}
    sign(tmp_path / "a", seal, Key(private))
    assert verify(tmp_path / "a", key=Key(public)).signature.startswith("valid")
    assert "not checked" in verify(tmp_path / "a").signature
    other = key_pair(tmp_path / "other")[1]
    assert verify(tmp_path / "a", key=Key(other)).by_kind == {"signature": 1}
    audit_tampering.seal_again(tmp_path / "a", {"control": first_author})
    assert verify(tmp_path / "a", key=Key(public)).by_kind == {"signature": 1}


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    _, public = key_pair(tmp_path)
    (tmp_path / "short").write_text("short")
    with pytest.raises(UsageError, match="32 to"):
        Key(tmp_path / "short")
    with pytest.raises(UsageError, match="private key"):
        Key(public).sign("")
    pem = public.read_bytes()
    key = load_pem_public_key(pem)
    for n, data in enumerate((b"\xef\xbb\xbf" + pem, b"# of the auditor, since 2026-11\n" + pem)):
        (tmp_path / f"{n}.pem").write_bytes(data)
        with pytest.raises(UsageError, match="private key"):  # not a secret: it cannot sign
            Key(tmp_path / f"{n}.pem").sign("")
    forms = ((Encoding.OpenSSH, PublicFormat.OpenSSH), (Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    for form in forms:
        (tmp_path / "other").write_bytes(key.public_bytes(*form))
        with pytest.raises(UsageError, match="neither a PEM file nor a secret") as raised:
            Key(tmp_path / "other")
        assert "openssl pkey" in raised.value.hint
    (tmp_path / "other").write_bytes(b"".join(pem.splitlines()[1:-1]))
    with pytest.raises(UsageError, match="neither a PEM file nor a secret"):
        Key(tmp_path / "other")
    with pytest.raises(UsageError, match="cannot read the key"):
        Key(tmp_path / "none")


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli, arguments)
    error = found.exception
    if isinstance(error, StreamScorerError):
        return error.exit_code, found.stdout + str(error)
    assert error is None or isinstance(error, SystemExit), error
    return found.exit_code, found.stdout


def test_commands_read_an_archive(whole: Path, tmp_path: Path) -> None:
    archive = ["--archive", str(whole)]
    code, text = run("audit", "verify", str(whole), "--expect", Archive(whole).seal.digest, "--spec", str(CARDS_SPEC))
    assert code == 0
    assert "decided nothing in this archive" in text
    assert "The archive holds." in text
    code, text = run("verify", *archive, "--json", "--tolerance", "0")
    assert (code, json.loads(text)["different"], json.loads(text)["scores"]) == (0, 0, 8 * 49)
    code, text = run("explain", "e0-1", *archive, "--json")
    assert (code, json.loads(text)["score"]["event_id"], json.loads(text)["same"]) == (0, "e0-1", True)
    code, text = run("audit", "verify", str(whole), "--expect", "0" * 64, "--json")
    assert code == 3
    assert "is expected" in text
    assert run("audit", "verify", str(tmp_path))[0] == 2


def test_what_served_and_who_decided_it(whole: Path) -> None:
    moment = START_MS + 4 * BATCH_MS  # ben promotes the second version
    code, text = run(
        "ensemble", "at", str(moment - 1), str(moment), str(START_MS - 1), "--archive", str(whole), "--json"
    )
    before, after, none = (json.loads(line)["ensembles"] for line in text.splitlines())
    assert code == 0
    assert none == []
    canary = before[0]["state"]["canary"]
    assert (canary["share"], before[0]["since"]["canary"]["who"], before[0]["next"]["who"]) == (0.2, "ann", "ben")
    assert after[0]["state"]["champion"] == canary["version"]
    assert after[0]["decided"] == after[0]["since"]["champion"]
    assert (after[0]["decided"]["timestamp"], after[0]["decided"]["author"]) == (moment, "person")
    assert after[0]["first_score"] == {
        "at": moment + 20, "event_id": after[0]["first_score"]["event_id"], "version": canary["version"]["version"],
        "partition": 0,
    }  # fmt: skip
    code, text = run("ensemble", "at", "2023-11-14T22:13:22", "--archive", str(whole))
    assert code == 0
    assert "promote by ben (person)" in text
    last = str(START_MS + 60_000)
    code, text = run("ensemble", "at", last, "--archive", str(whole))
    assert "until        at least 2077-" in text
    code, text = run("ensemble", "at", last, str(END), "--archive", str(whole))
    assert code == 2
    assert "ends at 2077-" in text
    code, text = run("ensemble", "at", "2999-01-01", "--bootstrap", "127.0.0.1:1")
    assert code == 2
    assert "is in the future" in text
    for time in ("yesterday", "20261101", "1793577600"):  # no time, a date without hyphens, seconds
        assert run("ensemble", "at", time, "--archive", str(whole))[0] == 2


def test_a_seal_that_is_no_seal_is_a_difference(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "seal.json").write_bytes(b"{}")
    with pytest.raises(CheckFailed, match="was altered"):
        Archive(tmp_path)
    seal = json.loads((whole / "seal.json").read_bytes())
    seal["parts"][0]["file"] = "topics/../../../etc/passwd"
    (tmp_path / "seal.json").write_text(json.dumps(seal))
    with pytest.raises(CheckFailed, match="regex"):
        Archive(tmp_path)


def test_a_partition_that_was_never_scored_does_not_stop_the_next_archive(world: World, tmp_path: Path) -> None:
    first, second, topics, names = tmp_path / "first", tmp_path / "second", copy.deepcopy(world.topics), Topics()
    for name in (names.lineage, names.contributions, names.scores):
        topics.records[SourcePartition(name, 1)], topics.next_offset[SourcePartition(name, 1)] = [], 0
    idle = World(topics, world.folders)
    export(idle, first, until=START_MS + 2 * BATCH_MS)
    seal = export(idle, second, previous=Archive(first))
    assert [each.partition for each in seal.inputs] == [0]
    assert verify(second, previous=first).different == 0


def test_inputs_of_a_partition_that_was_not_scored_are_reported(tmp_path: Path) -> None:
    both = make(tmp_path / "world", 1, 8, partitions=2)
    idle, names = World(copy.deepcopy(both.topics), both.folders), Topics()
    for name in (names.lineage, names.contributions, names.scores):
        source = SourcePartition(name, 1)
        idle.topics.records[source], idle.topics.next_offset[source] = [], 0
    # Dead letters are decisions, so that what came before them is missing; what follows them is undecided.
    export(idle, tmp_path / "first", until=START_MS + 4 * BATCH_MS)
    seal = export(idle, tmp_path / "second", previous=Archive(tmp_path / "first"))
    reports = [verify(tmp_path / "first"), verify(tmp_path / "second", previous=tmp_path / "first")]
    ends = [
        next(each.next for each in Archive(tmp_path / name).seal.inputs if each.partition)
        for name in ("first", "second")
    ]
    assert [report.by_kind for report in reports] == [{"input": ends[0] - 4}, {"input": ends[1] - ends[0] - 4}]
    assert [report.undecided for report in reports] == [0, 400 - ends[1]]
    assert [(each.partition, each.next) for each in seal.inputs] == [(0, 400), (1, ends[1])]
    source = SourcePartition(names.dead_letters, 1)
    idle.topics.records[source], idle.topics.next_offset[source] = [], 0
    export(idle, tmp_path / "whole")
    report = verify(tmp_path / "whole")
    assert (report.different, report.undecided) == (0, 400)
    assert "transactions[1]: 400 inputs from offset 0 on were not decided" in report.notes[0]
    # What is decided after the period belongs to the next archive.
    export(idle, tmp_path / "before", until=START_MS + 4 * BATCH_MS)
    export(both, tmp_path / "after", previous=Archive(tmp_path / "before"))
    report = verify(tmp_path / "after", previous=tmp_path / "before")
    assert (report.by_kind, report.undecided, report.records["lineage"]) == ({}, 0, 4 + 8)


def test_commands_that_cannot_be_read_are_a_difference_and_no_mistake(world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export(world, first, until=START_MS + 2 * BATCH_MS)
    export(world, second, previous=Archive(first))
    (second / "topics/control/0.parquet").write_bytes(b"torn")
    assert {"file", "previous"} <= set(verify(second, previous=first).by_kind)
    with pytest.raises(UsageError, match="is not an archive"):
        verify(second, previous=tmp_path / "none")


def test_a_seal_that_miscounts_its_records_is_a_difference(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    audit_tampering._miscount(tmp_path / "a")
    assert verify(tmp_path / "a").by_kind == {"seal": 1}


def test_an_archive_without_scores_does_not_hold(whole: Path, tmp_path: Path) -> None:
    seal, control = Archive(whole).seal, "topics/control/0.parquet"
    (tmp_path / control).parent.mkdir(parents=True)
    shutil.copy(whole / control, tmp_path / control)
    parts = [part for part in seal.parts if part.file == control]
    (tmp_path / "seal.json").write_bytes(render(msgspec.structs.replace(seal, inputs=[], versions=[], parts=parts)))
    audit_tampering.seal_again(tmp_path, {})
    code, text = run("audit", "verify", str(tmp_path))
    assert code == 2
    assert "has no scores" in text
    assert "The archive holds." not in text


def test_an_error_of_the_registry_is_not_one_of_the_folder(world: World, tmp_path: Path) -> None:
    def keep(*_: Any) -> Any:
        raise OSError("connection reset")

    with pytest.raises(OSError, match="connection reset"):
        export_archive(world.topics, Topics(), tmp_path / "a", Scope(None, END), keep, START_MS)


def test_an_empty_digest_is_no_check_that_succeeds(whole: Path) -> None:
    assert run("audit", "verify", str(whole), "--expect", "")[0] == 2


def test_a_library_that_is_not_installed_is_no_difference() -> None:
    def load(*_version: str) -> Any:
        raise SettingsError("an ONNX member needs onnx", hint="Install onnx.")

    findings = Findings()
    assert not Models(load, findings).has("cards", "1", "")
    assert findings.different == 0
    assert findings.notes == ["scores of cards 1 are not recomputed: an ONNX member needs onnx. Install onnx."]


def test_a_version_number_with_two_manifests_is_recomputed_with_the_models_of_each(
    world: World, tmp_path: Path
) -> None:
    """As after a registry was created again: all three versions have the number 1."""
    topics = copy.deepcopy(world.topics)
    names = {local_version(digest) for digest in world.folders}
    for records in topics.records.values():
        for place, (offset, timestamp, key, value, headers) in enumerate(records):
            records[place] = offset, timestamp, key, renumbered(value, names), headers
    export(World(topics, world.folders), tmp_path / "a")
    report = verify(tmp_path / "a")
    assert (report.different, report.recomputed, report.scores) == (0, 8 * 49, {"cards 1": 8 * 49})
    code, text = run("verify", "--archive", str(tmp_path / "a"))
    assert (code, "392 scores recomputed (392 by cards 1): 0 differ" in text) == (0, True)
    assert run("explain", "e0-399", "--archive", str(tmp_path / "a"))[0] == 0


def renumbered(value: bytes | None, names: set[str]) -> bytes | None:
    """The value with "1" for each of the versions `names`."""
    if value is None or b"local-" not in value:
        return renumbered_lineage(value, names) if value and value[:4] == b"\x28\xb5\x2f\xfd" else value
    for name in names:
        value = value.replace(name.encode(), b"1")
    return value


def renumbered_lineage(value: bytes, names: set[str]) -> bytes:
    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({b"lineage": renumbered(table.schema.metadata[b"lineage"], names)})

    return with_table(value, change)


def test_a_contribution_without_a_source_names_the_record(world: World, tmp_path: Path) -> None:
    topics, source = copy.deepcopy(world.topics), SourcePartition(Topics().contributions, 0)
    offset, timestamp, key, _, headers = topics.records[source][0]
    topics.records[source][0] = offset, timestamp, key, b'{"event_id": "x"}', headers
    with pytest.raises(UsageError, match=r"offset \d+ is not a record of this product"):
        export(World(topics, world.folders), tmp_path / "archive")


def test_a_dead_letter_with_an_impossible_offset_has_none() -> None:
    headers = [("source.topic", b"t"), ("source.offset", b"9" * 30)]
    one = RawRecords("d", *(np.zeros(1, np.int64) for _ in range(3)), [None], [b""], [headers])
    assert letter_offsets(one, "t").tolist() == [-1]


def test_an_archive_of_an_earlier_release_holds() -> None:
    """It was made once: its digests, and those of its manifests, must not depend on the release that reads it.

    A field that is added to a manifest must not be written where it has its default.
    """
    folder = Path(__file__).parent / "data" / "archive"
    report = verify_archive(folder, Expected(digest=SAMPLE_DIGEST), 1e-9)
    assert (report.different, report.first, report.recomputed, report.notes) == (0, [], 4 * 49, [])
    for path in folder.rglob("manifest.json"):
        assert manifest_bytes(read_manifest(path.parent)) == path.read_bytes()


def test_an_archive_of_a_newer_release_is_named_so(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    seal = json.loads((whole / "seal.json").read_bytes()) | {"digest": "", "region": "eu"}
    stated = hashlib.sha256(msgspec.json.encode(seal)).hexdigest()
    path = tmp_path / "a" / "seal.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(seal | {"digest": stated}), indent=1) + b"\n")
    report = verify(tmp_path / "a", digest=stated)
    assert report.different == 0
    assert report.notes == ["the fields region of seal.json are not checked: the archive was made by a newer release"]
    path.write_bytes(path.read_bytes().replace(b'"eu"', b'"us"'))
    assert verify(tmp_path / "a").by_kind == {"seal": 1}
    path.write_bytes(msgspec.json.encode({"format": 2, "parts": "of another form"}))
    with pytest.raises(UsageError, match="has format 2") as raised:
        Archive(tmp_path / "a")
    assert "newer release" in raised.value.hint


def test_archives_go_on_after_input_offsets_began_again(world: World, tmp_path: Path) -> None:
    """As if Kafka lost the last 50 inputs of the first archive, and a new group read on from there."""
    topics, names, middle = copy.deepcopy(world.topics), Topics(), START_MS + 4 * BATCH_MS
    for name in (names.lineage, names.contributions, names.dead_letters, names.transactions):
        records = topics.records[SourcePartition(name, 0)]
        for place, (offset, timestamp, key, value, headers) in enumerate(records):
            if name == names.transactions:
                records[place] = offset - 50, timestamp, key, value, headers
            elif timestamp >= middle:
                records[place] = offset, timestamp, key, *fifty_lower(name, value or b"", headers)
    again = World(topics, world.folders)
    first, second = tmp_path / "first", tmp_path / "second"
    export(world, first, until=middle)
    with pytest.raises(UsageError, match="was scored again") as raised:
        export(again, tmp_path / "both")
    assert "--after" in raised.value.hint
    seal = export(again, second, previous=Archive(first))
    assert (seal.inputs[0].first, seal.inputs[0].restarted) == (150, True)
    report = verify(second, previous=first)
    assert (report.by_kind, report.recomputed) == ({}, 4 * 49)
    assert ["begins again at offset 150" in note for note in report.notes] == [True]


def test_a_gap_after_the_previous_archive_is_found_whatever_the_seal_states(world: World, tmp_path: Path) -> None:
    export(world, tmp_path / "a")
    seal = Archive(tmp_path / "a").seal
    ended = seal.inputs[0].first + 1

    def found(first: int, *, restarted: bool) -> int:
        findings = Findings()
        inputs = [msgspec.structs.replace(seal.inputs[0], first=first, restarted=restarted)]
        before = [msgspec.structs.replace(seal.inputs[0], next=ended)]
        _check_starts(*(msgspec.structs.replace(seal, inputs=each) for each in (inputs, before)), findings)
        return sum(findings.by_kind.values())

    assert [found(ended + lag, restarted=False) for lag in (-1, 0, 1)] == [1, 0, 1]
    assert [found(ended + lag, restarted=True) for lag in (-1, 0, 1)] == [0, 0, 1]


def fifty_lower(topic: str, value: bytes, headers: Any) -> tuple[bytes, Any]:
    """A record of a transaction whose offset is 50 lower."""
    if topic == Topics().contributions:
        found = msgspec.json.decode(value)
        found["source"]["offset"] -= 50
        return msgspec.json.encode(found), headers
    if topic == Topics().lineage:

        def change(table: pa.Table) -> pa.Table:
            lower = pa.array([offset - 50 for offset in table["offset"].to_pylist()], pa.int64())
            return table.set_column(1, table.schema.field("offset"), lower)

        value = with_table(value, change)
    return value, [(name, b"%d" % (int(text) - 50) if "offset" in name else text) for name, text in headers]
