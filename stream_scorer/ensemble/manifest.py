"""The manifest: everything an ensemble is, as data in one `manifest.json` beside the members' files.

A manifest names each member's file with its size and sha256, and carries what surrounds the members: which features
each reads and how they are prepared, calibrators, weights, thresholds, the reference profile and the self-test.
Reading is strict: an unknown field or a number out of range is an `ArtifactError`, never a guess.

    manifest = read_manifest(directory)
    blobs = read_members(directory, manifest)   # sizes and digests hold before a byte is parsed
"""

from __future__ import annotations

import hashlib
import math
import stat
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from stream_scorer.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
# 40 series x 20 bins, 64 self-test rows x 40 features: about 100 KB. 16 MB is room for a hundred times that.
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
# The largest forest worth serving (1,000 trees x 1,000 leaves as text) is below 100 MB.
MAX_MEMBER_BYTES = 256 * 1024 * 1024
MAX_SELF_TEST_ROWS = 64
MAX_BINS = 20
# Reference scores kept of a member for its ranks: a step of 0.1 %.
MAX_RANKS = 1_000
# Beyond, the 2^n coalitions of a median cost more than the members themselves.
MAX_ENUMERATED = 10

Link = Literal["logit", "probability", "rank"]
LINKS: tuple[Link, ...] = get_args(Link)

# Patterns end with \Z: `$` would let a line feed through.
MemberFormat = Literal["lightgbm-text", "xgboost-ubj", "dense-json", "onnx", "skops"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")]
# A member's name is part of series names and metric labels; a feature's may hold one dot (`customer.count_1d`).
MemberName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# A plain file name: no separator, no leading dot, so it cannot leave the ensemble's folder.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}(\.[A-Za-z0-9_-]{1,20}){0,3}\Z")]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every part of a manifest. Unknown fields are refused: an older reader must not skip what it needs."""


class Input(Part, frozen=True):
    """How one input of a member is made from its feature, in this order: impute, clip, ``(x - offset) / scale``.

    `impute` null leaves a missing value missing (NaN), which tree members read natively.
    """

    impute: float | None = None
    low: float | None = None
    high: float | None = None
    offset: float = 0.0
    scale: float = 1.0


class NoCalibrator(Part, frozen=True, tag_field="kind", tag="none"):
    """The member's probability is taken as it is."""


class Platt(Part, frozen=True, tag_field="kind", tag="platt"):
    """``sigmoid(slope * logit(p) + intercept)`` with p clipped to [1e-6, 1 - 1e-6] (Platt 1999, on log-odds)."""

    slope: Annotated[float, Meta(gt=0.0)]
    intercept: float


class Isotonic(Part, frozen=True, tag_field="kind", tag="isotonic"):
    """Linear interpolation through the knots ``(x, y)``, constant outside. Both are ascending, x strictly."""

    x: Annotated[list[Share], Meta(min_length=1, max_length=10_000)]
    y: Annotated[list[Share], Meta(min_length=1, max_length=10_000)]


class Beta(Part, frozen=True, tag_field="kind", tag="beta"):
    """``sigmoid(a log(p) - b log(1 - p) + c)`` with p clipped as for Platt (Kull, Silva Filho and Flach 2017)."""

    a: Annotated[float, Meta(ge=0.0)]
    b: Annotated[float, Meta(ge=0.0)]
    c: float


Calibrator = NoCalibrator | Platt | Isotonic | Beta


class WeightedMean(Part, frozen=True, tag_field="kind", tag="weighted_mean"):
    """The mean, by the weights of those present."""


class Median(Part, frozen=True, tag_field="kind", tag="median"):
    """The median of those present that have a weight; how much makes no difference."""


class TrimmedMean(Part, frozen=True, tag_field="kind", tag="trimmed_mean"):
    """The plain mean of those that have a weight, without ``floor(share * k)`` of the k present at either end."""

    share: Annotated[float, Meta(ge=0.0, lt=0.5)]


class Stacking(Part, frozen=True, tag_field="kind", tag="stacking"):
    """``intercept + sum(coefficient * value)``; while a member with weight is missing, the weighted mean instead."""

    intercept: float
    coefficients: Annotated[list[float], Meta(min_length=1, max_length=32)]


How = WeightedMean | Median | TrimmedMean | Stacking


class MemberSpec(Part, frozen=True):
    """One member: its file, what it reads, how its output becomes a calibrated probability, and its weight.

    Attributes:
        path: file name in the ensemble's folder.
        inputs: names of the features it reads, in the order the model expects them.
        preprocess: one entry per input. `preprocess_sha256` is its own digest, so that a changed imputation or scale
            shows as a change even where the model file is the same.
        weight: not necessarily normalised; the share of the total is what counts.
        baseline: mean over the reference rows of its calibrated score on the scale of the link; contributions are
            measured from it.
        ranks: for the link `rank`, its calibrated scores on the reference rows, or an even choice of them, ascending.
    """

    name: MemberName
    format: MemberFormat
    path: FileName
    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_MEMBER_BYTES)]
    inputs: Annotated[list[str], Meta(min_length=1, max_length=4096)]
    preprocess: list[Input]
    preprocess_sha256: Sha256
    calibrator: Calibrator
    weight: Annotated[float, Meta(ge=0.0)]
    baseline: float
    ranks: Annotated[list[Share], Meta(max_length=MAX_RANKS)] = []


