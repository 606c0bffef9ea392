"""hostile-artifacts: whatever an ensemble's files hold, nothing of it is executed, and it is refused with a code.

A good ensemble with a member of every format is altered in every way we could think of: pickles in place of members
and inside archives, names that lead out of the folder, other digests and sizes, files cut short, absurd sizes and
numbers, ONNX files with data elsewhere, custom operators, graphs in graphs, archives that unpack to gigabytes. Each
is loaded as a scorer loads it, in a process of its own with bounded memory; every payload would leave a mark if it
ran. Then bits are flipped at `N` places of each member's file, digests made to match: the load is refused, or scores
are as before, and the process never dies. A flip that changes a few scores and none of the self-test's may pass, as any
change may that comes with its own digests; there must be hardly any.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from proofs.kit import ROOT, Context, Result
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Thresholds, Training, sha256_hex

N = 300
AS_BEFORE, OTHER_SCORES = "as before", "other scores"
# The share of flipped bits, digests made to match, that may change scores by more than the self-test allows.
MAX_UNSEEN = 0.01
WIDTH = 6
_MARK = "EXECUTED"
# What a child may map: libraries and compiled loops take two of them.
_MEMORY_BYTES = 6 * 2**30
_FORMATS = {"dense": "json", "gbdt": "txt", "xgb": "ubj", "net": "onnx", "forest": "skops"}
Files = dict[str, bytes]
# The file's bytes by name, and what is to be refused how: any of these codes.
Case = tuple[str, Files, set[str]]


class _Payload:
    """A pickle of this leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    mark = context.folder / _MARK
    good = _good(context.folder / "good", context.seed)
    cases = list(_cases(good, mark))
    reports = _load_all(context, cases, "cases")
    wrong = {}
    for name, _, codes in cases:
        found = reports.get(name, {"code": "the process died"})
        if found["code"] not in codes or found["marked"]:
            wrong[name] = found
    seconds = [found["seconds"] for found in reports.values()]
    result.figures["by_code"] = _count(found["code"] for found in reports.values())
    result.figures["longest_load_s"] = max(seconds, default=0.0)
    result.figures["wrong"] = wrong
    result.at_least("cases", len(reports), 70)
    result.check("each is refused with its code, and nothing of it ran", not wrong)
    links = _odd_files(context, good)
    result.figures["odd_files"] = links
    result.check("what is no file, and a link to one elsewhere, is refused", set(links.values()) <= {
        "artifact_path", "artifact_digest", "artifact_size"
    })  # fmt: skip
    flips = list(_flips(good, n if not context.broken else min(n, 20), context.seed))
    reports = _load_all(context, flips, "flips")
    died = [name for name, _, _ in flips if name not in reports]
    result.figures["flips"] = _count(found["code"] for found in reports.values())
    result.figures["died"] = died[:5]
    result.at_least("flips_tried", len(flips), len(_FORMATS) * (20 if context.broken else min(n, 20)))
    result.check("no flipped bit ends the process", not died)
    outcomes = [found["code"] for found in reports.values()]
    unseen = outcomes.count(OTHER_SCORES)
    result.check(
        "a flipped bit is refused with a code, or the model loads",
        all(code in (AS_BEFORE, OTHER_SCORES) or code.startswith("artifact_") for code in outcomes),
    )
    result.check(f"at most {MAX_UNSEEN:.0%} change scores unseen", unseen <= MAX_UNSEEN * len(flips))
    result.check("nothing left a mark", not mark.exists())
    outside = [path.name for path in context.folder.iterdir()]
    result.check("nothing is written outside", set(outside) <= {"good", "cases", "flips", "odd", "cache", "child.log"})
    return result


