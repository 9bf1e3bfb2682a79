"""Which options a kind of training or export takes, of those that its command has.

Invariant: an option that would be passed over is refused, in a sentence that names who takes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import typer

from vljepa_ros.errors import VLJepaError


def refuse_others(
    context: typer.Context, noun: str, kinds: Mapping[str, set[str]], every: set[str], kind: str
) -> None:
    """VLJepaError where an option is given that this kind of command would pass over.

    `kinds`: the parameters that each kind takes, beside those that `every` kind does; `noun` is
    what there are kinds of.
    """
    for parameter in context.command.params:
        name = str(parameter.name)
        given = getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        if given and name not in kinds[kind] | every:
            owners = [one for one, own in kinds.items() if name in own]
            raise VLJepaError(
                f"{parameter.opts[0]} is for {noun} {' or '.join(owners)}, and this would be one "
                f"{kind}: leave it out."
            )
