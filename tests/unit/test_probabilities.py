"""Which outputs of a member are probabilities."""

from __future__ import annotations

import numpy as np

from stream_scorer.ensemble.probabilities import keep_probabilities


def test_rounding_errors_of_float32_are_0_and_1_and_all_else_outside_is_missing() -> None:
    beyond = float(np.float32(1.0) + np.float32(1.2e-7))
    output = np.array(
        [0.0, 1.0, 0.3, -1e-10, 1.0 - beyond, beyond, -1.1e-6, 1.0 + 1.1e-6, np.nan, np.inf, -np.inf, 1e-300]
    )
    assert keep_probabilities(output) == 5
    np.testing.assert_array_equal(
        output, [0.0, 1.0, 0.3, 0.0, 0.0, 1.0, np.nan, np.nan, np.nan, np.nan, np.nan, 1e-300]
    )
