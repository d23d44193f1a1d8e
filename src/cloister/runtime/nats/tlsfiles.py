"""The three files with which one party enters the network, and the TLS settings it uses: 1.3 or nothing."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cloister.crypto import HoldsSecret
from cloister.errors import InputError, IntegrityError
from cloister.runtime.nats.certificates import key_password, wrong_passphrase

__all__ = ["TlsFiles", "client_context"]


@dataclass(frozen=True, eq=False, repr=False)
class TlsFiles(HoldsSecret):
    """Where a party's network files are, and the passphrase of its key.

    Args:
        authority: the operator's certificate; only servers that it signed are spoken to.
        certificate: this party's.
        key: its private key, as `NetworkKey.save` writes it.
        passphrase: opens the key.
    """

    authority: Path
    certificate: Path
    key: Path
    passphrase: str = field(repr=False)

    @classmethod
    def in_folder(cls, folder: Path, passphrase: str) -> TlsFiles:
        """Return the files of a home's network folder."""
        return cls(folder / "authority.pem", folder / "certificate.pem", folder / "network.key", passphrase)

    def client_context(self) -> ssl.SSLContext:
        """Return settings for connecting: TLS 1.3, the server's certificate and host name checked.

        Raises:
            InputError: a file is missing or readable by others.
            IntegrityError: a file is not what it should be, or key and certificate do not fit.
            PassphraseError: the key does not open.
        """
        for path in (self.authority, self.certificate, self.key):
            if not path.is_file():
                raise InputError(
                    "a file of the network is missing",
                    where=str(path),
                    fix="Use `cloister keys network request`, then `install`",
                )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        password = key_password(self.key, self.passphrase)
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError:
            raise IntegrityError(
                "this is not a certificate", where=str(self.authority), fix="Install the bundle again"
            ) from None
        try:
            context.load_cert_chain(self.certificate, self.key, password=password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise IntegrityError(
                    "network key and certificate do not belong together",
                    where=str(self.certificate),
                    fix="Request a new certificate and install it",
                ) from None
            raise wrong_passphrase(self.key) from None
        return context


def client_context(folder: Path, passphrase: str) -> ssl.SSLContext:
    """Return the TLS settings of the home's network folder; see `TlsFiles.client_context`."""
    return TlsFiles.in_folder(folder, passphrase).client_context()
