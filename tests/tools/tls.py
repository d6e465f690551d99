"""Certificates made for one run of the tests: a key in the repository would be everybody's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.tools.machine import missing

__all__ = ["Authority"]


class Authority:
    """A certificate authority of the test's own, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            missing("openssl is not installed")
        self._openssl, self._folder = openssl, folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        self._make("ca", "-subj", "/CN=Test CA", "-addext", "basicConstraints=critical,CA:TRUE")

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key for *name*, which stands for that host and no other."""
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        self._make(name, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", *signed)
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def self_signed(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key for *name*, signed by nobody else."""
        self._make(name, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _make(self, name: str, *options: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        out = ["-keyout", f"{self._folder}/{name}.key", "-out", f"{self._folder}/{name}.pem"]
        subprocess.run(
            [self._openssl, "req", "-x509", "-days", "2", *key, *out, *options],
            check=True,
            capture_output=True,
        )
