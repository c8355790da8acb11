"""`phlite completion SHELL`: a script that teaches bash, zsh or fish the commands, options and model names."""

from __future__ import annotations

import argparse
import sys

from phlite.cli import COMMANDS, load_command
from phlite.cli.parser import Parser

EPILOG = """\
bash:  phlite completion bash > ~/.local/share/bash-completion/completions/phlite
zsh:   phlite completion zsh > "${fpath[1]}/_phlite"
fish:  phlite completion fish > ~/.config/fish/completions/phlite.fish"""

BASH = """\
# bash completion of phlite
_phlite() {
    local word=${COMP_WORDS[COMP_CWORD]} words
    # a model name such as phi3:mini is one word to us, three to readline
    if declare -F _get_comp_words_by_ref > /dev/null; then _get_comp_words_by_ref -n : cur; word=$cur; fi
    words=$(phlite completion words "${COMP_WORDS[1]}" "$COMP_CWORD" 2> /dev/null)
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if declare -F __ltrim_colon_completions > /dev/null; then __ltrim_colon_completions "$word"; fi
}
complete -o default -F _phlite phlite
"""

ZSH = """\
#compdef phlite
local -a found
found=(${(f)"$(phlite completion words "${words[2]}" $((CURRENT - 1)) 2> /dev/null)"})
compadd -a found
_files
"""

FISH = """\
# fish completion of phlite
function __phlite_words
    set -l tokens (commandline -opc)
    phlite completion words "$tokens[2]" (count $tokens) 2> /dev/null
end
complete -c phlite -a '(__phlite_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
COMMANDS_WITH_NAMES = ("run", "pull", "show", "rm", "tokenize", "bench", "perplexity")


def add_arguments(parser: Parser) -> None:
    """The arguments of `phlite completion`; `words` is what the scripts call back."""
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], metavar="{bash,zsh,fish}", help="for which shell")
    parser.add_argument("position", nargs="*", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Print the script, or the words that can stand at a position."""
    if options.shell in SCRIPTS:
        sys.stdout.write(SCRIPTS[options.shell])
        return 0
    command, at = [*options.position, "", ""][:2]
    for word in _words(command, int(at) if at.isdecimal() else 1):
        print(word)
    return 0


def _words(command: str, at: int) -> list[str]:
    """What can be word number `at` of a command line whose first word is `command`."""
    if at <= 1:
        return [*COMMANDS, "--help", "--version"]
    if command not in COMMANDS:
        return []
    parser = Parser(command, COMMANDS[command])
    load_command(command).add_arguments(parser)
    names = _model_names() if command in COMMANDS_WITH_NAMES and at == 2 else []
    shells = list(SCRIPTS) if command == "completion" else []
    return [*names, *shells, *parser.options()]


def _model_names() -> list[str]:
    from phlite.hub import cached_models, known_names

    return list(dict.fromkeys([*known_names(), *(model.name for model in cached_models())]))
