"""`packlight serve` with a scripted engine in the model's place: `scripted_serve.py ANSWER SECONDS [--flags]`.

SECONDS: of each step.
"""

import sys
import time

from fake_engine import FakeLLM

from packlight.cli import loading
from packlight.cli.main import main
from packlight.prepared import Prepared


def load(prepared: Prepared) -> FakeLLM:
    llm = FakeLLM(prepared, sys.argv[1])
    llm.engine.before_step = lambda number: time.sleep(float(sys.argv[2]))
    return llm


if __name__ == "__main__":
    loading.load = load
    main(["serve", *sys.argv[3:]])
