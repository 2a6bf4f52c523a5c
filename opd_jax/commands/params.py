"""Floor 6. `opd params`: what gin files may bind, from signatures and docstrings."""

import argparse
import difflib
import json
from typing import Any

from opd_jax.commands import console, flags

HELP = 'what gin files may bind; with NAME, the arguments, defaults and meanings of whatever is called so'
EPILOG = """\
  opd params                   everything, a line each
  opd params Stage             experiment.Stage with its arguments
  opd params optimisers        whatever a module offers
  opd params adamw.rate        one argument
  opd params budget            whatever has an argument of this name

The same as a page: docs/gin_reference.md. Methods by paper: opd methods.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('name', nargs='?', metavar='NAME', help='of a function, module or argument')
  flags.add_json(parser)


def run(args: argparse.Namespace) -> None:
  from opd_jax.reference import sections

  found = [
    (section, part)
    for section in sections()
    for bindable in section.bindables
    if (part := _part(bindable, args.name)) is not None
  ]
  if not found:
    raise ValueError(_unknown(args.name))
  if args.json:
    records = [{**part._asdict(), 'arguments': [each._asdict() for each in part.arguments]}
               for _, part in found]  # fmt: skip
    print(json.dumps(records, indent=2))
  elif args.name is None:
    rows = [(section.title, part.name, _summary(part)) for section, part in found]
    console.table(('section', 'name', 'what it is'), rows)
  else:
    for section, part in found:
      show(part, section.imported or f'from opd_jax.methods import {part.name.split(".")[0]}')


def _part(bindable: Any, name: str | None) -> Any | None:
  """What of it goes by the name: all of it, or arguments."""
  if name is None or name.lower() in bindable.name.lower():
    return bindable
  named = [
    each for each in bindable.arguments if f'.{bindable.name}.{each.name}'.endswith(f'.{name}')
  ]
  return bindable._replace(arguments=tuple(named)) if named else None


def _unknown(name: str) -> str:
  from opd_jax.reference import sections

  known = {bindable.name for section in sections() for bindable in section.bindables}
  known |= {each for name in known for each in name.split('.')}
  near = difflib.get_close_matches(name, sorted(known), n=4)
  meant = f' Did you mean {", ".join(near)}?' if near else ''
  return f'nothing that gin files may bind is called {name!r}.{meant} `opd params` lists all of it.'


def _summary(bindable: Any) -> str:
  return bindable.text.split('\n\n')[0].replace('\n', ' ')


def show(bindable: Any, imported: str) -> None:
  """What it is, the line that a gin file needs, and its arguments."""
  note = f'\n\n{bindable.note}' if bindable.note else ''
  print(f'{bindable.name}      ({imported})\n\n{bindable.text}{note}\n')
  if bindable.arguments:
    rows = [
      (f'{bindable.name}.{each.name}', each.default or 'must be bound', each.kind, each.meaning)
      for each in bindable.arguments
    ]
    console.table(('gin binding', 'default', 'type', 'meaning'), rows)
    print()
