from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer

from cloister.errors import CloisterError, InputError
from cloister.tutorial import (
    Client,
    EncryptedModel,
    Server,
    create_client,
    create_server,
    decrypt_model,
    encrypt_data,
)


@pytest.fixture
def trio() -> Iterator[tuple[Server, Client, Client]]:
    yield create_server(), create_client("A"), create_client("B")
    gc.collect()


def one_round(
    server: Server, model: EncryptedModel, clients: list[Client], weights: list[list[float]]
) -> EncryptedModel:
    updates = [client.submit(own, model) for client, own in zip(clients, weights, strict=True)]
    for update in updates:
        model = server.update_model(update)
    return model


def test_the_worked_averages(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    model = server.initialize_model()
    for first, second, mean in (
        ([0.6, 0.4], [0.3, 0.7], [0.45, 0.55]),
        ([0.15, 0.12], [0.08, 0.14], [0.115, 0.13]),
        ([0.14, 0.13], [0.09, 0.15], [0.115, 0.14]),
    ):
        model = one_round(server, model, [a, b], [first, second])
        np.testing.assert_allclose(decrypt_model(model).weights, mean, atol=1e-6)


def test_ten_rounds_as_the_article_writes_them() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    server = create_server()
    client_a, client_b = create_client("A"), create_client("B")
    client_a.data = X[:200], y[:200]
    client_b.data = X[200:400], y[200:400]
    encrypted_a, encrypted_b = encrypt_data(client_a.data), encrypt_data(client_b.data)
    model = server.initialize_model()
    for _ in range(10):
        models = [client_a.train(encrypted_a, model), client_b.train(encrypted_b, model)]
        for client_model in models:
            model = server.update_model(client_model)
    final = decrypt_model(model)
    assert final.score(X[400:], y[400:]) > 0.95
    assert set(np.unique(final.predict(X[400:]))) <= {0.0, 1.0}
    assert final.predict_proba(X[400:]).min() >= 0


def test_clients_without_data_get_a_share_of_real_rows(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    model = server.initialize_model()
    rows = [encrypt_data(client.data) for client in (a, b)]
    for _ in range(3):
        for update in [client.train(own, model) for client, own in zip((a, b), rows, strict=True)]:
            model = server.update_model(update)
    assert decrypt_model(model).score(b.data.X, b.data.y) > 0.85


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=2, max_size=5))
def test_any_number_of_clients_average(weights: list[list[float]]) -> None:
    server = create_server()
    clients = [create_client(f"c{number}") for number in range(len(weights))]
    model = one_round(server, server.initialize_model(), clients, weights)
    np.testing.assert_allclose(decrypt_model(model).weights, np.mean(weights, axis=0), atol=1e-5)


def test_a_linear_model(trio: tuple[Server, Client, Client]) -> None:
    del trio
    server, a, b = create_server("linear"), create_client("A"), create_client("B")
    X = np.linspace(-1, 1, 100)[:, None]
    a.data, b.data = (X[::2], 3 * X[::2, 0] + 1), np.column_stack([X[1::2], 3 * X[1::2, 0] + 1])
    model = server.initialize_model()
    rows = [encrypt_data(client.data) for client in (a, b)]
    for _ in range(10):
        for update in [client.train(own, model) for client, own in zip((a, b), rows, strict=True)]:
            model = server.update_model(update)
    assert decrypt_model(model).score(X, 3 * X[:, 0] + 1) > 0.99


def reachable(thing: object) -> Iterator[object]:
    """Everything an object's own attributes lead to."""
    seen, stack = set(), [thing]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, dict):
            stack += list(current.values()) + list(current)
        elif isinstance(current, list | tuple | set | frozenset):
            stack += list(current)
        else:
            stack += list(getattr(current, "__dict__", {}).values())
            slots = [name for kind in type(current).__mro__ for name in getattr(kind, "__slots__", ())]
            stack += [getattr(current, name) for name in slots if hasattr(current, name)]


