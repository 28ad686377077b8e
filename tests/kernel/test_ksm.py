"""ksmd: the worked examples of the specification."""

from __future__ import annotations

import pytest

import worked_examples
from mmlab.results import trace

CLASSES = {  # of the full-size runs; the slow reference model does each for one variant only
    "X1": worked_examples.X,
    "X2": worked_examples.X + worked_examples.SKIP,
    "X3": worked_examples.Y,
    "X4": worked_examples.Y,
    "X5": worked_examples.SKIP,
}
EXAMPLES = [
    (name, variant, knob)
    for name, setting in worked_examples.SETTINGS.items()
    for variant, knob in CLASSES.get(name, setting.variants)
]


@pytest.mark.parametrize(("name", "variant", "knob"), EXAMPLES)
def test_worked_example(name: str, variant: str, knob: int) -> None:
    expected = worked_examples.rows_of(name)
    asked = worked_examples.trace_of(name, worked_examples.SETTINGS[name], variant, knob)
    assert worked_examples.measure(trace.predict(asked), list(expected[0])) == expected
