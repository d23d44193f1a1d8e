from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import InputError
from cloister.runtime import Burnt, Refused, RosterAgreed, RoundDone, SetupDone, Stalled, Stopped
from cloister.runtime.events import (
    Connected,
    Ended,
    EpochEnded,
    LeaseLost,
    LeaseTaken,
    Lost,
    Resumed,
    Spent,
    Started,
    Traffic,
)
from cloister.runtime.observe import Metrics, Observer
from cloister.runtime.observe.metrics import address

SITES = ("a", "b", "c")


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    served = Metrics(study="s", party="hub", peers=SITES, listen=("127.0.0.1", 0))
    yield served
    served.close()


def scrape(metrics: Metrics) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_what_is_served_follows_the_events(metrics: Metrics) -> None:
    for event in (
        Started("hub", 30, SITES),
        LeaseTaken(7),
        Connected("a"),
        Connected("b"),
        Connected("c"),
        Lost("c"),
        RosterAgreed(1, ("a", "b")),
        SetupDone(1, bytes(32)),
        Burnt(0, 0, "too few"),
        Stalled(0, ("b",)),
        RoundDone(0, 1, ("a", "b"), 2.0, epoch=1),
        RoundDone(1, 2, ("a", "b"), 4.0, epoch=1),
        Refused("a", "late"),
        Spent("patients", 0.5, 2.0, 1e-6, 0.25),
    ):
        metrics(event)
    served = scrape(metrics)
    assert served['cloister_study_info{party="hub",study="s"}'] == 1
    assert served["cloister_rounds_total"] == 2
    assert served["cloister_attempts_burnt_total"] == 1
    assert served["cloister_stalls_total"] == 1
    assert served["cloister_refused_total"] == 1
    assert served["cloister_round_seconds_sum"] == 6
    assert served["cloister_round_seconds_count"] == 2
    assert served["cloister_sites_present"] == 2
    assert served["cloister_peers_lost_total"] == 1
    assert served["cloister_members"] == served["cloister_survivors"] == 2
    assert served["cloister_rounds_planned"] == 30
    assert served["cloister_rounds_finished"] == 2
    assert served["cloister_epoch"] == 1
    assert served["cloister_lease_term"] == 7
    assert served["cloister_lease_held"] == 1
    assert served['cloister_ledger_spent{population="patients"}'] == 0.25
    assert served['cloister_ledger_epsilon{population="patients"}'] == 0.5
    assert served["cloister_last_round_timestamp_seconds"] > 1.7e9
    assert served["cloister_study_state"] == 0


def test_ends_and_restarts(metrics: Metrics) -> None:
    metrics(LeaseTaken(3))
    metrics(LeaseLost(3))
    metrics(EpochEnded(0, "a left"))
    metrics(Resumed(1, 12, 15))
    metrics(Stopped("too few"))
    served = scrape(metrics)
    assert (served["cloister_lease_held"], served["cloister_lease_term"]) == (0, 3)
    assert served["cloister_epochs_ended_total"] == served["cloister_resumed_total"] == 1
    assert (served["cloister_rounds_finished"], served["cloister_epoch"]) == (12, 1)
    assert served["cloister_study_state"] == 2
    metrics(Ended(30))
    assert scrape(metrics)["cloister_study_state"] == 1


def test_totals_of_bytes_become_counters_also_where_they_begin_anew(metrics: Metrics) -> None:
    for total in (100, 250, 250, 30):
        metrics(Traffic({"a": total}, {"a": 2 * total}))
    served = scrape(metrics)
    assert served['cloister_bytes_total{direction="sent",peer="a"}'] == 280
    assert served['cloister_bytes_total{direction="received",peer="a"}'] == 560


def test_no_label_comes_from_a_stranger(metrics: Metrics) -> None:
    metrics(Connected("eve"))
    metrics(Lost("eve"))
    metrics(Refused("eve", "canary"))
    metrics(Traffic({}, {f"eve{number}": 1 for number in range(1000)} | {"a": 5}))
    served = scrape(metrics)
    assert not [key for key in served if "eve" in key or "canary" in key]
    assert served['cloister_bytes_total{direction="received",peer="other"}'] == 1000
    assert served["cloister_sites_present"] == 0


def test_a_peer_that_connects_twice_counts_once(metrics: Metrics) -> None:
    metrics(Connected("a"))
    metrics(Connected("a"))
    assert scrape(metrics)["cloister_sites_present"] == 1


def test_two_observers_keep_their_figures_apart_and_let_their_ports_go() -> None:
    first, second = (
        Metrics(study="s", party=party, peers=SITES, listen=("127.0.0.1", 0)) for party in ("x", "y")
    )
    first(Burnt(0, 0, ""))
    assert scrape(second)["cloister_attempts_burnt_total"] == 0
    first.close()
    second.close()
    first.close()
    assert first.port is not None
    Metrics(study="s", party="x", peers=SITES, listen=("127.0.0.1", first.port)).close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("monitor.example:80", ("monitor.example", 80)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert address(text) == found


@pytest.mark.parametrize(
    "text", ["", "9464", "host", "host:", "host:http", "host:-1", "host:65536", "host:\u0663"]
)
def test_what_is_no_address_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="metrics need an address"):
        address(text)


def test_a_port_that_is_taken_is_one_sentence_and_leaves_no_log_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="cannot serve metrics"):
            Observer.of(tmp_path, study="s", party="hub", metrics=f":{port}")


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"metrics need prometheus-client.*cloister\[observe\]"):
        Metrics(study="s", party="hub", peers=())


def test_off_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with Observer.of(tmp_path, study="s", party="hub") as observer:
        observer(Ended(1))
