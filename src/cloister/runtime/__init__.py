"""Hub and sites: state machines that exchange signed, encrypted messages, and a study that runs them in one
process."""

from cloister.runtime.ends import HubEnd, SiteEnd
from cloister.runtime.events import (
    Burnt,
    Event,
    OnEvent,
    Refused,
    RosterAgreed,
    RoundDone,
    SetupDone,
    Stalled,
    Stopped,
)
from cloister.runtime.hub import Hub, Outgoing, Step
from cloister.runtime.party import Party
from cloister.runtime.query import FederatedQuery, ask, plan_query
from cloister.runtime.result import EpochFacts, StudyResult
from cloister.runtime.roster import (
    COUNTERSIGNATURE_TYPE,
    Countersignature,
    countersign,
    manifest_digest,
    read_countersignature,
)
from cloister.runtime.site import Site
from cloister.runtime.store import RoundEntry, StudyRecord, StudyState, load_study, record_of, save_study
from cloister.runtime.study import Study
from cloister.runtime.transport import MemoryNetwork, MemoryTransport
from cloister.runtime.worker import LocalWorker

__all__ = [
    "COUNTERSIGNATURE_TYPE",
    "Burnt",
    "Countersignature",
    "EpochFacts",
    "Event",
    "FederatedQuery",
    "Hub",
    "HubEnd",
    "LocalWorker",
    "MemoryNetwork",
    "MemoryTransport",
    "OnEvent",
    "Outgoing",
    "Party",
    "Refused",
    "RosterAgreed",
    "RoundDone",
    "RoundEntry",
    "SetupDone",
    "Site",
    "SiteEnd",
    "Stalled",
    "Step",
    "Stopped",
    "Study",
    "StudyRecord",
    "StudyResult",
    "StudyState",
    "ask",
    "countersign",
    "load_study",
    "manifest_digest",
    "plan_query",
    "read_countersignature",
    "record_of",
    "save_study",
]
