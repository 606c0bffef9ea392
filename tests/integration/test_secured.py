"""Clients of a Kafka with TLS, users and ACLs, and of a Redis with TLS and ACL users (proof `secured`, scaled down)."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import aiokafka
import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from proofs.secured_services import Acls, Certificates, SecuredKafka, kafka, make_certificates, redis_with_acl
from stream_scorer.clock import SystemClock
from stream_scorer.connections import Brokers, TokenSource, redis_address
from stream_scorer.errors import AccessDenied, StateDenied
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.follower import RecordFollower
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.permissions import ROLES, Names, acl_commands, missing_permissions, permissions
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.kafka.transactions import TransactionPair
from stream_scorer.monitor.credentials import credentials
from stream_scorer.state.client import connect, mapped_errors
from stream_scorer.state.redis_rows import RedisRowStore

pytestmark = pytest.mark.integration
TOPICS = Topics("", {"transactions": "payments.card.auth"})
NAMES = Names(TOPICS, "fraud", "fraud-monitor")
PASSWORDS = {role: f"{role}-password" for role in ROLES}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredKafka]:
    """A broker whose users have the ACLs of their roles; the operator has created the topics."""
    with kafka(tmp_path_factory.mktemp("secured"), certificates, PASSWORDS) as broker:
        commands = [c for role in ROLES for c in acl_commands(permissions(role, NAMES, role), f"User:{role}")]
        Acls(broker.internal).apply(commands)
        admin = TopicAdmin(user("operator", broker, certificates))
        for left in reversed(range(20)):
            try:
                assert set(admin.create_all(TOPICS, 1)) == set(TOPICS.all())
                break
            except AccessDenied:  # the broker applies the ACLs somewhat later
                if not left:
                    raise
                time.sleep(0.5)
        yield broker


def user(role: str, cluster: SecuredKafka, certificates: Certificates, **more: str) -> Brokers:
    properties = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates.ca),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": role,
        "sasl.password": PASSWORDS[role],
    }
    return Brokers(cluster.secured, properties | {name.replace("_", "."): value for name, value in more.items()})


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_what_it_needs(cluster: SecuredKafka, certificates: Certificates, role: str) -> None:
    brokers = user(role, cluster, certificates)
    assert missing_permissions(brokers, permissions(role, NAMES)) == []  # type: ignore[arg-type]
    assert missing_permissions(brokers, permissions("operator", NAMES)) != [] or role == "operator"


def test_an_operator_issues_a_command_and_a_subscriber_does_not(
    cluster: SecuredKafka, certificates: Certificates
) -> None:
    log = ControlLog(user("operator", cluster, certificates), TOPICS.control)
    offset = log.append("cards", b"{}")
    while not (records := log.read(1.0)):
        pass
    assert records[-1].offset == offset
    log.close()
    log = ControlLog(user("subscriber", cluster, certificates), TOPICS.control)
    with pytest.raises(AccessDenied, match="does not permit this user to write to control"):
        log.append("cards", b"{}")
    log.close()
    with pytest.raises(AccessDenied, match="describe topic control"):
        TopicAdmin(user("subscriber", cluster, certificates)).require([TOPICS.control])


def test_a_producer_writes_the_inputs_and_a_scorer_does_not(cluster: SecuredKafka, certificates: Certificates) -> None:
    def write(role: str) -> None:
        with OpenLoopProducer(
            user(role, cluster, certificates), client_id="test", clock=SystemClock(), sleep=time.sleep
        ) as producer:
            producer.publish(TOPICS.transactions, [b"k"], [b"{}"])

    write("producer")
    with pytest.raises(AccessDenied, match=f"write to {TOPICS.transactions}: an ACL for the topic is missing"):
        write("scorer")
    with RecordFollower(
        user("scorer", cluster, certificates), TOPICS.transactions, client_id="stream-scorer-test", start="beginning"
    ) as reader:
        records = []
        deadline = time.monotonic() + 30
        while not records and time.monotonic() < deadline:
            records = reader.poll(timeout_s=0.5)
    assert [record.value for record in records] == [b"{}"]


def test_a_transaction_without_permission_ends_instead_of_being_tried_again(
    cluster: SecuredKafka, certificates: Certificates
) -> None:
    with pytest.raises(AccessDenied, match="transactional id"):
        TransactionPair(user("subscriber", cluster, certificates), "fraud-1")
    pair = TransactionPair(user("scorer", cluster, certificates), "fraud-1")
    transaction = pair.next()
    transaction.begin()
    transaction.produce(TOPICS.control, 0, b"cards", b"{}")
    with pytest.raises(AccessDenied, match="an ACL for the topic is missing"):
        transaction.commit({}, None)
    pair.close()


def test_a_wrong_password_and_an_expired_certificate_are_named(
    cluster: SecuredKafka, certificates: Certificates
) -> None:
    with pytest.raises(AccessDenied, match="does not accept the credentials.*SCRAM") as caught:
        TopicAdmin(user("scorer", cluster, certificates, sasl_password="a-wrong-one")).partitions()
    assert "a-wrong-one" not in str(caught.value)
    expired = Brokers(cluster.expired, user("scorer", cluster, certificates).properties)
    with pytest.raises(AccessDenied, match="certificate has expired"):
        TopicAdmin(expired).partitions()


def test_client_certificates(cluster: SecuredKafka, certificates: Certificates) -> None:
    properties = {"security.protocol": "SSL", "ssl.ca.location": str(certificates.ca)}
    with pytest.raises(AccessDenied, match="refuses the client's certificate"):
        TopicAdmin(Brokers(cluster.mutual, properties)).partitions()
    pair = str(certificates.pair("client"))
    brokers = Brokers(cluster.mutual, properties | {"ssl.certificate.location": pair, "ssl.key.location": pair})
    TopicAdmin(brokers).partitions()
    assert asyncio.run(topics_of_the_monitor(brokers)) == set()


def test_tokens_from_a_command(cluster: SecuredKafka, certificates: Certificates, tmp_path: Path) -> None:
    claims = {"sub": "subscriber", "iat": time.time(), "exp": time.time() + 300}
    head, body = (base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in ({"alg": "none"}, claims))
    (tmp_path / "token").write_bytes(head + b"." + body + b".")
    properties = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(certificates.ca),
        "sasl.mechanism": "OAUTHBEARER",
    }
    brokers = Brokers(cluster.tokens, properties, TokenSource(command=("cat", str(tmp_path / "token"))))
    assert TOPICS.scores in TopicAdmin(brokers).partitions()
    assert TOPICS.scores in asyncio.run(topics_of_the_monitor(brokers))
    with pytest.raises(AccessDenied, match="token command false"):
        TopicAdmin(Brokers(cluster.tokens, properties, TokenSource(command=("false",))))


def test_the_windows_of_the_monitor_connect_with_the_same_properties(
    cluster: SecuredKafka, certificates: Certificates
) -> None:
    assert TOPICS.score_summaries in asyncio.run(topics_of_the_monitor(user("monitor", cluster, certificates)))


async def topics_of_the_monitor(brokers: Brokers) -> set[str]:
    """The topics that aiokafka sees with Faust's options."""
    options = credentials_to_aiokafka_auth(credentials(brokers))
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=str(brokers), **options)
    await consumer.start()
    try:
        return set(await consumer.topics())
    finally:
        await consumer.stop()


