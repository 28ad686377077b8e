"""How the model is compiled: by several threads and processes at once, with a cache that is damaged or missing."""

from __future__ import annotations

import os

RACES = int(os.environ.get("MMLAB_RACES", "1"))
"""Repetitions of the race; `make nightly` asks for more."""

RACE = """
import threading, time, sys
from mmlab.engine.clock import simulate
from mmlab.scenario import Scenario
from mmlab.kernel import memory, state

offset = float(sys.argv[1])
failed = []

def watched(function):
    def run():
        try:
            function()
        except BaseException as error:
            failed.append(repr(error))
    return threading.Thread(target=run)

def first():
    simulate(Scenario(memory_mib=2, horizon_full_scans=2), maps_at="end")

def second():
    time.sleep(offset)
    EVERYTHING

threads = [watched(first), watched(second)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
sys.exit(bool(failed))
"""
