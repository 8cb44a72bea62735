"""The command line: thin commands over the library, errors that read like sentences."""

from gracile.cli.app import app, main

__all__ = ["app", "main"]