def _good(folder: Path, seed: int) -> Files:
    """An ensemble with a member of every format."""
    import lightgbm
    import xgboost
    from onnx import TensorProto, helper
    from sklearn.ensemble import RandomForestClassifier
    from skops.io import dumps

    from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, WIDTH))
    y = x @ rng.normal(size=WIDTH) > 0
    parameters = {"objective": "binary", "num_leaves": 7, "verbosity": -1, "num_threads": 1, "seed": 1}
    text = lightgbm.train(parameters, lightgbm.Dataset(x, y), 8).model_to_string().encode()
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, xgboost.DMatrix(x, y), 8)
    weights = rng.normal(size=WIDTH)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Sigmoid", ["z"], ["p"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [WIDTH, 1], weights.tolist()),
            helper.make_tensor("b", TensorProto.FLOAT, [1], [0.1]),
        ],
    )
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    data: dict[str, tuple[Any, bytes]] = {
        "dense": ("dense-json", encode_dense(Dense([Layer([[w] for w in weights.tolist()], [0.0], "logistic")]))),
        "gbdt": ("lightgbm-text", text),
        "xgb": ("xgboost-ubj", bytes(booster.save_raw("ubj"))),
        "net": ("onnx", net.SerializeToString()),
        "forest": ("skops", bytes(dumps(RandomForestClassifier(4, max_depth=4, random_state=1).fit(x, y)))),
    }
    features = [f"f{i}" for i in range(WIDTH)]
    drafts = [
        Draft(name, kind, blob, features, [Input()] * WIDTH, NoCalibrator(), 1.0) for name, (kind, blob) in data.items()
    ]
    outline = Outline(
        "cards", 1, "cards", "a" * 64, "b" * 64, features, NoCalibrator(), Thresholds("p", 0.5, 0.9), 0.5,
        Training(0, 1, 2, 1, "r", "0" * 64, {}),
    )  # fmt: skip
    compose_ensemble(folder, outline, drafts, x)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _with(good: Files, member: str, blob: bytes, *, matching: bool = True) -> Files:
    """Another file for a member; `matching`: the manifest has its digest and size."""
    file = f"{member}.{_FORMATS[member]}"
    files = good | {file: blob}
    if not matching:
        return files

    def match(manifest: dict[str, Any]) -> None:
        entry = next(m for m in manifest["members"] if m["name"] == member)
        entry["sha256"], entry["size"] = sha256_hex(blob), len(blob)

    return _manifest(files, match)


def _manifest(good: Files, change: Callable[[dict[str, Any]], Any]) -> Files:
    manifest = msgspec.json.decode(good["manifest.json"])
    change(manifest)
    return good | {"manifest.json": msgspec.json.encode(manifest, order="deterministic") + b"\n"}


