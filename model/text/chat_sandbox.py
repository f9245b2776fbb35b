"""Renders one chat template in a process of its own: reads a JSON job on stdin, writes a JSON answer on stdout.

Not imported by packlight: `model.text.chat` runs it as a script. A template comes from a model's file, so it is code of
a stranger: jinja2's sandbox keeps it from Python's objects, and this process's limits keep it from time and memory,
while it compiles too (`{{ 9**9**9 }}` is computed then). What Hugging Face's renderer gives templates is given here:
`raise_exception`, `strftime_now`, `tojson` without HTML escapes, loop controls, a `generation` block.

    python -I model/text/chat_sandbox.py

It reads {"template", "variables", "now", "seconds", "bytes", "most"} and writes {"text"} or {"error"}.
"""

import contextlib
import datetime
import json
import sys
from typing import Any


def limit(seconds: int, memory: int) -> None:
    """Bounds this process's processor time and, where the system can, its memory."""
    with contextlib.suppress(ImportError):  # no such module on Windows; the caller's clock remains
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def environment(now: str | None) -> Any:
    """The sandbox with the helpers. now: ISO time that `strftime_now` gives; None is the time it is."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks what an assistant said; it renders its body."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return (datetime.datetime.fromisoformat(now) if now else datetime.datetime.now()).strftime(form)

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made


def render(job: dict[str, Any]) -> dict[str, str]:
    """The answer to a job."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        template = environment(job["now"]).from_string(job["template"])
        parts, size = [], 0
        for part in template.generate(**job["variables"]):
            size += len(part)
            if size > job["most"]:
                return {"error": f"it writes more than {job['most']:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
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


def main() -> None:
    job = json.load(sys.stdin)
    limit(job["seconds"], job["bytes"])
    json.dump({kind: text[: job["most"]] for kind, text in render(job).items()}, sys.stdout)


if __name__ == "__main__":
    main()
