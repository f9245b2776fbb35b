"""Where the time between two tokens goes: kernels a token, their sum, gaps, copies to the host.

python -m tools.first_light.step MODEL CONFIG      # writes OUT/profile.json
"""

import collections
import dataclasses
import sys

import packlight
from packlight.bench.cases import Case
from packlight.bench.programs import Packlight
from packlight.compile.config import read_config
from tools.first_light import common

CASE = Case("tg", 16)
HOST_CALLS = ("cuGraphLaunch", "cuLaunchKernel", "cuMemcpyDtoH", "cuStreamSynchronize", "cuEventSynchronize")


def main() -> None:
    model, config = sys.argv[1:]
    llm = packlight.load(model, dataclasses.replace(read_config(config), context=CASE.context))
    program = Packlight("here", llm)
    program.start(CASE)
    program.run()
    seconds = []
    profile = common.profiled(lambda: seconds.append(program.run().seconds))
    times: dict[str, list[float]] = collections.defaultdict(list)
    host: collections.Counter[str] = collections.Counter()
    for on_stream, event in common.events(profile):
        if on_stream:
            times[event.name].append(event.duration_ns / 1e6)
        elif any(call in event.name for call in HOST_CALLS):
            host[event.name.split(":")[0]] += 1
    tokens = CASE.tokens
    names = {name: (len(each) / tokens, sum(each) / tokens) for name, each in times.items()}  # a token: runs, ms
    made = {
        "ms": 1e3 * seconds[0] / tokens,
        "busy_ms": sum(ms for _, ms in names.values()),
        "kernels": sum(runs for runs, _ in names.values()),
        "host": {name: count / tokens for name, count in host.items()},
        "names": names,
    }
    common.save("profile.json", made)
    print(
        f"{made['ms']:.3f} ms a token; device busy {made['busy_ms']:.3f} ms in {made['kernels']:.0f} kernels and copies"
    )
    print("host calls a token:", {name: round(count / tokens, 1) for name, count in host.most_common(8)})
    for name, (runs, ms) in sorted(names.items(), key=lambda item: -item[1][1])[:25]:
        print(f"{ms:9.4f} ms a token {runs:7.1f} times  {name[:100]}")


if __name__ == "__main__":
    main()
