"""Members: one module per model format. A member is loaded from bytes and predicts one probability per row.

Data formats only: this package neither unpickles nor imports code that an artifact names. A random forest is LightGBM
text with `boosting=rf`; logistic regression and small neural networks are `dense-json`. Models of other libraries use
`onnx` or `skops`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import MemberFormat
from stream_scorer.errors import ArtifactError

# First byte of a pickle of protocol 2 or later.
_PICKLE = b"\x80"
_PICKLE_HINT = "Save the model in a data format; docs/ensemble.md lists them."


class Member(Protocol):
    """A loaded model.

    A member whose attribute `own_loops` is true is computed by compiled loops of this package. Their length is known,
    so such a member cannot hang. A member that a library computes has no such attribute.
    """

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of fraud of each row, ``(n,) float64``, from ``(n, n_inputs)`` C-contiguous float64.

        Bit for bit independent of the other rows of the batch. NaN is missing. Uses one thread.
        """
        ...


def load_member(member_format: MemberFormat, data: bytes, n_inputs: int) -> Member:
    """Load the member in `data`. Raises `ArtifactError` if it is malformed or does not take `n_inputs` inputs.

    The caller has checked the digest. Libraries are imported on demand, so that an ensemble loads only those it needs.
    """
    try:
        return _load(member_format, data, n_inputs)
    except ArtifactError as error:
        if error.code != "artifact_invalid":
            raise
        raise ArtifactError(error.message, code="artifact_format", hint=error.hint) from None


def _load(member_format: MemberFormat, data: bytes, n_inputs: int) -> Member:
    if data[:1] == _PICKLE and data[1:2] <= b"\x05":
        raise ArtifactError("a pickle is never loaded", code="artifact_executable", hint=_PICKLE_HINT)
    if member_format == "onnx":
        from stream_scorer.ensemble.members.onnx_model import OnnxMember

        return OnnxMember(data, n_inputs)
    if member_format == "skops":
        from stream_scorer.ensemble.members.skops_zip import SkopsMember

        return SkopsMember(data, n_inputs)
    if member_format == "lightgbm-text":
        from stream_scorer.ensemble.members.lightgbm_text import LightGBMMember

        return LightGBMMember(data, n_inputs)
    if member_format == "xgboost-ubj":
        from stream_scorer.ensemble.members.xgboost_ubj import XGBoostMember

        return XGBoostMember(data, n_inputs)
    from stream_scorer.ensemble.members.dense_json import DenseMember

    return DenseMember(data, n_inputs)
