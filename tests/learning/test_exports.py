from __future__ import annotations

import cloister.learning


def test_all_names_what_is_there_once() -> None:
    names = cloister.learning.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(cloister.learning, name) for name in names)


def test_nothing_public_is_missing_from_all() -> None:
    here = {
        name
        for name, value in vars(cloister.learning).items()
        if getattr(value, "__module__", "").startswith("cloister.learning.") and not name.startswith("_")
    }
    assert here <= set(cloister.learning.__all__)
