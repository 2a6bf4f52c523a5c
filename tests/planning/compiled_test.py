"""A plan that compiles: its memory is the compiler's own, loops count, and what does not fit is said."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs
from jax.sharding import PartitionSpec

from opd_jax import cli, judges, rollouts
from opd_jax.inference import decode_programs, scorer
from opd_jax.methods import gkd, seqkd
from opd_jax.models import presets, transformer
from opd_jax.planning import compiled, flops, traffic
from opd_jax.sharding import mesh_layout
from opd_jax.training import shapes, stage_programs, verbs
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

GIN = ('--gin_file', 'experiments/models/small.gin', '--gin_file', 'experiments/data/sums.gin')
GIN = (*GIN, '--gin_file', 'experiments/methods/sft.gin')


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """What compilers say is not kept beyond a test."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


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
  assert traffic.sent(text) == {'all-reduce': 2 * 5 * 16 * 4}


def test_an_operation_that_has_begun_is_counted_once():
  text = """ENTRY %main (x: bf16[4,8]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %begun = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  ROOT %done = bf16[16,8]{1,0} all-gather-done(%begun)
}"""
  assert traffic.sent(text) == {'all-gather': 16 * 8 * 2}


def test_loops_of_a_tpu_program_count_and_a_reduction_counts_what_it_takes():
  """Its text says no trip counts: they stand in the conditions."""
  text = """%below (x: (s32[], f32[4,8])) -> pred[] {
  %many = s32[]{:T(128)} constant(7)
  %at = s32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %go = pred[]{:T(512)} compare(%at, %many), direction=LT, metadata={}
}
%all-reduce-scatter.1 (y: f32[4,8]) -> f32[1,8] {
  %sum = f32[4,8]{1,0} all-reduce(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
%step (x: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %fused = f32[1,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %part = f32[1,8]{1,0} reduce-scatter(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}
ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]) while(%begin), condition=%below, body=%step
}"""
  assert traffic.sent(text) == {'reduce-scatter': 2 * 7 * 4 * 8 * 4}


def test_stages_of_one_collective_count_once_a_round():
  """Fusions of a chain show the same all-gather; another chain, and the next round of a loop, are operations apart.
  Rounds that are unrolled in pairs count two at a time."""
  chain = 'channel_id={}, dimensions={{0}}, frontend_attributes={{chain_id="{}"}}'
  fused = """%stage.{0} (x: bf16[4,8]) -> bf16[16,8] {{
  %gather.{0} = bf16[16,8]{{1,0}} all-gather(%x), {1}
}}
"""
  stages = [fused.format(number, chain.format(7, 0)) for number in range(3)]
  stages.append(fused.format(3, chain.format(8, 1)))
  calls = '\n'.join(f'  %f.{n} = bf16[16,8]{{1,0}} fusion(%x), calls=%stage.{n}' for n in range(4))
  text = f"""{''.join(stages)}%below (x: (bf16[4,8], u32[])) -> pred[] {{
  %many = u32[]{{:T(128)}} constant(10)
  %at = u32[]{{:T(128)}} get-tuple-element(%x), index=1, metadata={{}}
  ROOT %go = pred[]{{:T(512)}} compare(%at, %many), direction=LT, metadata={{}}
}}
%step (x: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {{
  %two = u32[]{{:T(128)}} constant(2)
  %at.1 = u32[]{{:T(128)}} get-tuple-element(%x), index=1, metadata={{}}
{calls}
  %next = u32[]{{:T(128)}} add(%at.1, %two), metadata={{}}
  ROOT %all = (bf16[4,8]{{1,0:T(8,128)(2,1)}}, u32[]{{:T(128)}}) tuple(%f.3, %next)
}}
ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {{
  %loop = (bf16[4,8], u32[]) while(%begin), condition=%below, body=%step
}}"""
  assert traffic.sent(text) == {'all-gather': 2 * 5 * 16 * 8 * 2}


def test_what_crosses_slices_is_a_kind_of_its_own_with_a_bound_of_its_own():
  """Hosts send it; a sum that everybody gets counts twice, a gathering what it hands out."""
  far = 'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="%s",x="SUM"}'
  text = f"""ENTRY %main (x: bf16[4,8]) -> bf16[16,8] {{
  %s.1 = (bf16[4,8]{{1,0}}, u32[]{{:S(2)}}, token[]) send(%x, %t), channel_id=1, {far % 'ALL_REDUCE'}
  %r.1 = (bf16[4,8]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%t), channel_id=2, {far % 'ALL_REDUCE'}
  %s.2 = (bf16[4,8]{{1,0}}, u32[]{{:S(2)}}, token[]) send(%x, %t), channel_id=3, {far % 'ALL_GATHER'}
  %r.2 = (bf16[16,8]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%t), channel_id=4, {far % 'ALL_GATHER'}
  ROOT %g = bf16[16,8]{{1,0}} all-gather(%x), dimensions={{0}}
}}"""
  found = traffic.sent(text)
  assert found == {traffic.SLICES: (2 * 4 + 16) * 8 * 2, 'all-gather': 16 * 8 * 2}
  chip = flops.Chip(flops=1e9, bandwidth=1e9, network=100.0, outside=10.0)
  verb = compiled.Verb(flops=0.0, read=0.0, sent=200.0, far=50.0)
  assert verb.seconds(chip) == (5.0, 'sending between slices')


@pytest.mark.parametrize(
  'groups, members',
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[2,4]<=[8]', 4),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
    ("mesh['axis_0'=64] {'axis_0':(2)8}", 8),
  ],
)
def test_a_scatter_counts_what_all_of_its_group_give(groups, members):
  text = f"""ENTRY %main (x: f32[64,8]) -> f32[8,8] {{
  ROOT %s = f32[8,8]{{1,0}} reduce-scatter(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}"""
  assert traffic.sent(text) == {'reduce-scatter': members * 8 * 8 * 4}


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
  lines = [line for line in text.splitlines() if traffic.OPERATION.match(line)]
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
  assert 'evaluate' in said and 'chip-hours' in said
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
    student=1, optimiser=2, snapshots=4, judges={'teacher': 8}, writer=16, evidence=32, apart={}, writes_apart=False
  )  # fmt: skip
  found = compiled.measured(program, residents, devices=jax.devices()[:1])
  memory = program.compile().memory_analysis()
  assert found.peak == (
    memory.temp_size_in_bytes
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )
  assert found.beside == 2 + 4 + 8 + 32


def test_a_plan_is_json_too(capsys):
  assert cli.main(['plan', *GIN, '--compile', '--chip', 'h100', '--prompt', '32', '--json']) == 0
  (stage,) = json.loads(capsys.readouterr().out)['compiled']
  verbs = {each['verb'] for each in stage['programs']}
  assert stage['fits'] and {'weigh', 'update', 'evaluate'} <= verbs
  assert all(each['total'] == each['peak'] + each['beside'] for each in stage['programs'])
  assert stage['least_seconds']['update'][1] == 'computing'


def test_whoever_writes_is_planned(tmp_path):
  """A teacher that writes, and the student in evaluations, which a teacher scores."""
  known = runs.experiment(tmp_path, distil={'method': seqkd.seqkd(), 'rollout': rollouts.teacher()})
  planned = compiled.programs(known, 1, 10)[0]
  names = {(each.verb, each.model, ' '.join(each.name.split()[:2])) for each in planned}
  assert ('sample', 'teacher', 'teacher: decode') in names
  assert ('evaluate', 'writer', 'sums: decode') in names
  assert ('evaluate', 'teacher', 'sums: score') in names
