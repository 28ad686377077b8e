"""A user's mistake is one message, in a notebook as on the command line."""

import pytest
from IPython.core.interactiveshell import InteractiveShell


def test_no_traceback_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell(colors="nocolor")
    shell.run_cell("from mmlab import Scenario\nScenario(pages_to_scan=-1)")
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).strip().splitlines()
    assert lines == ["UserError: pages_to_scan = -1 is out of range: it must be at least 0 (pages)."]
