"""Drafts beside none, in turn, on texts that are expected, that repeat themselves, and that never do.

    python -m packlight.bench.speculation --model=FILE [--draft_model=FILE] [--speculate=3] [--tokens=128] [--rounds=5]
        [--weights_budget=0]

The model is loaded twice, with drafts and without, and once more with a draft model where one is named; all continue
each text in turn. A table on stdout: tokens per second without drafts, how many times as many with them (median of the
rounds and their range), how many drafts were right. With a budget all of them are streamed within so many bytes each,
so that a step costs what it reads, however many tokens it verifies. Exits with 1 where ids differ. `bench.shallow`
makes a draft model where a model has no smaller brother.
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import packlight
from packlight.common.errors import PacklightError
from packlight.llm import LLM
from packlight.model.sampling.config import SamplingConfig
from packlight.serve.prefix import Keep
from packlight.serve.run import Completion

PROMPT = 128  # tokens
EDITED = 16  # one token in so many is another one than expected


class Text(NamedTuple):
    """What is continued."""

    name: str
    prompt: list[int]
    config: SamplingConfig
    predicted: Sequence[int] = ()


def continued(llm: LLM, text: Text) -> Completion:
    """The text that a model writes, of which the cache has nothing."""
    (run,) = llm.runs([text.prompt], text.config, 1, Keep.NOTHING)
    run.predicted = text.predicted
    (completion,) = llm.scheduler.complete([run])
    return completion


def texts(plain: LLM, tokens: int) -> list[Text]:
    """An answer that is expected but for some tokens, the same without a prediction, and draws of nearly any token."""
    ids = np.random.default_rng(0).integers(100, plain.model.vocab_size - 100, 2 * PROMPT).tolist()
    long = {"max_tokens": tokens, "ignore_eos": True}
    greedy = Text("greedy", ids[:PROMPT], SamplingConfig(temperature=0, **long))
    expected = continued(plain, greedy).token_ids
    expected[EDITED // 2 :: EDITED] = ids[: len(expected[EDITED // 2 :: EDITED])]
    any_token = SamplingConfig(temperature=5, top_k=0, top_p=1, min_p=0, seed=1, **long)
    return [
        greedy._replace(name="expected", predicted=expected),
        greedy,
        Text("never repeats", ids[PROMPT:], any_token),
    ]


def rate(completion: Completion) -> float:
    found = completion.timings["decode_tok_s"]
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m packlight.bench.speculation", description="tokens per second with drafts and without"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft_model")
    parser.add_argument("--speculate", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights_budget", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        base: dict[str, Any] = {"context": 1024, "slots": 1}
        if options.weights_budget:
            base |= {"weights": "streamed", "weights_budget": options.weights_budget}
        plain = packlight.load(options.model, **base)
        how = base | {"speculate": options.speculate}
        drafting = {"looked up": packlight.load(options.model, **how)}
        if options.draft_model is not None:
            drafting["draft model"] = packlight.load(options.model, draft_model=options.draft_model, **how)
    except PacklightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    same = True
    print(f"{'':<16}{'drafts':<12}{'tokens/s':>10}{'times':>8}{'range':>14}{'right':>8}{'drafted':>9}")
    for text in texts(plain, options.tokens):
        rounds: list[dict[str, Completion]] = []
        for number in range(1 + options.rounds):  # the first one warms up
            contenders = [("none", plain), *drafting.items()]
            rounds.append({name: continued(llm, text) for name, llm in contenders[:: 1 if number % 2 else -1]})
        same &= all(each.token_ids == done["none"].token_ids for done in rounds for each in done.values())
        rates = statistics.median(rate(done["none"]) for done in rounds[1:])
        for name in drafting:
            times = [rate(done[name]) / rate(done["none"]) for done in rounds[1:]]
            said, spread = rounds[-1][name].timings, f"{min(times):.2f}-{max(times):.2f}"
            print(
                f"{text.name:<16}{name:<12}{rates:>10.2f}{statistics.median(times):>8.2f}{spread:>14}"
                f"{said['accepted']:>8}{said['drafted']:>9}"
            )
    for name, llm in drafting.items():
        pace, verified = llm.engine.pace, llm.plan.verified
        costs = ", ".join(f"{rows} rows {pace.cost(rows):.2f}" for rows in verified)
        asking = ", ".join(f"{rows - 1} drafts {pace.asking(rows - 1):.2f}" for rows in verified) if llm.draft else ""
        print(f"{name}: a step that verifies takes, in steps of one token: {costs}" + (f"; {asking}" if asking else ""))
    if not same:
        print("ids differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
