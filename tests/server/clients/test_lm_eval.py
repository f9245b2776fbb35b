"""lm-eval scores a small task over the server as `llm.logits` does: by echoes with log-probabilities, of texts that it
cuts into tokens by the server's own tokenizer.
"""

import json

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="the extra dev-serve is not installed")

pytestmark = pytest.mark.clients
QUESTIONS = [
    {"question": "os.path.join joins", "choices": [" paths", " numbers", " threads"], "gold": 0},
    {"question": "json.loads reads a", "choices": [" string", " cat"], "gold": 0},
    {"question": "len of a list is a", "choices": [" number of items", " file", " naïve 🙂"], "gold": 1},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
metadata: {{version: 1}}
{rest}
"""
CHOICE = "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]"
ROLLING = 'doc_to_target: "{{question}}"\nmetric_list: [{metric: word_perplexity}]'


def evaluated(folder, server, kind, rest):
    """What lm-eval says of a task."""
    from lm_eval.tasks import TaskManager

    data = folder / "test.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (folder / "task.yaml").write_text(TASK.format(name="small", data=data, kind=kind, rest=rest))
    model = {"model": "demo", "base_url": f"{server.api}/completions", "max_length": server.llm.plan.context}
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=model | {"tokenizer_backend": "remote", "num_concurrent": 2},
        tasks=["small"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


def scored(llm, context, continuation):
    """(sum of log-probabilities, whether each token is the most probable one) in float64, from the logits."""
    ids = llm.tokenizer.encode(context + continuation, add_special=False)
    begin = len(llm.tokenizer.encode(context, add_special=False))
    rows = llm.logits(ids)[begin - 1 : -1].astype(np.float64)
    peak = rows.max(axis=-1, keepdims=True)
    logs = rows - peak - np.log(np.exp(rows - peak).sum(axis=-1, keepdims=True))
    told = [logs[at, token] for at, token in enumerate(ids[begin:])]
    return sum(told), all(logs[at].argmax() == token for at, token in enumerate(ids[begin:]))


def test_choices_have_the_log_probabilities_of_the_logits(real, tmp_path):
    found = evaluated(tmp_path, real, "multiple_choice", CHOICE)
    right = 0
    for sample in found["samples"]["small"]:
        question = sample["doc"]
        wanted = [scored(real.llm, question["question"], choice) for choice in question["choices"]]
        told = [tuple(each[0]) for each in sample["resps"]]
        # a log-probability is a difference of float32 numbers of some tens: 2^-24 of them, relative to 1 and more
        np.testing.assert_allclose([float(each[0]) for each in told], [each[0] for each in wanted], rtol=1e-6)
        assert [str(each[1]) == "True" for each in told] == [each[1] for each in wanted]
        right += int(np.argmax([each[0] for each in wanted]) == question["gold"])
    assert found["results"]["small"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_whole_texts_have_the_log_probabilities_of_the_logits(real, tmp_path):
    found = evaluated(tmp_path, real, "loglikelihood_rolling", ROLLING)
    for sample in found["samples"]["small"]:
        (told,) = np.ravel(np.array(sample["resps"], np.float64))
        ids = real.llm.tokenizer.encode(sample["doc"]["question"], add_special=False)
        begin = real.llm.tokenizer.eos_id
        assert told == pytest.approx(prefixed(real.llm, begin, ids), rel=1e-6)


def prefixed(llm, begin, ids):
    rows = llm.logits([begin, *ids])[:-1].astype(np.float64)
    peak = rows.max(axis=-1, keepdims=True)
    logs = rows - peak - np.log(np.exp(rows - peak).sum(axis=-1, keepdims=True))
    return sum(logs[at, token] for at, token in enumerate(ids))