class Thresholds(Part, frozen=True):
    """From score to decision; see `stream_scorer.spec.model.Policy`."""

    policy_version: str
    review: Share
    block: Share


class Series(Part, frozen=True):
    """A histogram of the reference rows: bin i is ``edges[i-1] <= x < edges[i]``, the last count is of missing values.

    `counts` has ``len(edges) + 2`` entries: below the first edge, between the edges, at or above the last, missing.
    """

    edges: Annotated[list[float], Meta(max_length=MAX_BINS - 2)]
    counts: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_BINS)]


class SelfTest(Part, frozen=True):
    """Rows whose scores are known: a loaded ensemble must reproduce them before it serves. Null is missing."""

    features: Annotated[list[list[float | None]], Meta(min_length=1, max_length=MAX_SELF_TEST_ROWS)]
    member_scores: list[list[float | None]]
    score: list[float | None]


class Training(Part, frozen=True):
    """Where the ensemble came from. Times are event times in UTC epoch milliseconds.

    `run_id` follows from data, spec and seed, so that the same training has the same id; `metrics` are on the holdout.
    """

    first_event_time: int
    last_event_time: int
    rows: int
    positives: int
    run_id: str
    data_sha256: str
    metrics: dict[str, dict[str, float]]


class Manifest(Part, frozen=True, kw_only=True):
    """A whole ensemble but for its members' bytes. Checked by `check_manifest`.

    Attributes:
        features: the feature vector's names, in order; `Ensemble.score` takes matrices of these columns.
        combiner, link: how members are combined, and on which scale; see `stream_scorer.ensemble.combine`.
        quorum: smallest share of the original weight that must be present for a score to stand.
        final_calibrator: g, strictly monotone: a mean of calibrated logits is not itself calibrated.
        reference_profile: series by name: each feature, ``member:<name>`` (calibrated scores) and ``score``.
    """

    manifest_version: Literal[1] = 1
    name: Name
    created_at: int
    spec_name: str
    spec_hash: Sha256
    feature_hash: Sha256
    features: Annotated[list[str], Meta(min_length=1, max_length=4096)]
    combiner: How = WeightedMean()
    link: Link = "logit"
    members: Annotated[list[MemberSpec], Meta(min_length=1, max_length=32)]
    final_calibrator: NoCalibrator | Platt
    thresholds: Thresholds
    quorum: Share
    reference_profile: dict[str, Series]
    self_test: SelfTest
    training: Training

    @property
    def member_names(self) -> list[str]:
        """Names of the members, in the order in which they are summed."""
        return [member.name for member in self.members]

    @property
    def formula(self) -> str:
        """How members are combined, for people: "weighted mean of logits"."""
        how, of = self.combiner, {"logit": "logits", "probability": "probabilities", "rank": "ranks"}[self.link]
        if isinstance(how, TrimmedMean):
            return f"mean of {of}, {how.share:.0%} trimmed at either end"
        name = {WeightedMean: "weighted mean", Median: "median", Stacking: "stacking"}[type(how)]
        return f"{name} of {of}"


def series_names(manifest: Manifest) -> list[str]:
    """The series every reference profile has, in their fixed order."""
    return [*manifest.features, *(f"member:{name}" for name in manifest.member_names), "score"]


