"""``python -m resfit``: the command line."""

from resfit.cli.main import run

run()
