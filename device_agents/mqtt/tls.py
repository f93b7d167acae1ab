"""TLS to the broker: its files, what may be wrong with each, and what a failed handshake means.

TLS 1.2 or newer, the broker's certificate and host name always checked: there is no switch to
turn that off. A certificate that is not valid *yet* is waited for: after a boot without a battery
behind its clock a device lives in 1970, and the time comes over the network later.
"""

from __future__ import annotations

import binascii
import calendar
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, InputError, MachineError

# X509_V_ERR_*, from OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAME = (62, 63, 64)  # host name, e-mail, IP address
_UNKNOWN_SIGNER = (2, 18, 19, 20, 21)  # no issuer found, self-signed, an incomplete chain

# What a broker's TLS alert says of *our* certificate (or of the lack of one).
_ALERTS_ABOUT_US = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "UNKNOWN_CA",
    "ACCESS_DENIED",
    "HANDSHAKE_FAILURE",
)

_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0


@dataclass(frozen=True)
class Tls:
    """Whom we trust, and who we are. Paths of PEM files; `repr` never shows the password."""

    ca_file: str  # who may have signed the broker's certificate
    certificate_file: str | None = None  # with `key_file`: mutual TLS
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)


class _HearsAlerts(ssl.SSLSocket):
    """Looks for the broker's last words where a write finds the connection closed.

    With TLS 1.3 a broker refuses our certificate after the handshake is done for us: its alert
    lies unread while the first write fails with no reason at all.
    """

    def send(self, data: Any, flags: int = 0) -> int:
        """Send, and raise the broker's alert where there is one."""
        try:
            return super().send(data, flags)
        except (ssl.SSLEOFError, ConnectionError):
            self.recv(1)
            raise


def context_from(tls: Tls, *, now_s: float | None = None) -> ssl.SSLContext:
    """Read the files into a client's TLS context.

    Raises InputError naming the file that is wrong; MachineError where our own certificate is
    not valid yet, which time alone mends.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _HearsAlerts
    _text_of(tls.ca_file, "the certificate of whoever signed the broker's (PEM)")
    try:
        context.load_verify_locations(cafile=tls.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            where=tls.ca_file,
            expected="one or more certificates in PEM (-----BEGIN CERTIFICATE-----)",
            found=_reason_of(error),
            do="Give the authority's certificate as the CA file (broker.ca_file, --ca); "
            "`openssl x509 -inform der` turns DER into PEM.",
        ) from None
    if tls.certificate_file is not None and tls.key_file is not None:
        certificate = _text_of(tls.certificate_file, "our own certificate (PEM)")
        key = _text_of(tls.key_file, "the private key of our certificate (PEM)")
        _load_own(context, tls, key)
        _refuse_outside_validity(tls.certificate_file, certificate, now_s or time.time())
    return context


def failed_handshake(error: ssl.SSLError, broker: object, tls: Tls) -> EdgeError:
    """Say what a failed handshake means: who can mend it, and how."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, broker, tls)
    reason = error.reason or str(error)
    if is_about_our_certificate(reason):
        return refused_certificate(reason, broker, tls)
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        expected, do = "a broker with TLS 1.2 or newer", "Let the broker offer TLS 1.2 or 1.3."
    else:
        expected = "a broker that speaks TLS on this port"
        do = "Check broker.port: 8883 is usual for TLS, 1883 for plain MQTT."
    return MachineError(where=broker, expected=expected, found=_reason_of(error), do=do)


def is_about_our_certificate(reason: str) -> bool:
    """Tell whether a TLS alert's name (or a text that holds it) blames our certificate."""
    return "ALERT" in reason and any(alert in reason for alert in _ALERTS_ABOUT_US)


def refused_certificate(reason: str, broker: object, tls: Tls) -> InputError:
    """Say that the broker does not take the certificate that we show it, or that we show none."""
    words = next((a for a in _ALERTS_ABOUT_US if a in reason), reason).replace("_", " ").lower()
    shown = tls.certificate_file
    return InputError(
        where=shown or broker,
        expected=f"a certificate that {broker} takes",
        found=f"its TLS alert '{words}'" + ("" if shown else ", and we show no certificate"),
        do="Have a certificate for this station signed by an authority that the broker trusts, "
        "and name it and its key (broker.certificate_file, broker.key_file; --certificate, --key).",
    )


