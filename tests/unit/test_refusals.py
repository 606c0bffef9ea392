"""Why a service refuses a client, in one message: certificates and missing ACLs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from proofs.secured_services import Certificates, make_certificates, tls_proxy
from stream_scorer.connections import RegistryAddress
from stream_scorer.ensemble.registry import list_versions
from stream_scorer.errors import AccessDenied, RegistryUnavailable
from stream_scorer.kafka.clients import find_refusal
from stream_scorer.kafka.errors import as_domain_error
from stream_scorer.kafka.tls import find_tls_problem


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class _Refusing(http.server.BaseHTTPRequestHandler):
    """An HTTP server that knows no user, and answers as MLflow does to a host name that it does not expect."""

    def do_GET(self) -> None:
        named = self.headers["Host"].startswith("localhost")
        status, body = (
            (403, b"Invalid Host header - possible DNS rebinding attack detected") if named else (401, b"denied")
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_fault_of_a_certificate_is_named(certificates: Certificates, port: int, tmp_path: Path) -> None:
    properties = {"security.protocol": "SSL", "ssl.ca.location": str(certificates.ca)}
    with tls_proxy(port, certificates.pair("expired")) as expired, tls_proxy(port, certificates.pair("server")) as good:
        assert "certificate has expired" in find_tls_problem(f"127.0.0.1:{expired}", properties)
        assert find_tls_problem(f"127.0.0.1:{good}", properties) == ""
        other = str(make_certificates(tmp_path).ca)
        assert "certificate" in find_tls_problem(f"127.0.0.1:{good}", properties | {"ssl.ca.location": other})
        assert find_tls_problem(f"127.0.0.1:{port}", properties) == ""


def test_a_registry_that_refuses_is_one_message(certificates: Certificates, port: int) -> None:
    ca = str(certificates.ca)
    with tls_proxy(port, certificates.pair("expired")) as expired, tls_proxy(port, certificates.pair("server")) as good:
        with pytest.raises(AccessDenied, match="certificate has expired") as caught:
            list_versions(RegistryAddress(f"https://127.0.0.1:{expired}", "user", "hush", ca))
        assert caught.value.exit_code == 4
        with pytest.raises(AccessDenied, match="denies access") as caught:
            list_versions(RegistryAddress(f"https://127.0.0.1:{good}", "user", "hush", ca))
        assert "hush" not in str(caught.value)
        with pytest.raises(AccessDenied, match="TLS connection fails"):
            list_versions(RegistryAddress(f"https://127.0.0.1:{good}", "user", "hush"))
    with pytest.raises(RegistryUnavailable):
        list_versions(RegistryAddress("https://127.0.0.1:1", "user", "hush", ca))


def test_a_registry_that_does_not_expect_its_host_name_says_what_to_set(port: int) -> None:
    with pytest.raises(AccessDenied, match=f"does not accept requests to the host name localhost:{port}") as caught:
        list_versions(RegistryAddress(f"http://localhost:{port}", "user", "hush", ""))
    assert f"--allowed-hosts localhost:{port}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "the topic"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "the consumer group"),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "the transactional id"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, "the cluster"),
    ],
)
def test_a_missing_acl_is_one_message(code: int, what: str) -> None:
    error = as_domain_error(KafkaError(code), "write to control", "broker:1")
    assert isinstance(error, AccessDenied)
    assert (
        error.message
        == f"Kafka at broker:1 does not permit this user to write to control: an ACL for {what} is missing"
    )


def test_addresses_without_security_are_not_probed() -> None:
    assert find_refusal("127.0.0.1:1") is None