def test_redis_with_tls_and_users(certificates: Certificates, tmp_path: Path) -> None:
    acl = (Path(__file__).parents[2] / "deploy" / "redis" / "users.acl").read_text()
    with redis_with_acl(tmp_path, certificates, acl) as (url, expired):

        def client(address: str, password: str) -> object:
            found = connect(
                redis_address(address, username="scorer", password=password, ca_file=str(certificates.ca)),
                timeout_s=20,
                connect_timeout_s=20,
            )
            with mapped_errors(address):
                return found.get("{stream-scorer:rows:0}:epoch")

        assert client(url, "SCORER_PASSWORD") is None
        with pytest.raises(StateDenied, match="invalid username-password pair"):
            client(url, "wrong")
        with pytest.raises(StateDenied, match="certificate has expired"):
            client(expired, "SCORER_PASSWORD")
        monitor = connect(
            redis_address(url, username="monitor", password="MONITOR_PASSWORD", ca_file=str(certificates.ca)),
            timeout_s=20,
            connect_timeout_s=20,
        )
        with pytest.raises(StateDenied, match="no permissions"), mapped_errors(url):
            monitor.get("{stream-scorer:rows:0}:epoch")
        assert RedisRowStore(monitor, "doctor", [], labels_topic="", horizon_ms=0).check_eviction_policy()
