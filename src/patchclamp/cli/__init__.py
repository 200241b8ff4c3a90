"""The command `patchclamp`: parse, call a room, print.

Rooms are imported inside the commands, so that help answers at once and a misspelt option costs nothing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from patchclamp.cli.bench import Bench
from patchclamp.cli.diffing import Diff
from patchclamp.cli.editing import Edit
from patchclamp.cli.models import Doctor, Investigate
from patchclamp.cli.organisms import Organisms
from patchclamp.cli.probing import Probe
from patchclamp.cli.steering import Steer
from patchclamp.cli.stores import Learn, Record
from patchclamp.cli.studies import Studies, Study


@dataclass(frozen=True)
class Patchclamp:
    """Record, patch and clamp the activations of a network, and turn that into an explanation.

    For example: patchclamp investigate organism:tales --task ioi
    """

    command: (
        Investigate
        | Doctor
        | Record
        | Annotated[Learn, tyro.conf.subcommand("train")]
        | Probe
        | Steer
        | Diff
        | Edit
        | Study
        | Studies
        | Organisms
        | Bench
    )
    debug: bool = False
    """print the traceback of an error"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a certificate that does not hold, 2 an error, 130 interrupted."""
    config = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
    chosen = tyro.cli(Patchclamp, prog="patchclamp", args=arguments, config=config)
    try:
        status = chosen.command.run()
    # What a room raises on purpose; any other kind is a fault of ours, and its traceback is what helps.
    except (ValueError, LookupError, OSError, ImportError) as error:
        if chosen.debug:
            raise
        message = str(error.args[0]) if type(error) is KeyError and error.args else str(error)
        print(f"patchclamp: {message or type(error).__name__}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("patchclamp: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
