"""A scorer in the style of tutorials: one event at a time, with separate look-ups, predictions, messages and commits.

Run as ``tutorial_loop.py CONFIG`` (JSON: bootstrap, redis, topic, out, ensemble, entities, events, seconds). It uses
the members of that ensemble, each with its own library; features are running totals, simpler than the real windows.
Delivery is at least once, not exactly once. It prints one JSON line at the end: the number of events after the first,
and their duration in seconds.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import redis
import xgboost
from confluent_kafka import Consumer, Producer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier


def main(path: str) -> int:
    """Score events until a limit of events or time is reached."""
    config = json.loads(Path(path).read_text())
    folder = Path(config["ensemble"])
    manifest = json.loads((folder / "manifest.json").read_text())
    members = [load_member(folder, member) for member in manifest["members"]]
    store = redis.Redis.from_url(config["redis"], decode_responses=True)
    consumer = Consumer(
        {
            "bootstrap.servers": config["bootstrap"],
            "group.id": "tutorial",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([config["topic"]])
    producer = Producer({"bootstrap.servers": config["bootstrap"]})

    done, started = -1, time.monotonic()
    while done < config["events"] and (done < 0 or time.monotonic() - started < config["seconds"]):
        message = consumer.poll(1.0)
        if message is None:
            if done < 0 and time.monotonic() - started > 30:
                break
            continue
        if message.error():
            continue
        event = json.loads(message.value() or b"")

        totals = {}
        for entity, field in config["entities"].items():
            if event.get(field) is None:
                continue
            key = f"tutorial:{entity}:{event[field]}"
            totals[entity] = store.hgetall(key)
            store.hincrby(key, "count", 1)
            store.hincrby(key, "sum", event["amount"])
            store.hset(key, "last", event["event_time"])
        features = {name: feature(name, event, totals) for name in manifest["features"]}

        score, weight = 0.0, 0.0
        answers = {}
        for member, predict in zip(manifest["members"], members, strict=True):
            inputs = zip(member["inputs"], member["preprocess"], strict=True)
            row = np.array([[prepare(features[name], how) for name, how in inputs]])
            answers[member["name"]] = predict(row)
            score += member["weight"] * answers[member["name"]]
            weight += member["weight"]
        score /= weight

        decision = "block" if score >= 0.8 else "review" if score >= 0.3 else "approve"
        out = {"event_id": event["event_id"], "score": score, "decision": decision, "members": answers}
        producer.produce(config["out"], json.dumps(out), message.key())
        producer.flush()
        consumer.commit(message=message, asynchronous=False)
        done += 1
        if done == 0:  # the first event includes connecting and filling caches
            started = time.monotonic()
    seconds = time.monotonic() - started
    consumer.close()
    print(json.dumps({"events": done, "seconds": seconds}))  # noqa: T201 - standard output carries the result
    return 0


def feature(name: str, event: dict[str, Any], totals: dict[str, Any]) -> float:
    """One feature from the event and the hashes; NaN if this loop does not compute it."""
    view, _, aggregate = name.partition(".")
    held = totals.get(view.split("_")[0])
    if aggregate and held is not None:
        count = int(held.get("count", 0))
        if aggregate.startswith("count"):
            return float(count + 1)
        if aggregate.startswith("mean"):
            return float((int(held.get("sum", 0)) + event["amount"]) / (count + 1))
        if aggregate == "is_new":
            return float(count == 0)
        if aggregate == "since_last" and count:
            return float(event["event_time"] - int(held["last"]))
    if name == "amount_log":
        return math.log1p(event["amount"])
    if name == "hour":
        return float(event["event_time"] // 3_600_000 % 24)
    return math.nan


def prepare(value: float, how: dict[str, Any]) -> float:
    """One input of a member: impute, clip, shift and scale."""
    if math.isnan(value) and how["impute"] is not None:
        value = how["impute"]
    if how["low"] is not None:
        value = max(value, how["low"])
    if how["high"] is not None:
        value = min(value, how["high"])
    return float((value - how["offset"]) / how["scale"])


def load_member(folder: Path, member: dict[str, Any]) -> Any:
    """A function from one row, ``(1, n_inputs) float64``, to a probability, with the member's own library."""
    path = folder / member["path"]
    if member["format"] == "lightgbm-text":
        booster = lightgbm.Booster(model_file=str(path))
        return lambda row: float(booster.predict(row)[0])
    if member["format"] == "xgboost-ubj":
        trees = xgboost.Booster()
        trees.load_model(bytearray(path.read_bytes()))
        return lambda row: float(trees.predict(xgboost.DMatrix(row, feature_names=trees.feature_names))[0])
    model = dense_model(json.loads(path.read_text())["layers"])
    return lambda row: float(model.predict_proba(row)[0, 1])


def dense_model(layers: list[dict[str, Any]]) -> Any:
    """Rebuild the scikit-learn model from its layers."""
    weights = [np.array(layer["weights"]) for layer in layers]
    biases = [np.array(layer["bias"]) for layer in layers]
    if len(layers) == 1:
        linear = LogisticRegression()
        linear.coef_, linear.intercept_ = weights[0].T, biases[0]
        linear.classes_, linear.n_features_in_ = np.array([0, 1]), len(weights[0])
        return linear
    network = MLPClassifier(activation=layers[0]["activation"])
    network.coefs_, network.intercepts_ = weights, biases
    network.n_layers_, network.n_outputs_, network.out_activation_ = len(layers) + 1, 1, "logistic"
    network.classes_, network.n_features_in_ = np.array([0, 1]), len(weights[0])
    return network


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
