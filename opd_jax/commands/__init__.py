"""Floor 6. The subcommands of `opd`. A file with HELP, EPILOG, `add_flags(parser)` and `run(args)` is one.

Files of this folder import jax inside functions only, so that `opd --help` answers at once.
"""
