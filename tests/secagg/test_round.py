from __future__ import annotations

import numpy as np
import pytest
from tests.secagg.network import Network, context, ring_sum, vectors


@pytest.mark.parametrize("view", ["sum", "none"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_sum_is_exact(n, bits, view):
    net = Network(context(n, bits=bits, view=view))
    for attempt in range(2):
        data = dict(zip(net.names, vectors(n, bits, 1000, attempt), strict=True))
        result = net.run(attempt, data)
        assert result.survivors == net.names
        assert net.opened(result).tolist() == ring_sum(data.values(), bits)
        assert np.array_equal(net.opened(result), result.total) == (view == "sum")


@pytest.mark.parametrize("view", ["sum", "none"])
def test_sites_may_drop_before_uploading(view):
    net = Network(context(5, view=view))
    data = dict(zip(net.names, vectors(5, 32, 50), strict=True))
    del data["site-2"]
    result = net.run(0, data)
    assert result.survivors == tuple(data)
    assert net.opened(result).tolist() == ring_sum(data.values(), 32)