def _cases(good: Files, mark: Path) -> Iterator[Case]:
    evil = pickle.dumps(_Payload(mark))
    for member, suffix in _FORMATS.items():
        blob = good[f"{member}.{suffix}"]
        yield f"{member}: a pickle", _with(good, member, evil), {"artifact_executable"}
        yield f"{member}: an old pickle", _with(good, member, pickle.dumps(_Payload(mark), 0)), {"artifact_format"}
        yield (
            f"{member}: another digest",
            _with(good, member, _flip(blob, len(blob) // 2), matching=False),
            {"artifact_digest"},
        )
        yield f"{member}: longer", _with(good, member, blob + b" ", matching=False), {"artifact_size"}
        yield f"{member}: cut short", _with(good, member, blob[:-1], matching=False), {"artifact_size"}
        yield f"{member}: missing", {k: v for k, v in good.items() if k != f"{member}.{suffix}"}, {"artifact_missing"}
        for part in (0, 1, 10, len(blob) // 3, len(blob) // 2, len(blob) - 5):
            codes = {"artifact_format"} | ({"artifact_manifest"} if part == 0 else set())
            # Some formats end in what does not matter: then scores must be as before.
            codes |= {"as before"} if part == len(blob) - 5 and member in ("gbdt", "net") else set()
            yield f"{member}: cut at {part}, digest matching", _with(good, member, blob[:part]), codes
        other = good["dense.json" if member != "dense" else "gbdt.txt"]
        yield f"{member}: another format", _with(good, member, other), {"artifact_format"}
    yield from _manifests(good)
    yield from _onnx(good)
    yield from _skops(good, evil, mark)
    deep = b"[" * 100_000 + b"]" * 100_000
    yield "dense: nested deeply", _with(good, "dense", deep), {"artifact_format"}
    for number in (b"1e400", b"NaN", b"-1e-400", b'"1"'):
        blob = b'{"layers":[{"weights":[[%s]],"bias":[0],"activation":"logistic"}],"dense_version":1}' % number
        yield f"dense: a weight of {number.decode()}", _with(good, "dense", blob), {"artifact_format"}
    huge = good["xgb.ubj"].replace(b"L\x00\x00\x00\x00", b"L\x7f\xff\xff\xff", 1)
    if huge != good["xgb.ubj"]:
        yield "xgb: an array of 2^62", _with(good, "xgb", huge), {"artifact_format"}


def _manifests(good: Files) -> Iterator[Case]:
    def member(**changes: Any) -> Files:
        return _manifest(good, lambda m: m["members"][0].update(changes))

    for path in ("../x.json", "/etc/passwd", "a/b", "a\\b", ".hidden", "..", "", "x" * 500, "a\0b", "dense.json\n"):
        yield f"manifest: a path {path[:20]!r}", member(path=path), {"artifact_path"}
    yield "manifest: a member of 2^40 bytes", member(size=2**40), {"artifact_manifest"}
    yield "manifest: a member of no bytes", member(size=0), {"artifact_manifest"}
    yield "manifest: an unknown field", _manifest(good, lambda m: m.update(hook="os.system")), {"artifact_manifest"}
    yield "manifest: an unknown format", member(format="pickle"), {"artifact_manifest"}
    yield "manifest: a weight below 0", member(weight=-1.0), {"artifact_manifest"}
    yield "manifest: itself a member", member(path="manifest.json"), {"artifact_manifest"}
    yield "manifest: 17 MB", good | {"manifest.json": b" " * 17 * 2**20}, {"artifact_size"}
    yield "manifest: nested deeply", good | {"manifest.json": b'{"a":' * 100_000}, {"artifact_manifest"}
    yield "manifest: not UTF-8", good | {"manifest.json": b"\xff\xfe"}, {"artifact_manifest"}
    yield "manifest: cut short", good | {"manifest.json": good["manifest.json"][:-40]}, {"artifact_manifest"}
    yield "manifest: none", {k: v for k, v in good.items() if k != "manifest.json"}, {"artifact_missing"}
    other = _manifest(good, lambda m: m["self_test"]["score"].__setitem__(0, 0.123))
    yield "manifest: another self-test", other, {"artifact_self_test"}


def _onnx(good: Files) -> Iterator[Case]:
    import onnx
    from onnx import TensorProto, helper

    def changed(change: Callable[[Any], Any]) -> Files:
        model = onnx.load_model_from_string(good["net.onnx"])
        change(model)
        return _with(good, "net", model.SerializeToString())

    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    def attribute_outside(model: Any) -> None:
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.external_data.add(key="location", value="x")
        model.graph.node.insert(0, node)

    def nested(model: Any) -> None:
        node = helper.make_node("If", ["z"], ["q"], then_branch=model.graph, else_branch=model.graph)
        model.graph.node.append(node)

    executable, size = {"artifact_executable"}, {"artifact_size"}
    yield "onnx: data elsewhere", changed(outside), executable
    yield "onnx: an attribute's data elsewhere", changed(attribute_outside), executable
    custom = helper.make_node("Shell", ["z"], ["q"], domain="com.evil")
    yield "onnx: a custom operator", changed(lambda m: m.graph.node.append(custom)), executable
    yield "onnx: a custom domain", changed(lambda m: m.opset_import.append(helper.make_opsetid("evil", 1))), executable
    yield "onnx: a graph within", changed(nested), executable
    for name in ("Loop", "Scan", "RandomNormal", "ConstantOfShape", "Tile", "Expand", "Resize", "ImageDecoder"):
        node = helper.make_node(name, ["z"], ["q"])
        yield f"onnx: the operator {name}", changed(lambda m, node=node: m.graph.node.append(node)), executable
    yield "onnx: 2^40 values", changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40)), size
    yield "onnx: -1 values", changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -1)), size
    doubling = [helper.make_node("Concat", ["z", "z"], ["z"], axis=1) for _ in range(40)]
    yield "onnx: doubled 40 times", changed(lambda m: m.graph.node.extend(doubling)), size
    many = [helper.make_node("Identity", ["z"], ["z"]) for _ in range(2_000)]
    yield "onnx: 2,000 nodes", changed(lambda m: m.graph.node.extend(many)), size
    wide = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2**31])
    yield "onnx: 2^31 inputs", changed(lambda m: m.graph.input[0].CopyFrom(wide)), {"artifact_format"}
    yield "onnx: no output", changed(lambda m: m.graph.ClearField("output")), {"artifact_format"}


