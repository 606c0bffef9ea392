"""The algorithms of a training spec: their formats and hyperparameters, and the fit of one member on given rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.ensemble.manifest import Input, MemberFormat
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.ensemble.probabilities import keep_probabilities
from stream_scorer.errors import SpecError, UsageError
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import Algorithm, CheckedTraining, MemberTraining, Parameter
from stream_scorer.train.dense import LOGISTIC, NEURAL, standardise, train_logistic, train_neural
from stream_scorer.train.plan import feature_sets, matching_features
from stream_scorer.train.trees import FOREST, GBDT, XGB, train_forest, train_gbdt, train_xgb

# Fits ``(n, k)`` with labels ``(n,)``, input names, seed, hyperparameters and row weights ``(n,)``.
Fit = Callable[[Floats, Bools, Sequence[str], int, Mapping[str, Any], Floats | None], bytes]


@dataclass(frozen=True, slots=True)
class _Method:
    """An algorithm: the format of its members, its fit, its defaults, and further hyperparameters that may be set."""

    format: MemberFormat
    fit: Fit
    defaults: Mapping[str, Any]
    further: frozenset[str]

    @property
    def names(self) -> list[str]:
        """The hyperparameters that a training spec may set."""
        return sorted(self.further | self.defaults.keys())


@dataclass(frozen=True, slots=True)
class MemberRecipe:
    """A member of a training spec with everything resolved.

    Attributes:
        inputs: its features, in the order of the feature vector. columns: their places in it, ``(k,) int64``.
        parameters: all hyperparameters that the algorithm gets.
    """

    member: MemberTraining
    format: MemberFormat
    inputs: list[str]
    columns: Ints
    parameters: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True)
class FittedMember:
    """A member's file content and the preprocessing of its inputs."""

    data: bytes
    preprocess: list[Input]


def _logistic(x: Floats, y: Bools, _n: Sequence[str], seed: int, p: Mapping[str, Any], w: Floats | None) -> bytes:
    return train_logistic(x, y, seed, p, w)


def _neural(x: Floats, y: Bools, _n: Sequence[str], seed: int, p: Mapping[str, Any], w: Floats | None) -> bytes:
    return train_neural(x, y, seed, p, w)


_LIGHTGBM = frozenset({
    "max_depth", "max_bin", "min_data_in_leaf", "min_sum_hessian_in_leaf", "lambda_l1", "lambda_l2",
    "min_gain_to_split", "feature_fraction", "feature_fraction_bynode", "bagging_fraction", "path_smooth",
    "extra_trees",
})  # fmt: skip
_XGBOOST = frozenset({
    "max_bin", "max_leaves", "grow_policy", "gamma", "reg_alpha", "subsample", "colsample_bylevel", "colsample_bynode",
    "scale_pos_weight", "max_delta_step", "tree_method", "base_score",
})  # fmt: skip
_NETWORK = frozenset({"learning_rate_init", "early_stopping", "n_iter_no_change", "tol"})
METHODS: dict[Algorithm, _Method] = {
    "lightgbm": _Method("lightgbm-text", train_gbdt, GBDT, _LIGHTGBM | {"bagging_freq", "scale_pos_weight"}),
    "lightgbm-forest": _Method("lightgbm-text", train_forest, FOREST, _LIGHTGBM),
    "xgboost": _Method("xgboost-ubj", train_xgb, XGB, _XGBOOST),
    "logistic-regression": _Method("dense-json", _logistic, LOGISTIC, frozenset({"tol", "fit_intercept"})),
    "neural-network": _Method("dense-json", _neural, NEURAL, _NETWORK),
}


def resolve_members(training: CheckedTraining, spec: CheckedSpec) -> list[MemberRecipe]:
    """The members of a training spec, checked against the pipeline spec. Raises `SpecError`."""
    out = []
    for index, member in enumerate(training.spec.members):
        path = f"members[{index}]"
        inputs = _inputs(member, spec, path)
        for name in (*member.parameters, *member.grid):
            check_parameter(member.algorithm, name, path)
        out.append(make_recipe(member, spec, inputs, training.seed_of(member)))
    return out


def make_recipe(member: MemberTraining, spec: CheckedSpec, inputs: list[str], seed: int) -> MemberRecipe:
    """`member` with the defaults of its algorithm."""
    method = METHODS[member.algorithm]
    columns = np.array([spec.features.index(name) for name in inputs], np.int64)
    return MemberRecipe(member, method.format, inputs, columns, {**method.defaults, **member.parameters}, seed)


