"""Drive a scenario against a running server: its load, and its fault at the right moment."""

import time

from parts.engine import RealVllm

from load.generator import Summary, start_load
from load.scenarios import Scenario


def drive(scenario: Scenario, vllm: RealVllm) -> Summary:
    """Send the scenario's load, freeze and thaw the engine as it says, and wait for the drain.

    The engine is thawed in any case.
    """
    with start_load(vllm.url, vllm.model, scenario.phases) as load:
        if scenario.fault is not None:
            load.wait_phase(scenario.fault.from_phase)
            time.sleep(scenario.fault.delay_s)
            vllm.freeze()
            try:
                load.wait_phase(scenario.fault.until_phase)
            finally:
                vllm.thaw()
        return load.wait()
