"""What survives the process: an encrypted log, and what a site keeps of a study between two breaths.

To use: `EncryptedLog` for any records; `SiteJournal` for a site, `NoJournal` where nothing is to survive.
"""

from cloister.runtime.journal.kept import EpochKept, KeepsSite, NoJournal, SiteKept, SiteSnapshot
from cloister.runtime.journal.log import EncryptedLog
from cloister.runtime.journal.sitejournal import SiteJournal
from cloister.runtime.journal.volatile import volatile_folder

__all__ = [
    "EncryptedLog",
    "EpochKept",
    "KeepsSite",
    "NoJournal",
    "SiteJournal",
    "SiteKept",
    "SiteSnapshot",
    "volatile_folder",
]
