"""Renders one chat template in a process of its own: reads a JSON job on stdin, writes a JSON answer on stdout.

Not imported by packlight: `model.text.chat` runs it as a script. A template comes from a model's file, so it is code of
a stranger: jinja2's sandbox keeps it from Python's objects, and this process's limits keep it from time and memory,
while it compiles too (`{{ 9**9**9 }}` is computed then). What templates find there is in `chat_environment`.

    python -I model/text/chat_sandbox.py

It reads {"template", "variables", "now", "seconds", "bytes", "most"} and writes {"text", "kinds"} or {"error"}.
kinds: for each character of the text where it comes from, as `provenance` spells it.
"""

import contextlib
import json
import pathlib
import re
import sys
from typing import Any

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # two halves of a character, which JSON makes one


def limit(seconds: int, memory: int) -> None:
    """Bounds this process's processor time and, where the system can, its memory."""
    with contextlib.suppress(ImportError):  # no such module on Windows; the caller's clock remains
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def own_modules() -> tuple[Any, Any]:
    """`chat_environment` and `provenance`, from beside this file, whatever other packlight is installed."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
    try:
        from packlight.model.text import chat_environment, provenance
    finally:
        del sys.path[0]
    return chat_environment, provenance


def render(job: dict[str, Any]) -> dict[str, str]:
    """The answer to a job."""
    from jinja2 import TemplateError, TemplateSyntaxError

    chat_environment, provenance = own_modules()
    try:
        template = chat_environment.ChatEnvironment(job["now"]).from_string(job["template"])
        parts, size = [], 0
        for part in template.generate(**chat_environment.told(job["variables"])):
            size += len(part)
            if size > job["most"]:
                return {"error": f"it writes more than {job['most']:,} characters"}
            parts.append(part)
        text = "".join(parts)
        return {"text": text, "kinds": whole(text, "".join(map(provenance.kinds_of, parts)))}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": str(error.message)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # whatever a template makes Python raise is the template's mistake
        return {"error": f"{type(error).__name__}: {error}"}


def whole(text: str, kinds: str) -> str:
    """The kinds, one for each pair of halves."""
    found, at = [], 0
    for pair in PAIR.finditer(text):
        found += [kinds[at : pair.start()], max(kinds[pair.start() : pair.end()])]
        at = pair.end()
    return "".join([*found, kinds[at:]])


def main() -> None:
    job = json.load(sys.stdin)
    limit(job["seconds"], job["bytes"])
    json.dump({kind: text[: job["most"]] for kind, text in render(job).items()}, sys.stdout)


if __name__ == "__main__":
    main()
