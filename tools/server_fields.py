"""The tables of fields in docs/server.md, as the server's own table has them.

python -m tools.server_fields      # rewrites what stands between the markers
"""

import pathlib

from packlight.bench.render import ROOT, rendered
from packlight.server import fields

DOCUMENT = ROOT / "docs" / "server.md"


def document(text: str) -> str:
    """The text of docs/server.md with its tables as the server reads bodies."""
    further = tuple(field for field in fields.COMPLETION if field not in fields.CHAT)
    tables = {
        "chat": fields.CHAT,
        "completions": further,
        "embeddings": fields.EMBEDDING,
        "tokenize": fields.TOKENIZE,
    }
    for region, rows in tables.items():
        text = rendered(text, region, fields.table(rows))
    return text


def main(path: pathlib.Path = DOCUMENT) -> None:
    path.write_text(document(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
