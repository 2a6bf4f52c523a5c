"""Writes what the code already says: docs/gin_reference.md, and the table of methods in README.md.

python docs/generate.py            writes both
python docs/generate.py --check    writes nothing; exit status 1 where one is stale
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from opd_jax.claims import Claim, Converges, Unbiased, to_teacher
from opd_jax.method import Method
from opd_jax.method_reads import judges_read
from opd_jax.methods import discover
from opd_jax.reference import Bindable, sections
from opd_jax.rollouts import RolloutMix
from opd_jax.types import ScoreRequest

ROOT = Path(__file__).parent.parent
BEGIN, END = '<!-- methods: written by `make docs` -->', '<!-- methods end -->'
HEAD = """\
# gin reference

Written by `make docs` from signatures and docstrings: do not edit. [gin.md](gin.md) says how files and bindings work.
A binding is `module.name.argument = value`; `from opd_jax… import module` must stand in a file. An empty default: it
must be bound.

`judges.frozen` and `judges.itself` take the options of `Judge` too; a preset takes the fields of `ModelConfig`.
"""
# --- the reference ----------------------------------------------------------------------------------


def item(bindable: Bindable) -> Iterator[str]:
  """One thing that can be bound."""
  yield f'### `{bindable.name}`\n'
  yield fenced(bindable.text) + '\n'
  if bindable.arguments:
    yield '| argument | type | default | meaning |\n|---|---|---|---|'
    for each in bindable.arguments:
      cells = (f'`{each.name}`', code(each.kind), code(each.default), each.meaning)
      yield '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
    yield ''
  if bindable.note:
    yield bindable.note + '\n'


def code(text: str) -> str:
  return f'`{text}`' if text else ''


def fenced(text: str) -> str:
  """Indented formulas become code; the rest stays prose."""
  parts = []
  for part in text.split('\n\n'):
    formula = part.startswith('    ')
    parts.append(f'```\n{inspect.cleandoc(part)}\n```' if formula else part)
  return '\n\n'.join(parts)


def presets_table() -> Iterator[str]:
  from opd_jax.models import presets

  yield 'Each takes the fields of `ModelConfig` as arguments: `presets.tiny.width = 128`.\n'
  yield '| preset | layers | width | heads | key-value heads | vocabulary |\n|---|---|---|---|---|---|'
  for name, make in presets.every().items():
    model = make()
    numbers = (model.num_layers, model.width, model.num_heads, model.num_kv_heads)
    yield f'| `presets.{name}` | {" | ".join(map(str, (*numbers, model.vocab_size)))} |'
  yield ''


def reference() -> str:
  lines = [HEAD]
  for section in sections():
    lines.append(f'## {section.title}\n')
    if section.imported:
      lines.append(f'`{section.imported}`\n')
    if section.title == 'Presets':
      lines += presets_table()
    for bindable in section.bindables:
      lines += item(bindable)
  return '\n'.join(line.rstrip(' ') for line in lines).rstrip() + '\n'


# --- the table of methods ---------------------------------------------------------------------------


def writers(mix: RolloutMix) -> str:
  first = mix.deal(1000).mean(axis=1).round(3).tolist()
  parts = dict(zip(('student', 'teacher', 'data set'), first, strict=True))
  if 1.0 in parts.values():
    return next(name for name, part in parts.items() if part == 1.0)
  return ', '.join(f'{part:.0%} {name}' for name, part in parts.items() if part)


def told(request: ScoreRequest) -> str:
  """What a request asks for, in words."""
  asked = {
    'log-probs': True,
    'entropy': request.entropy,
    f'top {request.top_k}': request.top_k,
    f"at the student's top {request.at_student_top_k}": request.at_student_top_k,
    'whole distribution': request.hidden,
    'inner layers': request.layers,
  }
  return ', '.join(name for name, wanted in asked.items() if wanted)


def judges_of(method: Method) -> str:
  names = sorted(judges_read(method) - {'student'}, key=lambda name: (name != 'teacher', name))
  return '; '.join(f'{name}: {told(method.needs.judges[name])}' for name in names) or 'nothing'


def claim_of(claim: Claim) -> str:
  own = getattr(claim, 'optimum', to_teacher) is not to_teacher
  if isinstance(claim, Unbiased):
    name = claim.divergence.name.replace('_', ' ').replace(' kl', ' KL')
    return f'unbiased for {name}' + (', to an optimum of its own' if own else '')
  if isinstance(claim, Converges):
    return f'converges to {"an optimum of its own" if own else "the teacher"}'
  return f'none: {claim.why}'


def linked(paper: str) -> str:
  return re.sub(r'arXiv:(\d+\.\d+)', r'[arXiv:\1](https://arxiv.org/abs/\1)', paper)


def method_table() -> str:
  rows = ['| method | what it does | paper | who writes | the judges must tell | claim |',
          '|---|---|---|---|---|---|']  # fmt: skip
  for entry in discover():
    method = entry.make()
    cells = (f'[{entry.name}](opd_jax/methods/{entry.name}.py)', entry.summary, linked(entry.paper),
             writers(method.rollout), judges_of(method), claim_of(method.claim))  # fmt: skip
    rows.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
  return '\n'.join(rows)


def with_table(readme: str) -> str:
  """README.md with the table as it should be."""
  front, begin, rest = readme.partition(BEGIN)
  _, end, back = rest.partition(END)
  if not (begin and end):
    raise ValueError(f'README.md: the lines {BEGIN!r} and {END!r} are not there.')
  return f'{front}{BEGIN}\n{method_table()}\n{END}{back}'


def pages() -> Mapping[Path, str]:
  """What each generated file should hold."""
  readme = ROOT / 'README.md'
  return {ROOT / 'docs/gin_reference.md': reference(), readme: with_table(readme.read_text())}


def stale(wanted: Mapping[Path, str]) -> list[Path]:
  return [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
  wanted = pages()
  for path in (changed := stale(wanted)):
    if '--check' not in arguments:
      path.write_text(wanted[path])
    say(f'{"stale" if "--check" in arguments else "wrote"}    {path.relative_to(ROOT)}')
  return int(bool(changed) and '--check' in arguments)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