def _skops(good: Files, evil: bytes, mark: Path) -> Iterator[Case]:
    def packed(name: str, data: bytes) -> bytes:
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(good["forest.skops"])) as given,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made,
        ):
            for entry in given.infolist():
                made.writestr(entry.filename, given.read(entry))
            made.writestr(name, data)
        return out.getvalue()

    def schema(change: Callable[[dict[str, Any]], Any]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good["forest.skops"])) as given, zipfile.ZipFile(out, "w") as made:
            for entry in given.infolist():
                data = given.read(entry)
                if entry.filename == "schema.json":
                    document = json.loads(data)
                    change(document)
                    data = json.dumps(document).encode()
                made.writestr(entry.filename, data)
        return out.getvalue()

    def array_of_objects() -> bytes:
        out = io.BytesIO()
        np.save(out, np.array([_Payload(mark)], dtype=object), allow_pickle=True)
        return out.getvalue()

    with zipfile.ZipFile(io.BytesIO(good["forest.skops"])) as given:
        array = next(name for name in given.namelist() if name.endswith(".npy"))

    def replaced(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good["forest.skops"])) as given, zipfile.ZipFile(out, "w") as made:
            for entry in given.infolist():
                made.writestr(entry.filename, data if entry.filename == array else given.read(entry))
        return out.getvalue()

    huge = np.lib.format.magic(1, 0) + (
        lambda header: len(header).to_bytes(2, "little") + header
    )(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n")  # fmt: skip
    path, executable, form = {"artifact_path"}, {"artifact_executable"}, {"artifact_format"}
    for name in ("../evil.npy", "/tmp/evil.npy", "a/b.npy", "evil.py", "__init__.py"):
        yield f"skops: an entry {name!r}", _with(good, "forest", packed(name, evil)), path
    yield "skops: an entry that is a pickle", _with(good, "forest", packed("model.pkl", evil)), executable
    yield "skops: a bomb", _with(good, "forest", packed("9.npy", bytes(200_000_000))), {"artifact_size"}
    yield "skops: an array that is a pickle", _with(good, "forest", replaced(array_of_objects())), form
    yield "skops: an array of 2^40", _with(good, "forest", replaced(huge)), form

    def calls(module: str, name: str) -> bytes:
        def change(document: dict[str, Any]) -> None:
            document.update({"__class__": name, "__module__": module})

        return schema(change)

    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("proofs.hostile_artifacts", "_Payload"),
    ):
        yield f"skops: {module}.{name}", _with(good, "forest", calls(module, name)), executable | form
    function = {
        "__class__": "function", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1,
        "content": {"module_path": "os", "function": "system"},
    }  # fmt: skip

    def with_function(document: dict[str, Any]) -> None:
        document["content"]["content"]["evil"] = function

    yield "skops: a function", _with(good, "forest", schema(with_function)), executable | form