def sha256_hex(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def preprocess_digest(preprocess: list[Input]) -> str:
    """Hex digest of the canonical JSON of a member's preprocess."""
    return sha256_hex(msgspec.json.encode(preprocess, order="deterministic"))


def member_key(member: MemberSpec) -> str:
    """Hex digest of all that makes a member's own answers: file, format, inputs and their preparation."""
    parts = [member.format, member.sha256, member.inputs, member.preprocess_sha256]
    return sha256_hex(msgspec.json.encode(parts))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes of `manifest`: what is written, digested and registered."""
    return msgspec.json.encode(manifest, order="deterministic") + b"\n"


def manifest_digest(manifest: Manifest) -> str:
    """Hex digest of the canonical bytes: the identity of the ensemble, its members' digests included."""
    return sha256_hex(manifest_bytes(manifest))


def parse_manifest(data: bytes, *, source: str = MANIFEST_FILE) -> Manifest:
    """The checked manifest in `data`. Raises `ArtifactError` naming `source` and the path of the bad node."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{source}: {len(data)} bytes, the limit is {MAX_MANIFEST_BYTES}", code="artifact_size")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        # A file name that would leave the folder is refused by its pattern.
        code = "artifact_path" if str(error).endswith(".path`") else "artifact_manifest"
        raise ArtifactError(f"{source}: {error}", code=code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{source}: not a manifest: {error}", code="artifact_manifest") from None
    try:
        check_manifest(manifest)
    except ArtifactError as error:
        raise ArtifactError(f"{source}: {error.message}", code="artifact_manifest", hint=error.hint) from None
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The checked manifest of the ensemble in `directory`. Raises `ArtifactError`."""
    path = directory / MANIFEST_FILE
    return parse_manifest(read_bounded(path, MAX_MANIFEST_BYTES), source=str(path))


def read_members(directory: Path, manifest: Manifest) -> list[bytes]:
    """Every member's bytes, in manifest order. Raises `ArtifactError` unless sizes and digests are the manifest's."""
    return [_read_member(directory, member) for member in manifest.members]


def _read_member(directory: Path, member: MemberSpec) -> bytes:
    path = directory / member.path
    data = read_bounded(path, MAX_MEMBER_BYTES)
    hint = "The file was altered or cut short: fetch the ensemble again."
    if len(data) != member.size:
        raise ArtifactError(
            f"{path}: member {member.name!r} is {len(data)} bytes, the manifest says {member.size}",
            code="artifact_size",
            hint=hint,
        )
    digest = sha256_hex(data)
    if digest != member.sha256:
        raise ArtifactError(
            f"{path}: member {member.name!r} has sha256 {digest[:12]}…, the manifest says {member.sha256[:12]}…",
            code="artifact_digest",
            hint=hint,
        )
    return data


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the file at `path`. Raises `ArtifactError` if it is missing, unreadable or above `limit` bytes."""
    try:
        # A pipe or device would be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is no file", code="artifact_path")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        hint = "Is this the folder of an ensemble?"
        raise ArtifactError(f"no file {path}", code="artifact_missing", hint=hint) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}", code="artifact_missing") from None
    if len(data) > limit:
        raise ArtifactError(f"{path}: above {limit} bytes", code="artifact_size")
    return data


def check_manifest(manifest: Manifest) -> None:
    """Raise `ArtifactError` unless every reference, length and number of `manifest` holds."""
    _check_finite(msgspec.to_builtins(manifest), "$")
    _check_distinct(manifest.features, "features")
    _check_distinct(manifest.member_names, "members: names")
    _check_distinct([member.path for member in manifest.members], "members: paths")
    known = set(manifest.features)
    for index, member in enumerate(manifest.members):
        _check_member(member, known, f"members[{index}] ({member.name})")
    if sum(member.weight for member in manifest.members) <= 0.0:
        raise ArtifactError("members: no member has a weight above 0")
    check_combiner(manifest)
    if manifest.thresholds.review > manifest.thresholds.block:
        raise ArtifactError("thresholds: review is above block")
    _check_profile(manifest)
    _check_self_test(manifest)


def check_combiner(manifest: Manifest) -> None:
    """Raise `ArtifactError` unless combiner, link and members go together."""
    how, members = manifest.combiner, manifest.members
    voting = sum(member.weight > 0.0 for member in members)
    if isinstance(how, Median | TrimmedMean) and voting > MAX_ENUMERATED:
        raise ArtifactError(f"combiner: {manifest.formula} of {voting} members, at most {MAX_ENUMERATED} are possible")
    if isinstance(how, Stacking):
        if len(how.coefficients) != len(members):
            raise ArtifactError(f"combiner: {len(how.coefficients)} coefficients for {len(members)} members")
        if manifest.link != "logit":
            raise ArtifactError(f"combiner: stacking of {manifest.link}s may leave [0, 1]; its link is logit")
    for member in members:
        if (manifest.link == "rank") != bool(member.ranks):
            raise ArtifactError(f"member {member.name!r}: ranks go with the link rank, and with no other")
        if any(b < a for a, b in pairwise(member.ranks)):
            raise ArtifactError(f"member {member.name!r}: ranks are not ascending")


def _check_member(member: MemberSpec, known: set[str], path: str) -> None:
    if member.path == MANIFEST_FILE:
        raise ArtifactError(f"{path}.path: {MANIFEST_FILE} is the manifest itself")
    for name in member.inputs:
        if name not in known:
            raise ArtifactError(f"{path}.inputs: {name!r} is not one of the manifest's features")
    _check_distinct(member.inputs, f"{path}.inputs")
    if len(member.preprocess) != len(member.inputs):
        raise ArtifactError(f"{path}.preprocess: {len(member.preprocess)} entries for {len(member.inputs)} inputs")
    for name, entry in zip(member.inputs, member.preprocess, strict=True):
        if entry.scale == 0.0:
            raise ArtifactError(f"{path}.preprocess: the scale of {name!r} is 0")
        if entry.low is not None and entry.high is not None and entry.low > entry.high:
            raise ArtifactError(f"{path}.preprocess: low is above high for {name!r}")
    if preprocess_digest(member.preprocess) != member.preprocess_sha256:
        raise ArtifactError(f"{path}.preprocess: does not have the digest preprocess_sha256")
    if isinstance(member.calibrator, Isotonic):
        x, y = member.calibrator.x, member.calibrator.y
        if len(x) != len(y):
            raise ArtifactError(f"{path}.calibrator: {len(x)} x for {len(y)} y")
        if any(b <= a for a, b in pairwise(x)) or any(b < a for a, b in pairwise(y)):
            raise ArtifactError(f"{path}.calibrator: not monotone")


def _check_profile(manifest: Manifest) -> None:
    wanted = series_names(manifest)
    if set(manifest.reference_profile) != set(wanted):
        odd = sorted(set(manifest.reference_profile) ^ set(wanted))
        raise ArtifactError(f"reference_profile: series missing or unknown: {', '.join(odd[:5])}")
    for name, series in manifest.reference_profile.items():
        if len(series.counts) != len(series.edges) + 2:
            raise ArtifactError(f"reference_profile.{name}: {len(series.counts)} counts for {len(series.edges)} edges")
        if any(b <= a for a, b in pairwise(series.edges)):
            raise ArtifactError(f"reference_profile.{name}: edges are not ascending")


def _check_self_test(manifest: Manifest) -> None:
    test = manifest.self_test
    rows = len(test.features)
    if len(test.member_scores) != rows or len(test.score) != rows:
        raise ArtifactError("self_test: features, member_scores and score differ in length")
    if any(len(row) != len(manifest.features) for row in test.features):
        raise ArtifactError(f"self_test.features: every row has {len(manifest.features)} values")
    if any(len(row) != len(manifest.members) for row in test.member_scores):
        raise ArtifactError(f"self_test.member_scores: every row has {len(manifest.members)} values")


def _check_distinct(names: list[str], path: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtifactError(f"{path}: {name!r} stands twice")
        seen.add(name)


def _check_finite(node: Any, path: str) -> None:
    """JSON has no infinity, yet 1e999 reads as one."""
    if isinstance(node, float):
        if not math.isfinite(node):
            raise ArtifactError(f"{path}: not a finite number")
    elif isinstance(node, dict):
        for key, value in node.items():
            _check_finite(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_finite(value, f"{path}[{index}]")
