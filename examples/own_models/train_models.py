# %% [markdown]
# # Train your own models
# This notebook trains three models on the table that `stream-scorer features export` writes, and saves each in a data
# format, with its own predictions beside it. It does not import stream_scorer: any environment with these libraries is
# suitable (`requirements/own-models.txt` is one). `docs/own-models.md` continues from here to a live shadow.
#
# `own_models.ipynb` is made from `train_models.py` by `tools/make_documents.py`.

# %%
from importlib.util import find_spec
from pathlib import Path

import lightgbm
import pandas
import skops.io
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MODELS = Path("models")
MODELS.mkdir(exist_ok=True)
# The same time is in own.yaml.
TRAINED_UNTIL = "2025-01-17"

# %% [markdown]
# ## Data
# One row per transaction, by event time. The models learn from the rows before `TRAINED_UNTIL`. The later rows are for
# the calibrators, weights and metrics of `stream-scorer ensemble compose`, so no model may learn from them.

# %%
table = pandas.read_parquet("training.parquet")
features = [name for name in table.columns if name not in ("event_id", "event_time", "label")]
before = pandas.to_datetime(table["event_time"], unit="ms") < pandas.Timestamp(TRAINED_UNTIL)
train, later = table[before], table[~before]
print(f"{len(train)} rows with {train['label'].sum()} frauds to learn from, {len(later)} later rows")


def save_expected(name: str, columns: list[str], predict) -> None:
    """The model's own predictions on 500 later rows: `compose` compares the loaded model with them."""
    sample = later.iloc[:: max(len(later) // 500, 1)]
    expected = pandas.DataFrame({"event_id": sample["event_id"], "score": predict(sample[columns])})
    expected.to_parquet(MODELS / f"{name}.expected.parquet", index=False)


# %% [markdown]
# ## A scikit-learn pipeline
# skops stores it without pickle. The pipeline contains its own imputation and scaling.

# %%
history = [name for name in features if name.startswith(("customer", "terminal", "amount"))]
pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
pipeline.fit(train[history], train["label"])
skops.io.dump(pipeline, MODELS / "pipeline.skops")
save_expected("pipeline", history, lambda x: pipeline.predict_proba(x)[:, 1])

# %% [markdown]
# ## LightGBM
# The text format has the names of the columns, so `compose` matches them with the features by itself.

# %%
parameters = {"objective": "binary", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 40, "verbose": -1}
boosted = lightgbm.train(
    parameters | {"num_threads": 1, "seed": 1}, lightgbm.Dataset(train[features], train["label"]), 80
)
boosted.save_model(MODELS / "boosted.txt")
save_expected("boosted", features, lambda x: boosted.predict(x, num_threads=1))

# %% [markdown]
# ## CatBoost, through ONNX
# An ONNX file has no names of columns, so own.yaml lists the features in the order of `columns`. CatBoost exports only
# models whose labels are integers.

# %%
columns = [
    "amount_log", "amount_to_mean_7d", "amount_to_terminal_mean_7d", "customer.count_1h", "customer.count_1d",
    "terminal_risk.label_rate_7d", "device_age.is_new", "network_age.is_new", "channel_code", "hour",
]  # fmt: skip
if find_spec("catboost"):
    from catboost import CatBoostClassifier

    catboost = CatBoostClassifier(
        iterations=80, depth=4, learning_rate=0.1, random_seed=1, thread_count=1, verbose=0, allow_writing_files=False
    )
    catboost.fit(train[columns], train["label"].astype(int))
    catboost.save_model(MODELS / "catboost.onnx", format="onnx")
    save_expected("catboost", columns, lambda x: catboost.predict_proba(x)[:, 1])