def test_the_server_object_cannot_read_the_aggregate(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    model = one_round(server, server.initialize_model(), [a, b], [[0.6, 0.4], [0.3, 0.7]])
    truth = decrypt_model(model).weights
    held = list(reachable(server))
    assert not any(thing is a or thing is b for thing in held)
    integers = []
    for thing in held:
        if isinstance(thing, np.ndarray) and thing.size >= 2:
            integers.append(thing.ravel()[:2].astype(np.int64))
        if isinstance(thing, bytes) and len(thing) >= 8:
            integers.append(np.frombuffer(thing[:8], "<u4").astype(np.int64))
    assert integers
    for unit in (2.0**-power for power in range(10, 31)):
        for pair in integers:
            signed = ((pair + 2**31) % 2**32 - 2**31) * unit
            for scale in (1.0, 0.5):
                assert not np.allclose(signed * scale, truth, atol=1e-3)


def test_rows_are_opened_inside_train_only(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    canary = 0.123456789123
    a.data = [[canary, 1.0], [0.5, -1.0]], [1, 0]
    b.data = [[0.1, 1.0], [0.5, -1.0]], [1, 0]
    sealed = encrypt_data(a.data)
    assert np.float64(canary).tobytes() not in sealed.sealed
    with pytest.raises(InputError, match="sealed to another client"):
        b.train(sealed, server.initialize_model())
    with pytest.raises(InputError, match="encrypt_data"):
        a.train(a.data, server.initialize_model())  # type: ignore[arg-type]


def test_each_client_counts_once_a_round(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    start = server.initialize_model()
    update = a.submit([1.0, 2.0], start)
    assert server.update_model(update) == start
    with pytest.raises(InputError, match="given its result"):
        server.update_model(update)
    model = server.update_model(b.submit([1.0, 2.0], start))
    assert model.round == 1
    with pytest.raises(InputError, match="round 1"):
        server.update_model(update)
    with pytest.raises(InputError, match="round 0 is over"):
        a.submit([1.0, 2.0], start)


def test_a_second_vector_under_the_same_mask_is_refused(trio: tuple[Server, Client, Client]) -> None:
    server, a, _ = trio
    start = server.initialize_model()
    a.submit([1.0, 2.0], start)
    with pytest.raises(CloisterError):
        a.submit([1.0, 3.0], start)


def test_more_rounds_than_an_epoch_has_attempts(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    model = server.initialize_model()
    for number in range(70):
        model = one_round(server, model, [a, b], [[float(number)], [float(number)]])
    assert model.round == 70
    np.testing.assert_allclose(decrypt_model(model).weights, [69.0], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([[1.0]], [1.0, 0.0]), "1 rows and 2 labels"),
        (([["x"]], [1.0]), "not a number"),
        (([[float("nan")]], [1.0]), "finite"),
        (([], []), "finite table"),
    ],
)
def test_bad_rows_are_refused_when_they_are_assigned(rows: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_client("A").data = rows


def test_a_single_client_is_told_what_is_missing() -> None:
    server, a = create_server(), create_client("A")
    with pytest.raises(InputError, match="two clients"):
        a.submit([1.0], server.initialize_model())
    with pytest.raises(InputError, match="already"):
        create_client("A")


def test_nothing_to_open_before_the_first_round(trio: tuple[Server, Client, Client]) -> None:
    with pytest.raises(CloisterError):
        decrypt_model(trio[0].initialize_model())


def test_no_secret_in_a_repr(trio: tuple[Server, Client, Client]) -> None:
    server, a, b = trio
    model = one_round(server, server.initialize_model(), [a, b], [[0.6, 0.4], [0.3, 0.7]])
    texts = [repr(thing) for thing in (server, a, a.data, encrypt_data(a.data), model, decrypt_model(model))]
    assert texts[0] == "Server(logistic, round 1, cannot read its model)"
    assert not any("array(" in text for text in texts[:5])


@pytest.mark.parametrize(
    "names", [("Client A", "Client B"), ("医院A", "医院B"), ("north", "south_2"), ("--", "-")]
)
def test_any_names_will_do(names: tuple[str, str]) -> None:
    server, clients = create_server(), [create_client(name) for name in names]
    assert tuple(client.name for client in clients) == names
    model = one_round(server, server.initialize_model(), clients, [[1.0], [3.0]])
    np.testing.assert_allclose(decrypt_model(model).weights, [2.0], atol=1e-6)


def test_a_table_of_two_rows_is_no_pair() -> None:
    client = create_client("A")
    client.data = [[0.5, -0.5, 1], [0.25, 0.75, 0]]
    assert client.data.X.shape == (2, 2)
    assert client.data.y.tolist() == [1.0, 0.0]
