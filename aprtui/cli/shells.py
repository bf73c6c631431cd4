"""The completions of aprtui as scripts for bash, zsh and fish, written from the parsers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from aprtui.cli.commands import COMMANDS, Command, Option, Value, every

__all__ = ["bash", "fish", "zsh"]

_FIRST = ("--help", "--version")

_BASH = r"""# aprtui's completion for bash, printed by `aprtui completion bash`
_aprtui() {
    local words=() word path cur prev last index offered='' kind=words
    COMPREPLY=()
    for ((index = 0; index <= COMP_CWORD; index++)); do  # bash splits at : and =, aprtui does not
        word=${COMP_WORDS[index]}
        last=${#words[@]}
        if ((last > 1)) && [[ $word == [:=]* || ${words[last - 1]} == *[:=] ]]; then
            words[last - 1]+=$word
        else
            words+=("$word")
        fi
    done
    last=$((${#words[@]} - 1))
    cur=${words[last]}
    prev=${words[last - 1]}
    if [[ $cur == --*=* ]]; then
        prev=${cur%%=*}
        cur=${cur#*=}
    fi
    if ((last < 2)); then
        [[ $cur == -* ]] && offered='@FIRST@' || offered='@COMMANDS@'
        COMPREPLY=($(compgen -W "$offered" -- "$cur"))
        if [[ $cur != -* ]]; then
            local IFS=$'\n'
            COMPREPLY+=($(compgen -f -- "$cur"))
            compopt -o filenames 2>/dev/null
        fi
        return
    fi
    path=${words[1]}
    case "$path ${words[2]}" in
        @NESTED@) ((last > 2)) && path="$path ${words[2]}" ;;
        @NAMES@) ;;
        *) path= ;;
    esac
    case "$path $prev" in
@VALUES@
        *)
            case "$path" in
@OPTIONS@
            esac
            ;;
    esac
    [[ $kind == files ]] && return  # readline's own: it knows quotes and spaces
    compopt +o default +o bashdefault 2>/dev/null
    COMPREPLY=($(compgen -W "$offered" -- "$cur"))
    [[ $kind == several && $cur == *,* ]] &&
        COMPREPLY=($(compgen -P "${cur%,*}," -W "$offered" -- "${cur##*,}"))
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}")
    fi
}
complete -o bashdefault -o default -F _aprtui aprtui
"""

_ZSH = r"""#compdef aprtui
# aprtui's completion for zsh, printed by `aprtui completion zsh`
_aprtui_devices() { compadd -- ${(f)"$(aprtui completion devices 2>/dev/null)"} }
_aprtui() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    local -a found
    if (( CURRENT == 2 )); then
        found=(
@COMMANDS@
        )
        _describe -t commands command found
        [[ $PREFIX == -* ]] && compadd -- @FIRST@
        _files
        return
    fi
    local name=$words[2]
    case "$name $words[3]" in
        @NESTED@) (( CURRENT > 3 )) && { name="$name $words[3]"; shift words; (( CURRENT-- )) } ;;
    esac
    case $name in
        @NAMES@) shift words; (( CURRENT-- )) ;;
    esac
    case $name in
@ARGUMENTS@
    esac
}
if [[ $funcstack[1] == _aprtui ]]; then _aprtui "$@"; else compdef _aprtui aprtui; fi
"""

_FISH = r"""# aprtui's completion for fish, printed by `aprtui completion fish`
function __aprtui_at
    set -l words (commandline -opc)
    set -l last (math (count $argv) + 1)
    test (count $words) -ge $last; and test "$words[2..$last]" = "$argv"
end
function __aprtui_first
    test (count (commandline -opc)) -eq 1
end
function __aprtui_opens
    set -l words (commandline -opc)
    not contains -- "$words[2]" @COMMANDS@
