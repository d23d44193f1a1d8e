"""The server: Flower's own FedAvg, which writes down when each round begins and when its sum is there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg with a clock around what one round does."""

    begun = 0.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seconds: list[float] = []
        self.answered: list[int] = []

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        self.begun = time.monotonic()
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        found = super().aggregate_train(server_round, replies)
        self.seconds.append(time.monotonic() - self.begun)
        self.answered.append(sum(not reply.has_error() for reply in replies))
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    nodes, rounds = int(settings["nodes"]), int(settings["rounds"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    initial = ArrayRecord([np.zeros(int(settings["parameters"]), dtype=np.float32)])
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds, timeout=120)
    last = result.arrays.to_numpy_ndarrays()[0]
    written = {
        "seconds": strategy.seconds,
        "answered": strategy.answered,
        "right": bool(last.size == int(settings["parameters"]) and np.all(last == rounds)),
    }
    path = Path(str(settings["times"]))
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(written), encoding="utf-8")
    beside.rename(path)  # whoever waits for it reads all or nothing
