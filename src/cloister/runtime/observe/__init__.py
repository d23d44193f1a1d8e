"""Seeing what a hub or a site does, without seeing what it computes on: an event log, metrics and traces."""

from cloister.runtime.observe.fields import event_fields, event_name
from cloister.runtime.observe.observer import Observer, Watcher

__all__ = ["Observer", "Watcher", "event_fields", "event_name"]
