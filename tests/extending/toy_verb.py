"""A verb in one file, as docs/guides/extending.md shows it: the distance of two numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.verbs import Verb

DISTANCE = Verb("distance", "toy_package.distance", "distance_command", "Geometry", "Distance of two numbers.")


def distance_command(
    first: float,
    second: float,
    squared: Annotated[bool, typer.Option("--squared", help="Print its square.")] = False,
) -> None:
    """Print the distance of two numbers."""
    distance = abs(first - second)
    typer.echo(distance**2 if squared else distance)
