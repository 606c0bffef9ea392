"""The catalogue of proofs: what each one shows, how long it takes, and which services it shares with others."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

KAFKA_REDIS = ("kafka", "redis")


@dataclass(frozen=True, slots=True)
class Proof:
    """One proof.

    Args:
        title: what it shows, in one line.
        seconds: measured on 2 cores; `make prove-all` runs short proofs first and stops one that takes many times as
            long.
        shares: services that it uses of a stack that other proofs used before; `kit.services` empties them first.
        own: why it starts services of its own instead, or what else sets it apart. Such proofs run after the others.
        recurses: it runs this project's own tests; such proofs run last.
        module: its module, if that is not named as the slug.
    """

    title: str
    seconds: int
    shares: tuple[str, ...] = ()
    own: str = ""
    recurses: bool = False
    module: str = ""


PROOFS = {
    "fresh-clone": Proof(
        "a fresh clone runs make demo and make test twice and leaves no process",
        1_080,
        own="runs make demo and make test, which start their own services",
        recurses=True,
    ),
    "kill-once": Proof(
        "every input has one output whatever is killed; features count each event id once",
        168,
        own="kills scorers and leaves their transactions open",
    ),
    "contract": Proof(
        "in-memory parts pass the same suites as Kafka and Redis, which find a fault in each of them",
        73,
        own="runs suites of the tests, which start their own services",
    ),
    "leaks": Proof(
        "planted card numbers and secrets are found in no topic, log, metric, page or key of Redis",
        109,
        ("kafka", "redis", "mlflow"),
    ),
    "holes": Proof(
        "each defect of the audit has a test, which fails without the fix",
        100,
        own="runs tests, which start their own services",
    ),
    "garbage": Proof("bad input is dead-lettered with code and path, the rest is scored", 28, KAFKA_REDIS),
    "additive": Proof(
        "contributions add up to z, z gives the score, members equal their own libraries", 71, KAFKA_REDIS
    ),
    "additivity": Proof("every combiner: contributions equal Shapley values by enumeration and add up to z", 53),
    "member-faults": Proof(
        "a member that fails, hangs or holds the lock costs its own part of scores and no more",
        116,
        own="a scorer that hangs is killed and leaves its group without notice",
    ),
    "swap-under-load": Proof(
        "versions come and go under load: nothing lost, doubled or mixed; what each command took",
        132,
        own="measures latency under load",
    ),
    "control-race": Proof(
        "people and a monitor command at once, scorers die and start: one history, one state", 58, own="kills scorers"
    ),
    "incident": Proof(
        "a minor update of one member raises alerts: the monitor sees it, names it and rolls it back",
        129,
        own="kills the monitor, and measures under load",
    ),
    "false-alarms": Proof(
        "versions that change nothing are hardly ever withdrawn, although alerts come in bursts on one card", 112
    ),
    "incidents": Proof(
        "20 faulty updates of 5 kinds and 8 faults upstream: detected, named, and answered in the right way", 141
    ),
    "healthy": Proof(
        "100 days of changing traffic without a fault: no drift alarm, and healthy updates are not rolled back",
        866,
    ),
    "drift-events": Proof(
        "the detector of drift events keeps its rate of false alarms, and finds changes within a few windows", 240
    ),
    "drift-peers": Proof(
        "our detector of drift events against those of other libraries, at one rate of false alarms",
        354,
        own="builds virtual environments from the package registry or its cache; needs no services",
    ),
    "alert-rules": Proof(
        "alert rules and queries of dashboards are valid; each alert fires and stays silent when it should",
        64,
        own="builds promtool at its first run; needs no services",
    ),
    "fpr-oracle": Proof(
        "false-positive rates equal a recomputation; bounds and intervals contain the truth of a closed loop",
        160,
    ),
    "sticky": Proof("an entity keeps its arm in every process and while the share grows", 21),
    "hostile-artifacts": Proof(
        "whatever an ensemble's files hold: refused with a code, nothing executed, no process dies", 96
    ),
    "members-bench": Proof(
        "members cost a fraction of their libraries' predictions, with the same sums; what the whole stage costs",
        60,
        own="measures speed; needs no services",
    ),
    "usage": Proof(
        "wrong usage gives one readable message and the exit code of the contract", 32, ("kafka", "redis", "mlflow")
    ),
    "secured": Proof(
        "the main job with least privilege on secured Kafka, Redis and MLflow; refusals in one readable message",
        209,
        own="its services have users, certificates and ACLs",
    ),
    "images": Proof(
        "the commands of each image run in an environment built from its requirement file",
        70,
        own="builds virtual environments from the package registry or its cache",
    ),
    "lineage": Proof(
        "bytes and CPU of contributions and lineage against the old record; both serve verify and explain",
        288,
        KAFKA_REDIS,
    ),
    "audit": Proof(
        "an archive holds without any service; each alteration is found; who decided what served at any time",
        171,
        own="stops its services before it checks the archive",
    ),
    "verify": Proof(
        "published scores equal a recomputation from their records; what is altered is found", 70, KAFKA_REDIS
    ),
    "replay-thin": Proof(
        "a replay gives the scores and contributions that were served, and touches nothing live", 132, KAFKA_REDIS
    ),
    "as-of": Proof(
        "an evaluation depends on the labels of its label time only, whatever the batches, also after a kill", 94
    ),
    "versions": Proof(
        "five versions that share four members cost at most 1.5 times one version; scores equal single passes", 92
    ),
    "evaluate-bench": Proof(
        "an evaluation costs at most 2.5 times the bare predictions of its members' libraries, in flat memory",
        77,
        own="measures CPU time and memory",
    ),
    "ray": Proof(
        "an evaluation on Ray has the digests of the local engine; all of its ports are on loopback",
        1_800,
        own="measures time and memory",
        module="ray_engine",  # not the name of the library
    ),
    "monitor-thin": Proof(
        "windows equal an offline recomputation; FPR bounds contain the hidden truth",
        116,
        own="kills scorer and monitor with a transaction open",
    ),
    "monitor-crash": Proof(
        "windows stay exact and a due rollback is issued once, although each part of the monitor is killed 20 times",
        360,
        own="kills monitors with a transaction open, and flushes Redis",
    ),
    "monitor-bench": Proof(
        "one worker of each part of the monitor keeps up with the scorer, in flat memory; counting is cheap",
        2_243,
        own="measures CPU time, also that of Redis, and memory",
    ),
    "train-repeat": Proof(
        "training again gives the same members, manifest and profile, also on another number of cores", 57
    ),
    "handbook-table": Proof(
        "the Handbook's chapter 3 table by the product's training, its chapter 5 folds, and the ensemble against "
        "its best member",
        192,
    ),
    "handbook-live": Proof(
        "quality on the Fraud Detection Handbook's transactions, by the live path", 116, KAFKA_REDIS
    ),
    "features-oracle": Proof(
        "served features equal a brute-force recomputation on 21 days of the Handbook", 140, KAFKA_REDIS
    ),
    "features-crash": Proof(
        "rows and features equal the log after 1,000 crashes in memory and 50 kill -9 on real parts",
        470,
        own="kills scorers and leaves their transactions open",
    ),
    "refusal": Proof(
        "Redis refuses writes, hangs or breaks connections: no wrong feature is called fresh, scoring goes on",
        178,
        own="stops the Redis process and changes its settings",
    ),
    "gate": Proof(
        "the gate refuses bad candidates, each for the right reason; likewise `ensemble promote`", 138, KAFKA_REDIS
    ),
    "storm": Proof(
        "generated schedules of overlapping faults: outputs once, features, rows, windows and control right",
        6_000,
        own="kills and suspends everything",
    ),
    "features-flush": Proof(
        "lost features are noticed, and rebuilt while scoring goes on", 512, own="flushes Redis under live traffic"
    ),
    "features-batch": Proof("the same feature bytes at 1, 7, 256 and 1,024 a batch", 156, KAFKA_REDIS),
    "features-property": Proof("every aggregate equals a naive recomputation, whatever is odd about the events", 148),
    "features-hotkey": Proof(
        "one terminal with a tenth of the traffic costs little more and errs within the bound",
        104,
        own="measures the CPU time of Redis",
    ),
    "features-retire": Proof("rows that are no longer read are deleted, and no feature changes", 8, ("redis",)),
    "features-alignment": Proof(
        "a backlog drains side by side in event time, and terminals are not under-counted", 48, KAFKA_REDIS
    ),
    "features-own-data": Proof("two data sets of one's own run from CSV to scores", 46, KAFKA_REDIS),
    "own-model": Proof(
        "models trained in an environment without this project become a live shadow by the commands of a page",
        116,
        ("kafka", "redis", "mlflow"),
    ),
    "workflows": Proof(
        "the Prefect flow and the Airflow DAG lead from nothing to a shadow; Argo's and Kubeflow's files are valid",
        416,
        own="builds virtual environments from the package registry or its cache",
    ),
    "features-bench": Proof(
        "what the feature path costs, by part, by length of rows and number of entities",
        174,
        own="measures the CPU time of Redis",
    ),
    "flat": Proof(
        "cost per transaction over the number of entities, partitions, views and members",
        226,
        own="measures the CPU time of Redis",
    ),
    "soak": Proof(
        "hours of load and new versions: memory, descriptors, threads, disk and latency stay within slopes",
        7_264,
        own="measures memory and latency for hours",
    ),
    "bench": Proof(
        "throughput and latency against the passthrough limit and a per-event loop", 325, own="measures speed"
    ),
}


def module_of(slug: str) -> ModuleType:
    """The module of a proof; its ``run(context)`` is the proof."""
    return importlib.import_module(f"proofs.{PROOFS[slug].module or slug.replace('-', '_')}")
