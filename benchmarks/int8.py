"""What a judge of int8 matrices costs and saves: its divergence on given rows, and the bytes of published shapes.

  python benchmarks/int8.py runs/teacher/student mine/problems.jsonl

The folder is a model of one's own; rows are the questions and solutions of a JSON-lines file, as `docs/examples` makes
them. Nothing is trained.
"""

import dataclasses
import json
import sys
from pathlib import Path

from opd_jax import judges, units
from opd_jax.data.templates import Template
from opd_jax.judges import int8_error
from opd_jax.judges.local import LocalJudge
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import load

ROWS = 8
SHAPES = ('qwen3_8b', 'qwen3_32b', 'qwen3_30b_a3b')


def compare(source: str, problems: Path) -> None:
  """The divergence of a folder's model, in both types that it may be computed in."""
  tokenizer, layout = load.tokenizer_of(source), mesh_layout()
  assert tokenizer is not None, f'{source} has no tokenizer beside it'
  lines = [json.loads(line) for line in problems.read_text().splitlines()[:ROWS]]
  rows = [tokenizer.encode(f'{line["problem"]}\n{line["solution"]}') for line in lines]
  for dtype in ('float32', 'bfloat16'):
    loaded = load.model(source, layout, param_dtype=dtype, int8=True)
    judge = LocalJudge(
      name='teacher',
      spec=judges.frozen(source, int8=True),
      config=loaded.config,
      layout=layout,
      home=layout,
      columns=loaded.config.vocab_size,
      tokenizer=tokenizer,
      template=Template(),
      own=loaded.params,
    )
    error = int8_error.measured(judge, rows)
    assert error is not None
    print(f'{source}, {dtype}: KL(int8 | {dtype}) {error.mean:.2g} nats a token, at most {error.most:.2g}, '
          f'{error.tokens} tokens')  # fmt: skip


def sizes() -> None:
  """Bytes of published shapes, from shapes alone."""
  for name in SHAPES:
    config = presets.every()[name](param_dtype='bfloat16', dtype='bfloat16')
    models = dataclasses.replace(config, int8=True), config
    told = [
      units.memory(units.bytes_of(shapes))
      for shapes in (transformer.abstract(each, mesh_layout()) for each in models)
    ]
    print(f'{name}: {told[0]} as int8, {told[1]} as bfloat16')


if __name__ == '__main__':
  compare(sys.argv[1], Path(sys.argv[2]))
  sizes()