def validity_of(certificate: bytes) -> tuple[float, float] | None:
    """Return (from, until) of the first PEM certificate as Unix seconds; None if unreadable.

    Reads only as far as the validity, by X.690 (DER) and RFC 5280, 4.1: the standard library has
    no public way to read a certificate from a file.
    """
    try:
        text = certificate.decode("ascii", errors="replace")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin)
        der = binascii.a2b_base64(text[begin + 27 : end])
        outer = _element(der, 0)[1]
        body = _element(outer, 0)[1]
        at = 0
        tag, _, after = _element(body, at)
        if tag == _VERSION:
            at = after
        for _ in range(3):  # serial number, signature algorithm, issuer
            at = _element(body, at)[2]
        tag, validity, _ = _element(body, at)
        if tag != _SEQUENCE:
            return None
        tag, first, after = _element(validity, 0)
        since = _unix_of(tag, first)
        tag, second, _ = _element(validity, after)
        return since, _unix_of(tag, second)
    except (ValueError, IndexError, OverflowError):  # binascii.Error is a ValueError
        return None


def iso_utc(unix_s: float) -> str:
    """Write a moment for people, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def _load_own(context: ssl.SSLContext, tls: Tls, key: bytes) -> None:
    assert tls.certificate_file is not None
    assert tls.key_file is not None
    encrypted = b"ENCRYPTED" in key
    try:
        # The password is always given: OpenSSL would ask for it on the terminal.
        context.load_cert_chain(tls.certificate_file, tls.key_file, tls.key_password or "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else ""
        if reason == "KEY_VALUES_MISMATCH":
            where, expected = tls.key_file, f"the private key of {tls.certificate_file}"
            found, do = "the key of another certificate", "Give the two that were made together."
        elif encrypted:
            where, expected = tls.key_file, "a password that opens the key"
            found = "a wrong one" if tls.key_password else "none"
            do = "Write it as the first line of the file named by broker.key_password_file."
        elif b"PRIVATE KEY-----" not in key:
            where, expected = tls.key_file, "a private key in PEM (-----BEGIN PRIVATE KEY-----)"
            found, do = "no such text", "Give the key itself, not a certificate or a request."
        else:
            where, expected = tls.certificate_file, f"a PEM certificate whose key is {tls.key_file}"
            found, do = _reason_of(error), "Check both with `openssl x509` and `openssl pkey`."
        raise InputError(where=where, expected=expected, found=found, do=do) from None


def _refuse_outside_validity(path: str, certificate: bytes, now_s: float) -> None:
    validity = validity_of(certificate)
    if validity is None:
        return  # OpenSSL took it; the broker will judge
    since, until = validity
    if now_s < since:
        raise MachineError(
            where=path,
            expected="a clock past the start of our certificate",
            found=f"the clock at {iso_utc(now_s)}, and {iso_utc(since)} as the start",
            do="Waiting for the time: nothing is lost meanwhile. Check the time service (NTP) if "
            "it does not come.",
        )
    if now_s > until:
        raise InputError(
            where=path,
            expected=f"a certificate that is valid at {iso_utc(now_s)}",
            found=f"one that ended at {iso_utc(until)}",
            do="Have it renewed; the file is read again at the next connection.",
        )


def _unverified(error: ssl.SSLCertVerificationError, broker: object, tls: Tls) -> EdgeError:
    code, message = error.verify_code, error.verify_message
    if code == _NOT_YET_VALID:
        return MachineError(
            where=broker,
            expected="a certificate that is valid already",
            found=f"one that is not valid yet at {iso_utc(time.time())}, as this clock says",
            do="Waiting for the time: nothing is lost meanwhile. Check the time service (NTP) if "
            "it does not come.",
        )
    if code == _EXPIRED:
        return MachineError(
            where=broker,
            expected=f"a certificate that is valid at {iso_utc(time.time())}",
            found="one that has expired",
            do="Renew the broker's certificate, or correct this machine's clock.",
        )
    if code in _WRONG_NAME:
        return InputError(
            where=broker,
            expected="a certificate for the host that we name",
            found=message,
            do="Name the broker as its certificate does, or have one made for this name.",
        )
    if code in _UNKNOWN_SIGNER:
        return InputError(
            where=tls.ca_file,
            expected=f"the authority that signed the certificate of {broker}",
            found=message,
            do="Ask who runs the broker for its authority's certificate, and name it as the CA "
            "file (broker.ca_file, --ca).",
        )
    return InputError(
        where=broker,
        expected="a certificate that can be trusted",
        found=message,
        do=f"Have the broker's certificate made anew; we trust {tls.ca_file}.",
    )


def _text_of(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            where=path,
            expected=what,
            found=error.strerror or str(error),
            do="Put the file there, readable by the user that the agent runs as.",
        ) from None


def _reason_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "nothing"


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Read one DER element: its tag, its content, and where the next one starts."""
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + length > len(data):
        raise ValueError("cut short")
    return tag, data[start : start + length], start + length


def _unix_of(tag: int, digits: bytes) -> float:
    """Read a UTCTime (two digits of year, 1950 to 2049) or a GeneralizedTime."""
    text = digits.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