def check_parameter(algorithm: Algorithm, name: str, path: str) -> None:
    """Raise `SpecError` unless a training spec may set the hyperparameter `name`."""
    names = METHODS[algorithm].names
    if name not in names:
        raise SpecError(
            f"{algorithm} has no hyperparameter {name!r}",
            path=path,
            hint=f"It has {', '.join(names)} (docs/training.md).",
        )


def _inputs(member: MemberTraining, spec: CheckedSpec, path: str) -> list[str]:
    sets = feature_sets(spec)
    if isinstance(member.features, str):
        if member.features not in sets:
            raise SpecError(
                f"the pipeline spec has no feature set {member.features!r}",
                path=f"{path}.features",
                hint=f"It has {', '.join(sets)}; a list of feature names or patterns is possible too.",
            )
        return sets[member.features]
    for pattern in member.features:
        if not matching_features(spec.features, [pattern]):
            raise SpecError(f"no feature matches {pattern!r}", path=f"{path}.features")
    return matching_features(spec.features, member.features)


def fit_member(recipe: MemberRecipe, features: Floats, at: Ints, label: Bools) -> FittedMember:
    """Fit a member on the rows `at` ``(k,)`` of ``(n, n_features)``, in order of time, and their labels ``(k,)``.

    Copies only the rows and columns that it uses, because several members are fitted at a time.

    Raises:
        UsageError: the library refuses the hyperparameters, or the sample has one class only.
    """
    rows = sampled(recipe, label)
    if label[rows].all() or not label[rows].any():
        raise UsageError(
            f"member {recipe.member.name!r}: its {len(rows)} training rows are all "
            f"{'frauds' if label[rows].any() else 'genuine'}",
            hint="Declare a larger share in sampling.genuine, or longer windows (folds.train).",
        )
    raw = np.ascontiguousarray(features[np.ix_(at[rows], recipe.columns)])
    y = label[rows]
    dense = recipe.format == "dense-json"
    preprocess = standardise(raw) if dense else [Input()] * len(recipe.inputs)
    x = Preprocess(recipe.inputs, recipe.inputs, preprocess).apply(raw)
    method = METHODS[recipe.member.algorithm]
    try:
        data = method.fit(x, y, recipe.inputs, recipe.seed, recipe.parameters, _weights(recipe, y))
    except Exception as error:
        if isinstance(error, ValueError | TypeError) or type(error).__module__.partition(".")[0] in _LIBRARIES:
            first = str(error).strip().splitlines()[:1]
            raise UsageError(
                f"{recipe.member.algorithm} cannot fit member {recipe.member.name!r}: {''.join(first)}",
                hint=f"Its hyperparameters are {_shown(recipe.parameters)}.",
            ) from error
        raise
    return FittedMember(data, preprocess)


_LIBRARIES = ("lightgbm", "xgboost", "sklearn")


def predict(recipe: MemberRecipe, fitted: FittedMember, features: Floats, at: Ints) -> Floats:
    """Uncalibrated probabilities ``(k,)`` of a fitted member for the rows `at`, as a scorer has them.

    Raises:
        UsageError: see `require_probabilities`.
    """
    x = Preprocess(recipe.inputs, recipe.inputs, fitted.preprocess).apply(
        np.ascontiguousarray(features[np.ix_(at, recipe.columns)])
    )
    probability = load_member(recipe.format, fitted.data, len(recipe.inputs)).predict(x)
    return require_probabilities(recipe.member.name, probability)


def require_probabilities(member: str, probability: Floats) -> Floats:
    """`probability` ``(n,)``. Raises `UsageError` if one is NaN or outside [0, 1], which a scorer leaves out."""
    probability = np.array(probability, np.float64)
    wrong = keep_probabilities(probability)
    if wrong:
        raise UsageError(
            f"member {member!r} gives no probability in [0, 1] for {wrong:,} of {len(probability):,} rows",
            hint="Check its hyperparameters, and whether its features have extreme values.",
        )
    return probability


def sampled(recipe: MemberRecipe, label: Bools) -> Ints:
    """Row numbers, ascending: all frauds, and the declared share of the other rows, drawn with the member's seed."""
    sampling = recipe.member.sampling
    if sampling is None or sampling.genuine >= 1.0:
        return np.arange(len(label))
    kept = np.random.default_rng(recipe.seed).random(len(label)) < sampling.genuine
    return np.flatnonzero(kept | label)


def _weights(recipe: MemberRecipe, y: Bools) -> Floats | None:
    wanted = recipe.member.class_weight
    if wanted is None:
        return None
    frauds = int(y.sum())
    ratio = (len(y) - frauds) / max(frauds, 1) if wanted == "balanced" else float(wanted)
    return np.where(y, ratio, 1.0)


def _shown(parameters: Mapping[str, Parameter]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in parameters.items())
