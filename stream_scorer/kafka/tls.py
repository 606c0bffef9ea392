"""The TLS settings of librdkafka for Python's ssl: for the monitor's windows, and to find why a connection fails."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stream_scorer.errors import SettingsError

# The operating system's certificates, which are Python's default too.
_DEFAULT_CA = "probe"
_CONNECT_S = 3.0
# A server that wants a client certificate refuses after the handshake (TLS 1.3).
_ALERT_S = 1.0


def tls_context(properties: Mapping[str, str]) -> ssl.SSLContext:
    """The TLS settings as Python's. Raises `SettingsError` if a file or PEM text cannot be used."""
    location = properties.get("ssl.ca.location", "")
    try:
        context = ssl.create_default_context(
            cafile=location if location != _DEFAULT_CA and not Path(location).is_dir() and location else None,
            capath=location if location and Path(location).is_dir() else None,
            cadata=properties.get("ssl.ca.pem"),
        )
        _load_certificate(context, properties)
    except OSError as error:  # includes ssl.SSLError; neither contains key material
        raise SettingsError(
            f"kafka.client: the certificates cannot be used: {error.strerror or error}",
            hint="Check ssl.ca.location, ssl.certificate.location, ssl.key.location and ssl.key.password.",
        ) from None
    if properties.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        context.check_hostname = False
    if properties.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_certificate(context: ssl.SSLContext, properties: Mapping[str, str]) -> None:
    password = properties.get("ssl.key.password", "")
    certificate, key = (properties.get(f"ssl.{part}.location") for part in ("certificate", "key"))
    if certificate:
        context.load_cert_chain(certificate, key, password)
        return
    pem = properties.get("ssl.certificate.pem")
    if pem:
        # Python loads certificates from files only. The file is readable for this user, and exists for a moment.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{pem}\n{properties.get('ssl.key.pem', '')}\n")
            file.flush()
            context.load_cert_chain(file.name, password=password)


def find_tls_problem(address: str, properties: Mapping[str, str]) -> str:
    """Why a TLS connection to `address` (``host:port``) fails because of a certificate; empty if it does not.

    librdkafka reports that verification fails, but not whether the certificate has expired or names another host.
    """
    host, _, port = address.strip().rpartition(":")
    host = host.strip("[]")
    try:
        context = tls_context(properties)
        with (
            socket.create_connection((host, int(port)), _CONNECT_S) as link,
            context.wrap_socket(link, server_hostname=host) as connection,
        ):
            connection.settimeout(_ALERT_S)
            connection.recv(1)
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of the broker is refused: {error.verify_message}"
    except ssl.SSLError as error:
        return f"the broker refuses the client's certificate: {error.reason}" if "ALERT" in (error.reason or "") else ""
    except (OSError, ValueError, SettingsError):
        return ""
    return ""
