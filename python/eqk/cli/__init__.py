"""The subcommands of ``python -m eqk``. ``import eqk`` imports nothing of it."""
