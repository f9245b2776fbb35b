"""One checkout of packlight as a process that answers lines of JSON, for `bench/versus.py`.

    python bench/checkout.py CHECKOUT

It calls only public functions, which older checkouts have too, and imports nothing from beside it. Requests:
{"do": "load", "model": path, "context": tokens, "slots": number}; {"do": "run", "prompt": ids, "tokens": number} of one
greedy text, which answers the seconds to its first token and from there to its last; {"do": "together", "prompts": ids
of each, "tokens": number}, which answers the seconds of all.
"""

import json
import pathlib
import sys
import time
from typing import Any


def main() -> None:
    source = pathlib.Path(sys.argv[1]) / "src"
    sys.path.insert(0, str(source))
    import packlight

    if not pathlib.Path(packlight.__file__).is_relative_to(source.resolve()):
        print(json.dumps({"error": f"{source} holds no packlight"}), flush=True)
        return
    llm = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "load":
            llm = packlight.load(request["model"], context=request["context"], slots=request["slots"])
            answer = {"compiled": llm.executables.misses}
        elif request["do"] == "together":
            assert llm is not None
            began = time.perf_counter()
            llm.generate(request["prompts"], max_tokens=request["tokens"], temperature=0, ignore_eos=True)
            answer = {"seconds": time.perf_counter() - began}
        else:
            assert llm is not None
            completion: Any = llm.generate(
                request["prompt"], max_tokens=request["tokens"], temperature=0, ignore_eos=True
            )
            timings = completion.timings
            answer = {"first_s": timings["ttft_s"], "rest_s": timings["total_s"] - timings["ttft_s"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
