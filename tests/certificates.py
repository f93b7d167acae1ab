"""Certificates for tests, made by openssl: an authority, and what it signs."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed: TLS is NOT tested here"
)
DAY_S = 86_400.0
_CONFIG = """\
[ca]
default_ca = us
[us]
dir = .
new_certs_dir = .
database = index.txt
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[server]
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates. Its own files lie in `folder`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        (self.folder / "index.txt").touch()
        self.certificate, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        _openssl(
            *("req", "-x509", *_new_key(self.key), "-out", self.certificate),
            *("-subj", f"/CN={name}", "-days", "2"),
        )

    def pair(
        self,
        name: str,
        *,
        names: str = "DNS:localhost,IP:127.0.0.1",
        since_s: float = -DAY_S,
        until_s: float = DAY_S,
        password: str = "",
    ) -> Pair:
        """Make a certificate for `names`, valid from and until so many seconds from now."""
        made = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request = self.folder / f"{name}.csr"
        config = self.folder / f"{name}.cnf"
        config.write_text(_CONFIG.format(names=names))
        locked = ("-passout", f"pass:{password}") if password else ()
        _openssl(
            *("req", *_new_key(made.key, locked), "-out", request),
            *("-subj", f"/CN={name}"),
        )
        _openssl(
            *("ca", "-batch", "-config", config.name, "-extensions", "server", "-notext"),
            *("-in", request.name, "-out", made.certificate.name),
            *("-cert", "ca.pem", "-keyfile", "ca.key"),
            *("-startdate", _stamp(since_s), "-enddate", _stamp(until_s)),
            folder=self.folder,
        )
        return made


def _new_key(path: Path, locked: tuple[str, ...] = ()) -> tuple[object, ...]:
    ends = locked or ("-nodes",)
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", path, *ends)


def _stamp(from_now_s: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + from_now_s))


def _openssl(*words: object, folder: Path | None = None) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
