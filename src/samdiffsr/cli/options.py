"""Options that several verbs share."""

from typing import Annotated

import typer

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on a Ray cluster instead of here: auto (this machine's), local, or an address such as ray://head:10001.",
    ),
]
