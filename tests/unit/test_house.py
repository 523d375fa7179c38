"""The package as a house: no circle among its modules, and one name for one module. Its arrows are held by lint."""

from __future__ import annotations

from collections import Counter

import grimp
import pytest

#: The same in every package, or what Python itself asks for.
_SHARED = {"__main__", "app", "contract"}


@pytest.fixture(scope="module")
def house() -> grimp.ImportGraph:
    return grimp.build_graph("settee", exclude_type_checking_imports=True, cache_dir=None)


def test_no_module_needs_itself(house: grimp.ImportGraph) -> None:
    needs = {module: house.find_modules_directly_imported_by(module) for module in house.modules}
    settled: set[str] = set()
    while free := {module for module, others in needs.items() if module not in settled and others <= settled}:
        settled |= free
    assert sorted(house.modules - settled) == []


def test_no_two_modules_have_one_name(house: grimp.ImportGraph) -> None:
    packages = {module for module in house.modules if house.find_children(module)}
    names = Counter(module.rpartition(".")[2] for module in house.modules - packages)
    assert {name for name, count in names.items() if count > 1} - _SHARED == set()
