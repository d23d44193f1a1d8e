"""Two hospitals, A and B, train one model; neither shows its rows to the other or to the server."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer

from cloister.tutorial import create_client, create_server, decrypt_model, encrypt_data

# Ten measures of cell nuclei, and the bounds of each, written down from knowledge and not from the rows.
LOW = np.array([5, 5, 30, 75, 0.03, 0, 0, 0, 0.05, 0.03])
HIGH = np.array([35, 45, 240, 3900, 0.2, 0.5, 0.6, 0.3, 0.4, 0.12])


def main() -> None:
    rows = load_breast_cancer()
    X = 2 * (rows.data[:, :10] - LOW) / (HIGH - LOW) - 1  # bounds to -1 .. 1, the same rule at both hospitals
    y = 1.0 - rows.target  # 1 is malignant

    server = create_server()
    clients = [create_client("A"), create_client("B")]
    clients[0].data = X[0:250], y[0:250]
    clients[1].data = X[250:400], y[250:400]
    sealed = [encrypt_data(client.data) for client in clients]

    model = server.initialize_model()
    for number in range(1, 11):
        updates = [client.train(own, model) for client, own in zip(clients, sealed, strict=True)]
        for update in updates:  # masked: the server can add them, not read them
            model = server.update_model(update)
        print(f"round {number:2}: {len(updates)} masked updates, {len(updates[0].masked)} bytes each")
    print(f"the server holds: {server}")

    final = decrypt_model(model)  # opened with the key that the clients share
    print(f"first five predictions: {final.predict(X[400:405]).astype(int).tolist()}")
    print(f"accuracy on {len(y[400:])} rows nobody trained on: {final.score(X[400:], y[400:]):.3f}")


if __name__ == "__main__":
    main()
