"""A command with its words parsed -> the command run away from the working folder, and an interrupt told as such."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from pipeline.child import absolute, elsewhere


class InterruptError(Exception):
    """A SIGINT or SIGTERM ended the command."""


class Command(TyperCommand):
    """Makes its paths absolute and leaves the working folder, which it then neither searches nor reads."""

    def invoke(self, ctx: Any) -> Any:
        ctx.params = {name: absolute(value) for name, value in ctx.params.items()}
        try:
            with elsewhere():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptError from None
