"""The command `lrpfunc`, and `python -m lrpfunc`."""

import sys

from lrpfunc.errors import MissingExtraError
from lrpfunc.extras import extra


def main() -> None:
    """Run the command line. Without what it is made of: one line that says how to install it, exit code 1."""
    try:
        extra("typer", "cli", "the command line")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from lrpfunc.cli import app

    app(prog_name="lrpfunc")


if __name__ == "__main__":
    main()
