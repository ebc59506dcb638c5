"""The command line: `spikerate COMMAND ...`, and the exit status that it ends with."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version

from spikerate.cli.commands import COMMANDS
from spikerate.cli.console import OutputLost, complain, console
from spikerate.measure.health import NotFinite
from spikerate.runs.record import SaveError
from spikerate.system.dist import LostRank
from spikerate.system.interrupt import Ended, Interrupted, ended_by_signals
from spikerate.system.memory import ADVICE, is_out_of_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where training fails; 2 after bad input; 130 after Control-C and 143 after another signal that asks to stop; 141
    where the reader of the output has closed it, as shells have it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with ended_by_signals():
            return _dispatch(args)
    except Interrupted as stopped:
        return stopped.status
    except OutputLost as lost:
        if lost.closed:
            return 141
        complain(str(lost))
        return 2
    except (NotFinite, LostRank) as error:
        complain(str(error))
        return 1
    except (ValueError, SaveError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(ADVICE)
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except Ended as signal:
        complain(f"ended by {signal}")
        return 143


def _dispatch(args: list[str]) -> int:
    name, *words = args or ["--help"]
    if name in ("-h", "--help"):
        out = console()
        for line in _usage():
            out.print(line)
        return 0
    if name == "--version":
        console().print(f"spikerate {version('spikerate')}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(COMMANDS)}"
        raise ValueError(f"there is no command {name!r}: {hint}")
    command = COMMANDS[name]
    return command.perform(command.read(words, f"spikerate {name}"), shlex.join(["spikerate", *args]))


def _usage() -> list[str]:
    """The usage message, which lists all commands."""
    lines = [(f"{name} {rest}", what) for name, command in COMMANDS.items() for rest, what in command.usage.items()]
    width = max(len(words) for words, _ in lines)
    shown = [f"  {words:{width}}   {what}" for words, what in lines]
    return ["usage: spikerate COMMAND ...", "", *shown, "", "spikerate COMMAND --help lists the options."]
