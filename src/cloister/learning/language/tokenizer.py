"""What identifies a base's tokenizer: the digest of its files, chat template included. Nothing is loaded."""

from __future__ import annotations

from cloister.crypto import sha256
from cloister.learning.modelfiles.files import ModelFiles, set_digest
from cloister.learning.modelfiles.folder import LanguageModel

__all__ = ["tokenizer_digest"]


def tokenizer_digest(files: ModelFiles, found: LanguageModel) -> str:
    """Return the digest of a tokenizer's files, 64 hex digits; plans write it as `[language] tokenizer`.

    Args:
        files: of the base.
        found: what `check_language_model` found in them.

    Raises:
        IntegrityError: a file is not what it was.
    """
    return set_digest((name, files.size(name), sha256(files.read(name))) for name in found.tokenizer)
