"""Scripts that complete command lines in bash, zsh and fish, made of the tables of commands and flags."""

from absl import flags

from packlight.cli.commands import COMMANDS
from packlight.cli.flags import FLAGS, Command
from packlight.cli.help import TOPICS

MODELS = ("model",)  # flags whose value is a GGUF file
# Flags whose value is any other file, or a folder.
FILES = ("prompt_file", "config", "out", "file", "save_logits", "kl_divergence", "chat_template", "log_file", "gate")
FILES += ("results", "llama_bench", "peer_python", "folder", "history_file", "api_key_file")
PAGES = ("help", "version")  # what stands in a command's place and is none


def bash() -> str:
    """A script to evaluate, or to put into bash-completion's folder."""
    flag_cases = "".join(f'    {name}) flags="{_words(command)}" ;;\n' for name, command in COMMANDS.items())
    action_cases = "".join(f'    {name}) actions="{actions}" ;;\n' for name, actions in _actions().items())
    return f"""# bash completion of packlight: eval "$(packlight completion bash)"
_packlight() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  local flags="" actions="" flag="" value="" files=""
  COMPREPLY=()
  if [[ $COMP_CWORD == 1 && $current != -* ]]; then
    mapfile -t COMPREPLY < <(
      compgen -W "{" ".join([*COMMANDS, *PAGES])}" -- "$current"
      compgen -f -X '!*.gguf' -- "$current"
    )
    return
  fi
  case $command in
{flag_cases}    *) flags="{_words(COMMANDS["generate"])}" ;;
  esac
  case $command in
{action_cases}    *) ;;
  esac
  if [[ $current == = ]]; then flag=$before; value=""
  elif [[ $before == = ]]; then flag="${{COMP_WORDS[COMP_CWORD-2]}}"; value=$current
  elif [[ $before == -* ]]; then flag=$before; value=$current
  fi
  case $flag in
    {"|".join(f"--{name}" for name in MODELS)}|-m) files='!*.gguf' ;;
    {"|".join(f"--{name}" for name in FILES)}) files='!*' ;;
  esac
  if [[ -n $files ]]; then
    compopt -o filenames 2>/dev/null
    [[ $files == '!*' ]] && mapfile -t COMPREPLY < <(compgen -f -- "$value")
    [[ $files == '!*.gguf' ]] && mapfile -t COMPREPLY < <(compgen -f -X "$files" -- "$value"; compgen -d -- "$value")
  elif [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$current")
  elif [[ $COMP_CWORD == 2 && -n $actions ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$actions" -- "$current")
  else
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}}
complete -F _packlight packlight
"""


def zsh() -> str:
    """A function file for a folder of $fpath, called _packlight; it may also be evaluated."""
    commands = "\n".join(f"    {_quoted(f'{c.name}:{c.summary}')}" for c in COMMANDS.values())
    cases = "".join(
        f"    {name})\n      _arguments {_zsh_arguments(command)}\n      ;;\n" for name, command in COMMANDS.items()
    )
    return f"""#compdef packlight
# zsh completion of packlight: packlight completion zsh > "${{fpath[1]}}/_packlight"
_packlight() {{
  local -a commands
  commands=(
{commands}
    'help:explain a command or a topic'
    'version:show the version'
  )
  if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
    _describe command commands
    _files -g '*.gguf'
    return
  fi
  local command=$words[2]
  (( ${{+commands[(r)$command:*]}} )) && [[ $command != -* ]] && {{ shift words; (( CURRENT-- )) }}
  case $command in
{cases}    help) compadd -- {" ".join([*COMMANDS, *TOPICS])} ;;
    *)
      _arguments {_zsh_arguments(COMMANDS["generate"])}
      ;;
  esac
}}
if [[ $funcstack[1] == _packlight ]]; then _packlight "$@"; else compdef _packlight packlight; fi
"""


def fish() -> str:
    """A file for ~/.config/fish/completions, called packlight.fish."""
    lines = ["# fish completion of packlight: packlight completion fish | source", "complete -c packlight -f"]
    first = "__fish_is_nth_token 1"
    for command in COMMANDS.values():
        lines.append(f"complete -c packlight -n '{first}' -a {command.name} -d {_quoted(command.summary)}")
    for name in PAGES:
        lines.append(f"complete -c packlight -n '{first}' -a {name}")
    words = " ".join([*_actions()])
    lines.append(
        f"complete -c packlight -n 'not __fish_seen_subcommand_from {words}' -k -a '(__fish_complete_suffix .gguf)'"
    )
    lines.append(f"complete -c packlight -n '__fish_seen_subcommand_from help' -a '{' '.join([*COMMANDS, *TOPICS])}'")
    for name, actions in _actions().items():
        lines.append(f"complete -c packlight -n '__fish_seen_subcommand_from {name}' -a '{actions}'")
    takers: dict[str, list[str]] = {}
    for command in COMMANDS.values():
        for name in _flags(command):
            takers.setdefault(name, []).append(command.name)
    for name, by in takers.items():
        value = "" if _is_switch(name) else " -r -F" if name in (*MODELS, *FILES) else " -x"
        when = f"__fish_seen_subcommand_from {' '.join(by)}"
        lines.append(f"complete -c packlight -n '{when}' -l {name}{value} -d {_quoted(_brief(name))}")
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}


def _flags(command: Command) -> list[str]:
    return [name for name in command.takes if name != "action"]


def _actions() -> dict[str, str]:
    """What may stand behind a command's name, or behind `help`."""
    pages = {"help": " ".join([*COMMANDS, *TOPICS])}
    return {name: " ".join(command.actions) for name, command in COMMANDS.items() if command.actions} | pages


def _words(command: Command) -> str:
    return " ".join(f"--{name}" for name in _flags(command)) + " --help"


def _is_switch(name: str) -> bool:
    return FLAGS[name][0] is flags.DEFINE_bool


def _brief(name: str) -> str:
    return FLAGS[name][2].partition(" (")[0]


def _zsh_arguments(command: Command) -> str:
    """Arguments of zsh's `_arguments`: the flags, then what stands without a name."""
    specs = []
    for name in _flags(command):
        value = ':file:_files -g "*.gguf"' if name in MODELS else ":file:_files" if name in FILES else ":value: "
        text = _brief(name).translate({ord("["): "(", ord("]"): ")", ord(":"): ","})
        specs.append(f"--{name}[{text}]" if _is_switch(name) else f"--{name}=[{text}]{value}")
    rest = f"1:action:({' '.join(command.actions)})" if command.actions else "*:file:_files"
    return " \\\n        ".join(map(_quoted, [*specs, rest]))


def _quoted(text: str) -> str:
    """A word for zsh: single quotes, and those inside it out of them."""
    return "'" + text.replace("'", "'\\''") + "'"
