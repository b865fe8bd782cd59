"""The command line: `fedsynsam run | compare | report | sharpness | advise | info | inspect`.

Bad input gives one line on standard error and exit code 2; a comparison with a failed cell, and a run that lost one of
its processes, give 1; an interrupted run gives 130, a terminated one 143. Where nobody reads the output any more, as
behind `| head`, a command ends without a word and gives 1.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence

from ..errors import FedSynSamError, RankError

PATIENCE_SECONDS = 3.0

COMMANDS = {
    "run": "one federated run; with no arguments FedSynSAM at topk:0.01 on the embedded Fashion-MNIST subset",
    "compare": "algorithms x compressors x seeds, with a table, figures and a page",
    "report": "the figures and the page again, from finished runs or a comparison",
    "sharpness": "eigenvalues and slices of the loss at the weights of a run",
    "advise": "from which bandwidth downwards compression pays, measured here",
    "info": "versions, devices, and which backends are built and usable",
    "inspect": "what a payload file holds, section by section",
}

USAGE = "usage: fedsynsam COMMAND [OPTIONS]\n\n" + "".join(f"  {name:<11}{text}\n" for name, text in COMMANDS.items())
USAGE += "\n`fedsynsam COMMAND --help` lists the options of a command; `fedsynsam --version` prints the version."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else fail("no command given; " + known_commands())
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from .. import __version__

        print(f"fedsynsam {__version__}")
        return 0
    if name not in COMMANDS:
        return fail(f"unknown command {name!r}; " + known_commands())
    if name != "run" and os.environ.get("WORLD_SIZE", "1") != "1":
        return fail(f"torchrun starts several processes; of the commands only run can use them, not {name}")
    try:
        code = int(importlib.import_module(f".{name}", __package__).main(rest))
        sys.stdout.flush()  # while a closed pipe can still be told from another error
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written there at exit
        return 1  # as rich does, which prints the tables
    except RankError as error:
        print(f"fedsynsam: error: {error}", file=sys.stderr)
        return 1
    except (FedSynSamError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        if first_process():
            print("\nfedsynsam: " + ": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 128 + getattr(interrupt, "signum", signal.SIGINT)


def first_process() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def known_commands() -> str:
    return "known commands: " + ", ".join(COMMANDS)


def complain(message: str) -> None:
    """Print one line to standard error; of several processes those after the first say which they are."""
    who = "" if first_process() else f"rank {os.environ['RANK']}: "
    print("fedsynsam: error: " + who + " ".join(message.split()), file=sys.stderr, flush=True)


def fail(message: str) -> int:
    """Complain and return the exit code of bad input.

    Of several processes the others wait first: if the first has the same to say, torchrun ends them meanwhile.
    """
    if not first_process():
        time.sleep(PATIENCE_SECONDS)
    complain(message)
    return 2


__all__ = ["COMMANDS", "main"]
