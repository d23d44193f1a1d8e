from __future__ import annotations

import cloister.privacy.statistics as package


def test_every_public_name_is_there_and_has_words() -> None:
    for name in package.__all__:
        found = getattr(package, name)
        assert found.__doc__, name
