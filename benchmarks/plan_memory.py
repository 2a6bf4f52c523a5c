"""Memory that `opd plan --compile` foretells, against what a run takes: on a processor, whose devices are simulated.

python benchmarks/plan_memory.py [DEVICES]

A run of two steps of on-policy GKD (states of a teacher, the student as it was; microbatches) and its evaluation; the
same with a model of a thousandth of the size tells what Python, JAX and the programs themselves take. Programs are
compiled by a first run and loaded by the one that is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ('models/small', 'data/sums', 'methods/gkd')
SETTINGS = {
  'TOKENIZER': '@tokenizers.ByteTokenizer()',
  'JUDGES': "{'teacher': @judges.itself()}",
  'gkd.gkd.student_fraction': '1.0',
  'STEPS': '2',
  'PROMPTS': '64',
  'BUDGET': '96',
  'sampler.Sampling.slots': '64',
  'experiment.Stage.microbatches': '2',
  'evaluator.Evaluation.problems': '64',
  'evaluator.Evaluation.budget': '16',
}
LARGE = {
  'presets.tiny.width': '256',
  'presets.tiny.num_layers': '6',
  'presets.tiny.num_heads': '4',
  'presets.tiny.num_kv_heads': '4',
  'presets.tiny.head_dim': '64',
  'presets.tiny.mlp_width': '768',
  'presets.tiny.vocab_size': '16384',
}
SMALL = {'presets.tiny.vocab_size': '264', 'presets.tiny.num_kv_heads': '4'}


def words(sizes: dict[str, str], devices: int) -> list[str]:
  files = [f'--gin_file={ROOT}/experiments/{name}.gin' for name in FILES]
  settings = {**SETTINGS, **sizes}
  if devices > 1:
    files.append(f'--gin_file={ROOT}/experiments/layouts/fsdp.gin')
  bindings = [f'--gin_bindings={name} = {value}' for name, value in settings.items()]
  imports = [
    '--gin_bindings=from opd_jax import judges',
    '--gin_bindings=from opd_jax.data import tokenizers',
  ]
  return [*files, *imports, *bindings]


def called(command: list[str], folder: Path, devices: int) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  environment['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'cache')
  done = subprocess.run(
    [sys.executable, '-m', 'opd_jax.cli', *command], env=environment, capture_output=True, text=True
  )
  if done.returncode:
    sys.exit(f'opd {command[0]}: {done.stderr}')
  return done


def largest_of_children(command: list[str], folder: Path, devices: int) -> int:
  """Most bytes that a run had in memory; a process of its own asks, so that no other child counts."""
  code = (
    'import json, resource, sys; from pathlib import Path\n'
    'sys.path.insert(0, sys.argv[1]); import plan_memory\n'
    'plan_memory.called(json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))\n'
    'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
  )
  asked = [sys.executable, '-c', code, str(Path(__file__).parent), json.dumps(command)]
  done = subprocess.run(
    [*asked, str(folder), str(devices)], stdout=subprocess.PIPE, text=True, check=True
  )
  return int(done.stdout) * 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('devices', type=int, nargs='?', default=1)
  devices = parser.parse_args().devices
  gib = lambda size: f'{size / 2**30:.2f} GiB'
  with tempfile.TemporaryDirectory() as name:
    folder, taken = Path(name), {}
    for label, sizes in (('small', SMALL), ('large', LARGE)):
      for time in ('first', 'second'):
        run = ['train', *words(sizes, devices), '--workdir', str(folder / f'{label}-{time}')]
        taken[label] = largest_of_children(run, folder, devices)
    plan = ['plan', *words(LARGE, devices), '--compile', '--prompt', '48', '--json']
    (stage,) = json.loads(called(plan, folder, devices).stdout)['compiled']
  fullest = max(stage['programs'], key=lambda each: each['total'])
  told, seen = fullest['total'] * devices, taken['large'] - taken['small']
  print(f'{devices} devices; fullest program: {fullest["verb"]}, {fullest["name"]}')
  print(
    f'foretold {gib(told)}; taken {gib(seen)}, with {gib(taken["small"])} of a small run beside'
  )
  print(f'foretold / taken {told / seen:.3f}')


if __name__ == '__main__':
  main()
