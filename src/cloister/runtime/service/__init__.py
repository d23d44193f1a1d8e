"""Running parties between organisations: a hub for one study, a site for all it is invited to."""

from cloister.runtime.service.hubservice import HoldsLease, HubService, NoLease
from cloister.runtime.service.siteservice import SiteService

__all__ = ["HoldsLease", "HubService", "NoLease", "SiteService"]
