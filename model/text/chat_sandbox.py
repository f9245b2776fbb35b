"""Renders a chat template in a process of its own: reads JSON lines on stdin, writes a JSON line on stdout.

Not imported by packlight: `model.text.sandboxes` runs it as a script. A template comes from a model's file, so it is
code of a stranger: jinja2's sandbox keeps it from Python's objects, and this process's limits keep it from time and
memory, while it compiles too (`{{ 9**9**9 }}` is computed then). What templates find there is in `chat_environment`.

    python -I model/text/chat_sandbox.py [--stay]

The first line is {"template", "seconds", "bytes", "most"}, the second {"variables", "now"}, and the answer
{"text", "kinds"} or {"error"}. kinds: for each character of the text where it comes from, as `provenance` spells it.
With --stay it writes an empty line when it has compiled the template, and answers every line that comes from then on.
"""

import contextlib
import gc
import json
import os
import pathlib
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # two halves of a character, which JSON makes one


def limit(seconds: int, memory: int, last: bool = True) -> None:
    """Bounds this process's processor time and, where the system can, its memory.

    last: for good, and without children of its own, which could outlive it. The bound of time can be lifted otherwise.
    """
    with contextlib.suppress(ImportError):  # no such module on Windows; the caller's clock remains
        import resource

        hard = seconds + 1 if last else resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if last:
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def lift() -> None:
    """Lifts the bound of time."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def own_modules() -> tuple[Any, Any]:
    """`chat_environment` and `provenance`, from beside this file, whatever other packlight is installed."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
    try:
        from packlight.model.text import chat_environment, provenance
    finally:
        del sys.path[0]
    return chat_environment, provenance


def attempt(function: Callable[..., Any], *values: Any) -> Any:
    """What a function that does a template's work gives, or {"error"}."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return function(*values)
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


def compiled(template: str) -> Any:
    return own_modules()[0].ChatEnvironment(None).from_string(template)


def render(template: Any, job: dict[str, Any], most: int) -> dict[str, str]:
    """The answer to a job."""
    chat_environment, provenance = own_modules()
    template.environment.now = job["now"]
    parts, size = [], 0
    for part in template.generate(**chat_environment.told(job["variables"])):
        size += len(part)
        if size > most:
            return {"error": f"it writes more than {most:,} characters"}
        parts.append(part)
    text = "".join(parts)
    return {"text": text, "kinds": whole(text, "".join(map(provenance.kinds_of, parts)))}


def whole(text: str, kinds: str) -> str:
    """The kinds, one for each pair of halves."""
    found, at = [], 0
    for pair in PAIR.finditer(text):
        found += [kinds[at : pair.start()], max(kinds[pair.start() : pair.end()])]
        at = pair.end()
    return "".join([*found, kinds[at:]])


def stay() -> None:
    """Returns for each line that comes, in a copy of this process that waits for it; here it never returns.

    So no render sees what another was told or left behind: this process has seen the template only, and reads no line.
    It ends with a copy that failed, and with its caller, whose end hangs up, even while a copy works.
    """
    gc.freeze()  # copies share the memory that their collector need not look at
    print(flush=True)
    while True:
        life, held = os.pipe()  # closed with the copy
        copy = os.fork()
        if copy == 0:
            return
        os.close(held)
        ends = select.poll()
        ends.register(0, 0)  # for a hang-up
        ends.register(life, select.POLLIN)
        if life not in dict(ends.poll()):
            os.kill(copy, signal.SIGKILL)
        os.close(life)
        if os.waitpid(copy, 0)[1] != 0:
            os._exit(0)


def main() -> None:
    lines, staying = sys.stdin.buffer, sys.argv[1:] == ["--stay"]
    opening = json.loads(lines.readline())
    seconds, memory, most = opening["seconds"], opening["bytes"], opening["most"]
    limit(seconds, memory, last=not staying)
    template = attempt(compiled, opening["template"])
    if staying:
        spent = int(time.process_time())  # a copy's time begins anew, but what it renders took that too
        lift()
        stay()
        limit(max(1, seconds - spent), memory)
    job = json.loads(lines.readline())
    answer = template if isinstance(template, dict) else attempt(render, template, job, most)
    json.dump({kind: text[:most] for kind, text in answer.items()}, sys.stdout)
    print(flush=True)
    os._exit(0)  # nothing is left to tidy up


if __name__ == "__main__":
    main()
