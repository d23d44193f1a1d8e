"""A model's directory as files, before anything is loaded from it; no torch.

files.py     `ModelFiles`, `PlainFolder`: what is listed can be read, and nothing else; their digest
openfile.py  a file that stays open and is checked again whenever it is read
folder.py    which files a language model may have, and what its configuration may ask for
"""

from __future__ import annotations

from cloister.learning.modelfiles.files import ModelFiles, PlainFolder, set_digest
from cloister.learning.modelfiles.folder import LanguageModel, Pooling, check_language_model

__all__ = ["LanguageModel", "ModelFiles", "PlainFolder", "Pooling", "check_language_model", "set_digest"]
