"""`packlight rerank`: documents in the order of their relevance to a query."""

from absl import flags

from packlight.cli.flags import PLAN, Command
from packlight.cli.inputs import lines_of, text_of
from packlight.cli.terminal import write, write_json
from packlight.common.errors import ConfigError


def run(values: flags.FlagValues) -> None:
    """Prints score and text of each document, best first, or one JSON object of their numbers and scores."""
    from packlight.cli.loading import load, prepared_from
    from packlight.model.spec.pooling import pooling_of

    if values.query is None or values.file is None:
        raise ConfigError("give --query, a text, and --file, of documents one a line")
    query, documents = text_of("query", values.query), lines_of("file", values.file, "get no score")
    prepared = prepared_from(values)
    pooling_of(prepared.model, "rank")
    for document in documents:
        prepared.prompts.pair(query, document)
    scores = load(prepared).rerank(query, documents).tolist()
    best = sorted(range(len(documents)), key=lambda number: -scores[number])
    if values.json:
        write_json({"results": [{"index": number, "relevance_score": scores[number]} for number in best]})
    else:
        write("".join(f"{scores[number]:.6g}\t{documents[number]}\n" for number in best))


COMMAND = Command(
    "rerank",
    "sort documents by their relevance to a query",
    "packlight rerank --model=model.gguf --query='A question' --file=texts.txt",
    ("model", "query", "file", *PLAN, "json"),
    run,
)
