"""`polargrad completion`: a script by which a shell completes commands, flags and names."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from polargrad.lab.cli.arguments import Positional
from polargrad.lab.cli.main import COMMANDS
from polargrad.lab.options import Options, flag_of

__all__ = ["Completion", "options_of"]

_SCRIPT = """\
_polargrad() {{
  local words="{commands}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
      *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _polargrad polargrad
"""


@dataclass(frozen=True)
class Completion(Options):
    """Print a script by which bash or zsh completes commands, flags, recipes and problems; other words are files.

    Example: polargrad completion bash > polargrad-completion.sh

    Args:
        shell: the shell, which reads the script by `source`, from ~/.bashrc or ~/.zshrc
    """

    shell: Positional[Literal["bash", "zsh"]]

    def __call__(self) -> None:
        """Print the script."""
        from polargrad.lab.matrix import PROBLEMS
        from polargrad.lab.recipes import COMPARISONS, RECIPES
        from polargrad.lab.studies import STUDIES

        names = {
            "run": (*RECIPES.names(), *PROBLEMS.names(), *STUDIES),
            "compare": (*RECIPES.names(), *COMPARISONS),
            "protocol": RECIPES.names(),
        }
        cases = []
        for command in COMMANDS:
            kind = getattr(importlib.import_module(f"polargrad.lab.cli.{command}"), command.capitalize())
            words = [*(flag_of(entry) for entry, _ in options_of(kind)), "--help", *names.get(command, ())]
            cases.append(f'      {command}) words="{" ".join(words)}" ;;')
        if self.shell == "zsh":
            print("autoload -U +X bashcompinit && bashcompinit")
        print(_SCRIPT.format(commands=" ".join(COMMANDS), cases="\n".join(cases)), end="")


def options_of(kind: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a command and of its tables that are flags, and their types."""
    plain, annotated = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.default_factory):
            yield from options_of(entry.default_factory)  # pyright: ignore[reportArgumentType]
        elif typing.get_origin(annotated[entry.name]) is not typing.Annotated:  # a positional argument
            yield entry, plain[entry.name]