end
"""


def _filled(script: str, **parts: str) -> str:
    for name, text in parts.items():
        script = script.replace(f"@{name}@", text)
    return script


def _flags(command: Command) -> str:
    return " ".join(flag for option in command.options for flag in option.flags)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"


def _either(commands: Iterable[Command]) -> str:
    return " | ".join(_quoted(command.name) for command in commands)


def bash() -> str:
    commands = every()
    values = (
        f"        {' | '.join(_quoted(f'{command.name} {flag}') for flag in option.flags)}) "
        f"{_bash_value(option.value)} ;;"
        for command in commands
        for option in command.options
        if option.value is not None
    )
    return _filled(
        _BASH,
        FIRST=" ".join(_FIRST),
        COMMANDS=" ".join(COMMANDS),
        NESTED=_either(command for command in commands if len(command.words) > 1),
        NAMES=" | ".join(f"{name}' '*" for name in COMMANDS),
        VALUES="\n".join(values),
        OPTIONS="\n".join(
            f"                {_quoted(command.name)}) [[ $cur == -* ]] && "
            f"offered='{_flags(command)}' || {_bash_operands(command)} ;;"
            for command in commands
        ),
    )


def _bash_operands(command: Command) -> str:
    return "kind=files" if command.files else f"offered='{' '.join(command.choices)}'"


def _bash_value(value: Value) -> str:
    if value.devices:
        return 'offered=$("${COMP_WORDS[0]}" completion devices 2>/dev/null)'
    kind = "kind=several; " if value.several else ""
    return "kind=files" if value.files else f"{kind}offered='{' '.join(value.words)}'"


def zsh() -> str:
    commands = every()
    return _filled(
        _ZSH,
        FIRST=" ".join(_FIRST),
        COMMANDS="\n".join(
            f"            {_quoted(f'{name}:{_described(text)}')}"
            for name, (_, text) in COMMANDS.items()
        ),
        NESTED=_either(command for command in commands if len(command.words) > 1),
        NAMES=_either(command for command in commands if command.words),
        ARGUMENTS="\n".join(
            f"        {_quoted(command.name) if command.name else '*'})\n"
            f"            _arguments -S {_continued(_zsh_specs(command))} ;;"
            for command in sorted(commands, key=lambda command: not command.words)
        ),
    )


def _continued(specs: Iterable[str]) -> str:
    return " \\\n                ".join(map(_quoted, specs))


def _described(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _zsh_specs(command: Command) -> Iterator[str]:
    for option in command.options:
        others = "*" if option.repeated else f"({' '.join(option.flags)})"
        for flag in option.flags:
            takes = (
                f":{_described(option.value.name)}:{_zsh_action(option.value)}"
                if option.value
                else ""
            )
            equals = "=" if option.value and flag.startswith("--") else ""
            yield f"{others}{flag}{equals}[{_described(option.help)}]{takes}"
    for place, (value, _) in enumerate(command.operands, 1):
        where = place if value.words or place < len(command.operands) else "*"
        yield f"{where}:{_described(value.name)}:{_zsh_action(value)}"


def _zsh_action(value: Value) -> str:
    if value.devices:
        return "_aprtui_devices"
    if value.several:
        return f"_sequence compadd - {' '.join(value.words)}"
    return "_files" if value.files else f"({' '.join(value.words)})" if value.words else " "


def fish() -> str:
    lines = [
        f"complete -c aprtui -n __aprtui_first -a {name} -d {_fish_quoted(text)}"
        for name, (_, text) in COMMANDS.items()
    ]
    lines += [f"complete -c aprtui -n __aprtui_first -l {flag[2:]}" for flag in _FIRST]
    for command in every():
        here = f"__aprtui_at {command.name}" if command.words else "__aprtui_opens"
        at = f"complete -c aprtui -n '{here}'"
        if command.words and not command.files:
            lines.append(f"{at} -f -a '{' '.join(command.choices)}'")
        lines += [f"{at} {_fish_option(option)}" for option in command.options]
    return _filled(_FISH, COMMANDS=" ".join(COMMANDS)) + "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    names = [f"-l {flag[2:]}" if flag[:2] == "--" else f"-s {flag[1:]}" for flag in option.flags]
    return " ".join([*names, *_fish_value(option.value), f"-d {_fish_quoted(option.help)}"])


def _fish_value(value: Value | None) -> Iterator[str]:
    if value is None:
        return
    if value.files:
        yield "-r -F"
    elif value.devices:
        yield "-x -a '(aprtui completion devices)'"
    elif value.several:
        words = " ".join(value.words)
        yield f"-x -a '(__fish_complete_list , \\'string split \" \" \"{words}\"\\')'"
    else:
        yield f"-x -a '{' '.join(value.words)}'" if value.words else "-x"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
