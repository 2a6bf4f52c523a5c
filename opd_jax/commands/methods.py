"""Floor 6. `opd methods`: the table of methods, and the arguments of one of them."""

import argparse
import inspect
import json
from typing import Any

from opd_jax import trust
from opd_jax.commands import console, flags, params

HELP = 'the table of methods; with NAME, what its arguments mean and what they are by default'
EPILOG = """\
  opd methods
  opd methods aopd
  opd methods --module my_method      the methods of a module of your own
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('name', nargs='?', metavar='NAME', help='of a method')
  flags.add_module(parser)
  flags.add_json(parser)


def run(args: argparse.Namespace) -> None:
  from opd_jax.methods import discover, named

  methods = discover() if args.module is None else discover(trust.imported(args.module))
  if args.name is not None:
    _show(named(args.name, methods), as_json=args.json)
    return
  if args.json:
    keys = ('name', 'summary', 'paper')
    print(json.dumps([{key: getattr(m, key) for key in keys} for m in methods], indent=2))
    return
  rows = [(method.name, method.summary, method.paper) for method in methods]
  console.table(('method', 'what it does', 'paper'), rows)


def _show(method: Any, *, as_json: bool) -> None:
  from opd_jax.reference import of_method

  first, *records = of_method(method)
  if as_json:
    record = {'name': method.name, 'paper': method.paper}
    record |= {'arguments': {each.name: each.default for each in first.arguments}}
    print(json.dumps({**record, 'doc': inspect.cleandoc(method.make.__doc__)}, indent=2))
    return
  print(f'{method.name}, {method.paper}\n')
  imported = f'import {method.make.__module__}'
  if '.' in method.make.__module__:
    imported = 'from {0} import {2}'.format(*method.make.__module__.rpartition('.'))
  for bindable in (first, *records):
    params.show(bindable, imported)