def _odd_files(context: Context, good: Files) -> dict[str, str]:
    """The code for each kind of file that stands in the place of a member's file."""
    codes = {}
    for name in ("a pipe", "a folder", "a link to a secret", "a device"):
        folder = context.folder / "odd"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, blob in good.items():
            (folder / file).write_bytes(blob)
        place = folder / "dense.json"
        place.unlink()
        if name == "a pipe":
            os.mkfifo(place)
        elif name == "a folder":
            place.mkdir()
        else:
            place.symlink_to("/dev/zero" if name == "a device" else "/etc/passwd")
        found, _ = _child(context, [str(folder)])
        codes[name] = found.get(str(folder), {"code": "the process died"})["code"]
    return codes


def _flips(good: Files, n: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for member, suffix in _FORMATS.items():
        blob = good[f"{member}.{suffix}"]
        for number in range(n):
            place = rng.randrange(len(blob))
            yield (
                f"{member}: flip {number} at {place}",
                _with(good, member, _flip(blob, place, rng.randrange(8))),
                set(),
            )


def _flip(blob: bytes, place: int, bit: int = 0) -> bytes:
    data = bytearray(blob)
    data[place] ^= 1 << bit
    return bytes(data)


def _load_all(context: Context, cases: list[Case], name: str) -> dict[str, dict[str, Any]]:
    """The report of each case; those on which the process died have none."""
    folder, reports = context.folder / name, {}
    shutil.rmtree(folder, ignore_errors=True)
    of = {}
    for number, (case, files, _) in enumerate(cases):
        place = folder / str(number)
        place.mkdir(parents=True)
        for file, blob in files.items():
            (place / file).write_bytes(blob)
        of[str(place)] = case
    left = list(of)
    while left:
        found, where = _child(context, left)
        reports |= {of[place]: report for place, report in found.items()}
        if where is None:
            break
        context.say(f"the process died of {of[where]}")
        left = left[left.index(where) + 1 :]
    context.say(f"{len(reports)} of {len(cases)} {name} loaded or refused")
    shutil.rmtree(folder)
    return reports


def _child(context: Context, places: list[str]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Load the folders at `places` in another process: the report of each, and the one on which it died, if any."""

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    command = [sys.executable, "-m", "proofs.hostile_artifacts", str(context.folder), str(int(context.broken))]
    done = subprocess.run(
        command,
        input="\n".join(places),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=bounded,
        timeout=900,
        check=False,
    )
    (context.folder / "child.log").write_text(done.stderr)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {report["place"]: report for report in reports}
    died = next((place for place in places if place not in found), None) if done.returncode else None
    return found, died


def _count(codes: Any) -> dict[str, int]:
    out: dict[str, int] = {}
    for code in codes:
        out[code] = out.get(code, 0) + 1
    return out


def _main(folder: Path, broken: bool) -> None:
    """The child: load the folders that standard input names, and print a report of each."""
    from stream_scorer.ensemble import ensemble as module
    from stream_scorer.ensemble.ensemble import SELF_TEST_TOLERANCE, Ensemble
    from stream_scorer.errors import ArtifactError

    if broken:
        load = module.load_member  # type: ignore[attr-defined]

        def open_pickles(kind: Any, data: bytes, n_inputs: int) -> Any:
            return pickle.loads(data) if data[:1] == b"\x80" else load(kind, data, n_inputs)

        module.load_member = open_pickles  # type: ignore[assignment, attr-defined]
    mark = folder / _MARK
    rows = np.random.default_rng(0).normal(size=(300, WIDTH))
    wanted = Ensemble.load(folder / "good", version="1").score(rows).score
    for line in sys.stdin:
        place, started = line.strip(), time.monotonic()
        try:
            score = Ensemble.load(Path(place), version="1").score(rows).score
            # As near as its self-test demands of it.
            code = AS_BEFORE if np.allclose(score, wanted, rtol=0, atol=SELF_TEST_TOLERANCE) else OTHER_SCORES
        except ArtifactError as error:
            code = error.code
        except Exception as error:  # anything else is an error of ours, and reported as such
            code = f"{type(error).__name__}: {error}"[:200]
        marked = mark.exists()
        if marked:
            mark.rmdir()
        report = {"place": place, "code": code, "marked": marked, "seconds": round(time.monotonic() - started, 3)}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2] == "1")
