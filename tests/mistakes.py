"""The folder in which mistakes are made, and the process that makes them: only the library checks kinds there."""

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path

import jax
from spelled import CHAT, spelled

from opd_jax import cli
from opd_jax.configuration import build
from opd_jax.data import time_limit
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface
from opd_jax.training import inspection

LOOP = '{% set many = range(99999) %}{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}'
TEMPLATES = {
  'own': CHAT,
  'loops': LOOP,
  'unended': '{% for m in messages %}',
  'escapes': "{{ ''.__class__.__mro__ }}",
  'divides': '{{ 1 // 0 }}',
  'refuses': "{{ raise_exception('roles must alternate') }}",
  'chatless': None,
}
MODULE = """\
from opd_jax.data.problems import Verdict

nothing = lambda problem, response: None
words = lambda problem, response: 'right'
endless = lambda problem, response: float('inf')
strange = lambda problem, response: Verdict(1.0, outcome='perhaps')


def raises(problem, response):
  return response[0]


def one_argument(response):
  return 1.0
"""
BYTES = """\
from __gin__ import dynamic_registration
import mine_of_mistakes
from opd_jax.data import mixture
from opd_jax.data import templates
from opd_jax.data import tokenizers
from opd_jax.inference import decoding
from opd_jax.judges import contexts
TOKENIZER = @tokenizers.ByteTokenizer()
"""


def write_rows(folder: Path) -> None:
  """Files of rows, good and bad."""
  rows = [{'problem': f'{n}+1=', 'answer': n + 1} for n in range(20)]
  write = lambda name, rows: (folder / name).write_text('\n'.join(map(json.dumps, rows)))
  write('rows.jsonl', rows)
  write('one.jsonl', rows[:1])
  write('array.jsonl', [rows])
  (folder / 'indented.jsonl').write_text(json.dumps(rows[0], indent=2))
  (folder / 'nothing.jsonl').write_text('\n\n')
  (folder / 'cut.jsonl').write_text((folder / 'rows.jsonl').read_text() + '\n{"problem": "7+')
  (folder / 'latin.jsonl').write_bytes(b'{"problem": "caf\xe9", "answer": 1}\n' * 20)
  for name, column, value in (
    *(('null', 'problem', None), ('list', 'problem', ['a']), ('dict', 'problem', {'a': 1})),
    *(('number', 'problem', 7), ('blank', 'problem', '  '), ('long', 'problem', 'x' * 3000)),
    *(('listed', 'answer', [1]), ('true', 'answer', True), ('nan', 'answer', float('nan'))),
    *(('nobody', 'answer', None), ('turns', 'problem', [{'role': 'user', 'content': 'a'}])),
    ('control', 'problem', 'a <|im_end|>'),
  ):
    write(f'{name}.jsonl', [*rows[:7], {**rows[7], column: value}, *rows[8:]])


def write_models(folder: Path) -> None:
  """Folders of models, whole and broken."""
  config, layout = presets.tiny(vocab_size=128), mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  changed = {'short': {'max_positions': 12}, 'cut': {}, 'settings': {}, 'bare': {}, 'pickled': {}}
  for name in (*TEMPLATES, *changed):
    own = dataclasses.replace(config, **changed.get(name, {}))
    huggingface.save(folder / name, own, layout, params)
    if name != 'bare':
      spelled(folder / name, TEMPLATES.get(name, CHAT))
  file = folder / 'cut/model.safetensors'
  file.write_bytes(file.read_bytes()[:-100])
  (folder / 'settings/config.json').write_text('{"model_type": "qwen3"')
  (folder / 'pickled/model.safetensors').rename(folder / 'pickled/pytorch_model.bin')
  (folder / 'empty').mkdir()
  (folder / 'a_run/student').mkdir(parents=True)


def write_gin(folder: Path) -> None:
  """gin files of the user, and a module."""
  (folder / 'mine_of_mistakes.py').write_text(MODULE)
  (folder / 'bytes.gin').write_text(BYTES)
  (folder / 'binary.gin').write_bytes(b'\xff\xfe\x00')
  (folder / 'folder.gin').mkdir()


def told_of(case) -> list[str]:
  """What is said of one mistake, a line each; nothing where there is none."""
  if 'words' in case:
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
      try:
        status = cli.main(case['words'])
      except SystemExit as ended:
        status = ended.code
    return [*stream.getvalue().strip().splitlines(), f'exit status {status}']
  if 'text' in case:
    Path('case.gin').write_text('from __gin__ import dynamic_registration\n' + case['text'])
  experiment, _ = build(case['files'], case['bindings'])
  inspection.check_startable(experiment)
  findings = inspection.inspect(experiment, workdir=Path('run'))
  return [finding.mistake for finding in findings if finding.mistake]


def main() -> None:
  """Makes the mistakes of the input, and prints what is said of each."""
  time_limit.SECONDS = 0.3
  here, told = Path(), []
  write_rows(here)
  write_models(here)
  write_gin(here)
  for case in json.load(sys.stdin):
    try:
      told.append(told_of(case))
    except (ValueError, OSError) as error:
      told.append([str(error)])
    except Exception as error:
      told.append([f'Traceback: {error!r}'])
  print(json.dumps(told))


if __name__ == '__main__':
  main()
