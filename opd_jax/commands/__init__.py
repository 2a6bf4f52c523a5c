"""Floor 6. What the subcommands of `opd` do, as functions of plain values; `cli.py` reads the flags."""
