"""The manifest: the complete description of an ensemble, in `manifest.json` next to the members' files.

A manifest lists the file of each member with its size and sha256. It also contains the members' inputs and their
preprocessing, calibrators, weights, thresholds, the reference profile and the self-test. Parsing is strict: an unknown
field or a number out of range is an `ArtifactError`.

    manifest = read_manifest(directory)
    blobs = read_members(directory, manifest)   # checks sizes and digests before anything is parsed
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
from stream_scorer.structs import prepare

MANIFEST_FILE = "manifest.json"
# 40 series x 20 bins, 64 self-test rows x 40 features: about 100 KB. 16 MB allow a hundred times that.
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
# The largest practical forest (1,000 trees x 1,000 leaves as text) is below 100 MB.
MAX_MEMBER_BYTES = 256 * 1024 * 1024
MAX_SELF_TEST_ROWS = 64
MAX_BINS = 20
# Reference scores stored per member for its ranks: a resolution of 0.1 %.
MAX_RANKS = 1_000
# Above this, the 2^n coalitions of a median cost more than the members themselves.
MAX_ENUMERATED = 10

Link = Literal["logit", "probability", "rank"]
LINKS: tuple[Link, ...] = get_args(Link)

# Patterns end with \Z: `$` would let a line feed through.
MemberFormat = Literal["lightgbm-text", "xgboost-ubj", "dense-json", "onnx", "skops"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")]
# A member's name is part of series names and metric labels; a feature name may contain one dot (`customer.count_1d`).
MemberName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# A plain file name: no separator, no leading dot, so it cannot leave the ensemble's folder.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}(\.[A-Za-z0-9_-]{1,20}){0,3}\Z")]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every part of a manifest. Rejects unknown fields, because an older reader must not skip what it needs."""


class Input(Part, frozen=True):
    """The preprocessing of one input of a member, in this order: impute, clip, ``(x - offset) / scale``.

    `impute` null leaves a missing value missing (NaN), which tree members read natively.
    """

    impute: float | None = None
    low: float | None = None
    high: float | None = None
    offset: float = 0.0
    scale: float = 1.0


class NoCalibrator(Part, frozen=True, tag_field="kind", tag="none"):
    """Leaves the member's probability unchanged."""


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
IncompleteCalibrator = Platt | msgspec.UnsetType


class WeightedMean(Part, frozen=True, tag_field="kind", tag="weighted_mean"):
    """The weighted mean of the present members."""


class Median(Part, frozen=True, tag_field="kind", tag="median"):
    """The median of the present members with a weight above 0; its size makes no difference."""


class TrimmedMean(Part, frozen=True, tag_field="kind", tag="trimmed_mean"):
    """The plain mean of the k present members with a weight above 0, without ``floor(share * k)`` at either end."""

    share: Annotated[float, Meta(ge=0.0, lt=0.5)]


class Stacking(Part, frozen=True, tag_field="kind", tag="stacking"):
    """``intercept + sum(coefficient * value)``; if a member with weight is missing, the weighted mean instead."""

    intercept: float
    coefficients: Annotated[list[float], Meta(min_length=1, max_length=32)]


CombinerSpec = WeightedMean | Median | TrimmedMean | Stacking


