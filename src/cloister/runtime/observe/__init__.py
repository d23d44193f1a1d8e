"""Seeing what a hub or a site does, without seeing what it computes on: an event log, metrics and traces."""

from cloister.runtime.observe.fields import event_fields, event_name, one_line
from cloister.runtime.observe.log import EventLog, log_path
from cloister.runtime.observe.metrics import Metrics
from cloister.runtime.observe.observer import Observer, Watcher
from cloister.runtime.observe.reader import Line, LogReader
from cloister.runtime.observe.traces import Traces
from cloister.runtime.observe.view import SiteView, StudyView

__all__ = [
    "EventLog",
    "Line",
    "LogReader",
    "Metrics",
    "Observer",
    "SiteView",
    "StudyView",
    "Traces",
    "Watcher",
    "event_fields",
    "event_name",
    "log_path",
    "one_line",
]
