"""A notebook's parameters: file, cell and injected values in this order, and names that do not exist."""

from __future__ import annotations

import pytest

from mmlab.errors import UserError
from mmlab.studies.parameters import check_names, read_parameters

CELL = 'params: str = "all_zero"  # where to start\npages_to_scan: int = None  # pages\nwho: str = "me"  # a text\n'


def cells(*sources: str) -> dict[str, object]:
    """The namespace of a notebook whose cells have run."""
    return {"In": ["", *sources]}


def test_order() -> None:
    """The file's values, then those of the cell that are not None, then the injected ones."""
    start = read_parameters(cells(CELL))
    assert (start.zero_fraction, start.pages_to_scan, start.use_zero_pages, start.smart_scan) == (1.0, 1000, 0, 1)
    cell = CELL.replace("None", "500") + "use_zero_pages = 1\n"
    assert read_parameters(cells(cell)) == start.replace(pages_to_scan=500, use_zero_pages=1)
    injected = '# Parameters\npages_to_scan = 70\nsmart_scan = 0\nwho = "you"\n'
    found = read_parameters(cells(cell, injected))
    assert found == start.replace(pages_to_scan=70, use_zero_pages=1, smart_scan=0)
    other = read_parameters(cells(CELL, '# Parameters\nparams = "regression_uzp1"\n'))
    assert (other.zero_fraction, other.use_zero_pages) == (0.8984375, 1)
    assert read_parameters(cells(CELL.replace("all_zero", ""))).changed() == {}


def test_names_that_later_cells_reuse() -> None:
    """`run` is a field, and what many a loop calls its runs."""
    namespace = cells(CELL, "# Parameters\nrun = 0\n", "x = read_parameters(globals())", "for run in []: pass", "1 +")
    assert read_parameters(namespace | {"run": object()}).run == 0
    assert read_parameters(cells(CELL) | {"run": object(), "x": 5}).run == 1


def test_as_a_script() -> None:
    namespace = {"params": "all_zero", "smart_scan": 0, "__name__": "__main__", "pages_to_scan": None, "read": print}
    assert read_parameters(namespace).changed() == {"zero_fraction": 1.0, "pages_to_scan": 1000, "smart_scan": 0}
    assert read_parameters(namespace | {"In": [""]}) == read_parameters(namespace), "nbval keeps no history"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"smart_scn": 0}, "unknown parameter 'smart_scn': did you mean 'smart_scan'"),
        ({"whom": "you"}, "did you mean 'who'"),
        ({"who": 3}, "who = 3 is not allowed: it must be of type str, such as 'me'"),
        ({"smart_scan": 2}, "smart_scan = 2"),
        ({"pages_to_scan": "many"}, "pages_to_scan = 'many'"),
        ({"params": "all_zeroes"}, "did you mean 'all_zero'"),
        ({"variant": "mainlien"}, "mainline"),
        ({"memory_mib": 2**24}, "memory_mib"),
    ],
)
def test_refused(given: dict[str, object], words: str) -> None:
    injected = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    with pytest.raises(UserError) as refused:
        read_parameters(cells(CELL, injected))
    assert words in str(refused.value)


def test_whole_numbers_are_fractions_too() -> None:
    check_names({"share": 0.5, "count": 3, "nothing": None}, {"share": 1, "count": 4, "nothing": "x"})
    with pytest.raises(UserError, match="of type int"):
        check_names({"count": 3}, {"count": 4.5})