class MemberSpec(Part, frozen=True):
    """One member: its file, inputs, preprocessing, calibrator and weight.

    Attributes:
        path: file name in the ensemble's folder.
        inputs: names of its features, in the order that the model expects.
        preprocess: one entry per input. `preprocess_sha256` is its digest, so that a changed imputation or scale is
            visible even if the model file is the same.
        weight: not necessarily normalised; only the share of the total matters.
        baseline: mean over the reference rows of its calibrated score on the scale of the link; the reference point
            of contributions.
        ranks: for the link `rank`, its calibrated scores on the reference rows or an even sample of them, ascending.
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
    """Rows with expected scores, which a loaded ensemble must reproduce before it serves. Null is missing."""

    features: Annotated[list[list[float | None]], Meta(min_length=1, max_length=MAX_SELF_TEST_ROWS)]
    member_scores: list[list[float | None]]
    score: list[float | None]


class Training(Part, frozen=True):
    """The training of the ensemble. Times are event times in UTC epoch milliseconds.

    `run_id` is derived from data, spec and options: equal trainings have equal ids. `metrics` are on the holdout.

    Attributes:
        trained_until: for a composed ensemble: no member has seen a transaction at or after this time, None if this is
            unknown. The other fields describe the history on which it was composed.
    """

    first_event_time: int
    last_event_time: int
    rows: int
    positives: int
    run_id: str
    data_sha256: str
    metrics: dict[str, dict[str, float]]
    trained_until: int | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def members_until(self) -> int | None:
        """The end of what members were trained on; None if it is unknown."""
        return self.last_event_time if isinstance(self.trained_until, msgspec.UnsetType) else self.trained_until


class Manifest(Part, frozen=True, kw_only=True):
    """An ensemble except for the content of its members' files. Checked by `check_manifest`.

    Attributes:
        features: names of the features, in order; the columns of the matrix that `Ensemble.score` takes.
        combiner, link: the combination of members, and its scale; see `stream_scorer.ensemble.combine`.
        quorum: smallest share of the original weight that must be present for a score.
        final_calibrator: g, strictly monotone; needed because a mean of calibrated logits is not calibrated.
        incomplete_calibrator: of stacking only: takes the place of g where a member is missing and z is the weighted
            mean, whose scale is another one. If it is not set, as in older manifests, g applies there too.
        reference_profile: series by name: each feature, ``member:<name>`` (calibrated scores) and ``score``.
    """

    manifest_version: Literal[1] = 1
    name: Name
    created_at: int
    spec_name: str
    spec_hash: Sha256
    feature_hash: Sha256
    features: Annotated[list[str], Meta(min_length=1, max_length=4096)]
    combiner: CombinerSpec = WeightedMean()
    link: Link = "logit"
    members: Annotated[list[MemberSpec], Meta(min_length=1, max_length=32)]
    final_calibrator: NoCalibrator | Platt
    incomplete_calibrator: IncompleteCalibrator = msgspec.UNSET
    thresholds: Thresholds
    quorum: Share
    reference_profile: dict[str, Series]
    self_test: SelfTest
    training: Training

    @property
    def member_names(self) -> list[str]:
        """Names of the members, in the order of summation."""
        return [member.name for member in self.members]

    @property
    def formula(self) -> str:
        """The combination of members in words, such as "weighted mean of logits"."""
        how, of = self.combiner, {"logit": "logits", "probability": "probabilities", "rank": "ranks"}[self.link]
        if isinstance(how, TrimmedMean):
            return f"mean of {of}, {how.share:.0%} trimmed at either end"
        name = {WeightedMean: "weighted mean", Median: "median", Stacking: "stacking"}[type(how)]
        return f"{name} of {of}"


def series_names(manifest: Manifest) -> list[str]:
    """The names of the series of every reference profile, in their fixed order."""
    return [*manifest.features, *(f"member:{name}" for name in manifest.member_names), "score"]


def sha256_hex(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def preprocess_digest(preprocess: list[Input]) -> str:
    """Hex digest of the canonical JSON of a member's preprocess."""
    return sha256_hex(msgspec.json.encode(preprocess, order="deterministic"))


def member_key(member: MemberSpec) -> str:
    """Hex digest of everything that determines a member's output: file, format, inputs and preprocessing."""
    parts = [member.format, member.sha256, member.inputs, member.preprocess_sha256]
    return sha256_hex(msgspec.json.encode(parts))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes of `manifest`, which are written, digested and registered."""
    return msgspec.json.encode(manifest, order="deterministic") + b"\n"


def manifest_digest(manifest: Manifest) -> str:
    """Hex digest of the canonical bytes: the identity of the ensemble, including its members' digests."""
    return sha256_hex(manifest_bytes(manifest))


