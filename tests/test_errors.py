"""A user's mistake is one message, in a notebook as on the command line."""

import pickle

import pytest
from IPython.core.interactiveshell import InteractiveShell

from mmlab.errors import UserError, located, unknown
from mmlab.scenario import Scenario


def test_the_message_is_composed_of_the_fields() -> None:
    error = UserError(parameter="seed", value=-1, allowed="at least 0", hint="Leave it out.", where="my.yaml")
    assert str(error) == "my.yaml: seed = -1 is not allowed: it must be at least 0. Leave it out."
    assert str(UserError("is odd", parameter="seed", value=1)) == "seed = 1 is odd."
    assert str(UserError("there is none", parameter="seed")) == "seed: there is none."
    assert str(UserError("nothing fits")) == "nothing fits."


def test_nearest_names_or_all_of_few() -> None:
    near, far = unknown("key", "sed", ["seed", "run"]), unknown("key", "zzz", ["seed", "run"])
    assert (near.parameter, near.value, near.allowed) == ("key", "sed", "")
    assert "'seed'" in str(near)
    assert far.allowed == "one of seed, run"


def test_places_are_joined_for_each_mistake() -> None:
    with pytest.raises(UserError) as error, located("sweep"), located("my.yaml"), located("my.yaml"):
        Scenario(thp_coverage=2, zero_fraction=2)
    assert [e.where for e in (error.value, *error.value.others)] == ["sweep: my.yaml"] * 2


def test_travels_between_processes() -> None:
    with pytest.raises(UserError) as error:
        Scenario(thp_coverage=2, zero_fraction=2)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)
    assert (again.parameter, again.value, again.allowed) == ("thp_coverage", 2, "0 … 1")


def test_no_traceback_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell(colors="nocolor")
    shell.run_cell("from mmlab import Scenario\nScenario(pages_to_scan=-1)")
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).strip().splitlines()
    assert lines == ["UserError: pages_to_scan = -1 is out of range: it must be at least 0 (pages)."]
