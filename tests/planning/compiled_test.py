"""A plan that compiles: its memory is the compiler's own, loops count, and what does not fit is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs
from jax.sharding import PartitionSpec

from opd_jax import cli, judges
from opd_jax.inference import decode_programs, scorer
from opd_jax.methods import gkd
from opd_jax.models import presets, transformer
from opd_jax.planning import compiled, flops
from opd_jax.sharding import mesh_layout
from opd_jax.training import shapes, stage_programs, verbs
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

GIN = ('--gin_file', 'experiments/models/small.gin', '--gin_file', 'experiments/data/sums.gin')
GIN = (*GIN, '--gin_file', 'experiments/methods/sft.gin')


def test_what_is_sent_is_counted_over_loops():
  layout = mesh_layout(fsdp=8)

  def program(x):
    def step(total, row):
      mean = jax.shard_map(
        lambda x: jax.lax.psum(x, 'fsdp'),
        mesh=layout.mesh,
        in_specs=PartitionSpec('fsdp'),
        out_specs=PartitionSpec(),
      )(row)
      return total + mean.sum(), None

    return jax.lax.scan(step, jnp.zeros(()), x)[0]

  rows = jax.ShapeDtypeStruct((5, 8 * 16), np.float32, sharding=layout.sharding(None, 'embed'))
  text = jax.jit(program, in_shardings=rows.sharding).lower(rows).compile().as_text()
  assert compiled.sent(text) == {'all-reduce': 2 * 5 * 16 * 4}


def test_an_operation_that_has_begun_is_counted_once():
  text = """ENTRY %main (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %begun = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  ROOT %done = bf16[16,8]{1,0} all-gather-done(%begun)
}"""
  assert compiled.sent(text) == {'all-gather': 16 * 8 * 2}


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stage')
  teacher = {'teacher': judges.frozen(runs.teacher_folder(folder))}
  return runs.at_work(folder, teacher, method=gkd.gkd(student_fraction=1.0), microbatches=2)


def test_a_batch_that_nobody_has_seen_has_the_shapes_of_one_that_was(stage):
  """Of the widest: so the plan speaks of the programs that the run will use."""
  runtime, state = stage
  position = RunPosition()
  sampled = verbs.sample(runtime, state.weights, runtime.stream().take(4), position)
  evidence = verbs.score(runtime, state.weights, sampled, position)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  seen = shapes.of_example(runtime, shapes.Example(sampled, evidence, batch), position)
  blank = shapes.blank(runtime, state, seen.longest['student'])
  wanted = shapes.batch_at(seen.batch, runtime.sampling.budget)
  kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert kind(blank.batch) == kind(wanted)
  programs = lambda of: {each.name for each in stage_programs.at_width(runtime, state, of, 16)}
  assert programs(blank) <= programs(
    seen
  )  # a microbatch of shorter prompts has a program of its own


def test_the_cache_is_cut_before_its_first_row():
  """A program's zeros lie where they are pinned: `device` says nothing inside one, and every chip held all of it."""
  layout, config = mesh_layout(data=4, tensor=2), presets.tiny(vocab_size=16)
  slots = decode_programs.vacant(specs=((config, layout),), rows=8, columns=16, window=0)
  keys = slots.caches[0].keys[0]
  assert keys.sharding.shard_shape(keys.shape) == (2, 1, 16, 16)


@pytest.mark.parametrize('shape', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}])
def test_the_scorer_sends_nothing_of_the_vocabulary_but_its_head(shape):
  layout, config = mesh_layout(**shape), presets.tiny(vocab_size=1024)
  array = lambda *size: jax.ShapeDtypeStruct(size, np.int32)
  program = scorer.score.lower(
    transformer.abstract(config, layout), array(16, 8), array(16), array(16, 24), config=config, layout=layout,
    request=ScoreRequest(top_k=4, entropy=True),
  )  # fmt: skip
  text = program.compile().as_text()
  lines = [line for line in text.splitlines() if compiled.OPERATION.match(line)]
  here = 1024 // layout.size('vocab')
  wide = [
    line
    for line in lines
    if f',{here}]' in line.split(' = ')[1].split('(')[0] or f',{here}]' in line[:90]
  ]
  assert all('all-gather' in line for line in wide) and len(wide) <= 1


def test_a_plan_tells_what_fits(capsys, monkeypatch):
  assert cli.main(['plan', *GIN, '--compile', '--chip', 'h100', '--prompt', '32']) == 0
  said = capsys.readouterr().out
  assert 'gradient 64 x (32 + 40)' in said and 'fullest' in said and 'step     at least' in said
  small = flops.CHIPS['h100']._replace(memory=2**20)
  monkeypatch.setitem(flops.CHIPS, 'h100', small)
  assert cli.main(['plan', *GIN, '--compile', '--chip', 'h100', '--prompt', '32']) == 1
  assert (
    'does not fit: smaller microbatches, experiment.Stage.microbatches = 2'
    in capsys.readouterr().out
  )


def test_memory_is_the_compilers_own(stage):
  runtime, state = stage
  seen = shapes.blank(runtime, state, 10)
  program = next(iter(stage_programs.at_width(runtime, state, seen, seen.width)))
  residents = compiled.Residents(
    student=1, optimiser=2, snapshots=4, judges={'teacher': 8}, writer=16, evidence=32
  )
  found = compiled.measured(program, residents, platform='cpu')
  memory = program.compile().memory_analysis()
  assert found.peak == (
    memory.temp_size_in_bytes
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  assert found.beside == 2 + 4 + 8 + 32