def parse_manifest(data: bytes, *, source: str = MANIFEST_FILE) -> Manifest:
    """Parse and check the manifest in `data`. Raises `ArtifactError` with `source` and the path of the invalid node."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{source}: {len(data)} bytes, the limit is {MAX_MANIFEST_BYTES}", code="artifact_size")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        # The pattern of file names rejects a name that leaves the folder.
        code = "artifact_path" if str(error).endswith(".path`") else "artifact_manifest"
        hint = "A newer release made this ensemble: use that release." if "unknown field" in str(error) else ""
        raise ArtifactError(f"{source}: {error}", code=code, hint=hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{source}: not a manifest: {error}", code="artifact_manifest") from None
    try:
        check_manifest(manifest)
    except ArtifactError as error:
        raise ArtifactError(f"{source}: {error.message}", code="artifact_manifest", hint=error.hint) from None
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of the ensemble in `directory`. Raises `ArtifactError`."""
    path = directory / MANIFEST_FILE
    return parse_manifest(read_bounded(path, MAX_MANIFEST_BYTES), source=str(path))


def read_members(directory: Path, manifest: Manifest) -> list[bytes]:
    """The content of every member file, in manifest order. Raises `ArtifactError` if a size or digest differs."""
    return [_read_member(directory, member) for member in manifest.members]


def _read_member(directory: Path, member: MemberSpec) -> bytes:
    path = directory / member.path
    data = read_bounded(path, MAX_MEMBER_BYTES)
    hint = "The file was altered or truncated: fetch the ensemble again."
    if len(data) != member.size:
        raise ArtifactError(
            f"{path}: member {member.name!r} is {len(data)} bytes, but the manifest records {member.size}",
            code="artifact_size",
            hint=hint,
        )
    digest = sha256_hex(data)
    if digest != member.sha256:
        raise ArtifactError(
            f"{path}: member {member.name!r} has sha256 {digest[:12]}…, but the manifest records {member.sha256[:12]}…",
            code="artifact_digest",
            hint=hint,
        )
    return data


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of the file at `path`. Raises `ArtifactError` if it is missing, unreadable or above `limit` bytes."""
    try:
        # Reading a pipe or device might never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is not a regular file", code="artifact_path")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        hint = "Is this the folder of an ensemble?"
        raise ArtifactError(f"no file {path}", code="artifact_missing", hint=hint) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}", code="artifact_missing") from None
    if len(data) > limit:
        raise ArtifactError(f"{path}: larger than {limit} bytes", code="artifact_size")
    return data


def check_manifest(manifest: Manifest) -> None:
    """Raise `ArtifactError` unless every reference, length and number in `manifest` is valid."""
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
    """Raise `ArtifactError` unless combiner, link and members are compatible."""
    how, members = manifest.combiner, manifest.members
    voting = sum(member.weight > 0.0 for member in members)
    if isinstance(how, Median | TrimmedMean) and voting > MAX_ENUMERATED:
        raise ArtifactError(f"combiner: {manifest.formula} of {voting} members, at most {MAX_ENUMERATED} are supported")
    if isinstance(how, Stacking):
        if len(how.coefficients) != len(members):
            raise ArtifactError(f"combiner: {len(how.coefficients)} coefficients for {len(members)} members")
        if manifest.link != "logit":
            raise ArtifactError(f"combiner: stacking of {manifest.link}s may leave [0, 1]; its link is logit")
    elif manifest.incomplete_calibrator:
        raise ArtifactError(f"incomplete_calibrator: only stacking uses one, and the combiner is {manifest.formula}")
    for member in members:
        if (manifest.link == "rank") != bool(member.ranks):
            raise ArtifactError(f"member {member.name!r}: ranks are required for the link rank, and for no other")
        if any(b < a for a, b in pairwise(member.ranks)):
            raise ArtifactError(f"member {member.name!r}: ranks are not ascending")


def _check_member(member: MemberSpec, known: set[str], path: str) -> None:
    if member.path == MANIFEST_FILE:
        raise ArtifactError(f"{path}.path: {MANIFEST_FILE} is reserved for the manifest")
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
        raise ArtifactError(f"{path}.preprocess: does not match preprocess_sha256")
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
            raise ArtifactError(f"{path}: {name!r} is listed twice")
        seen.add(name)


def _check_finite(node: Any, path: str) -> None:
    """JSON has no infinity, but 1e999 is parsed as infinity."""
    if isinstance(node, float):
        if not math.isfinite(node):
            raise ArtifactError(f"{path}: not a finite number")
    elif isinstance(node, dict):
        for key, value in node.items():
            _check_finite(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_finite(value, f"{path}[{index}]")


prepare(globals())
