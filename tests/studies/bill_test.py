"""The commands of a study and their cost: those that the runner would start, and nothing is run."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from opd_jax import cli, configuration
from opd_jax.planning import cost
from opd_jax.planning.flops import CHIPS
from opd_jax.studies import bill
from opd_jax.studies.ledger import DONE, Ledger
from opd_jax.studies.runner import Runner
from opd_jax.studies.study import read_study

TESTS = Path(__file__).parent.parent
TOY, ROOT = TESTS / 'toy_study.py', TESTS.parent
PAPER, TINY = (ROOT / 'experiments' / 'studies' / 'aopd' / name for name in ('paper.py', 'tiny.py'))


def printed(capsys, *words: str) -> list[str]:
  assert cli.main(['study', *map(str, words)]) == 0
  return capsys.readouterr().out.splitlines()


def test_a_command_is_the_one_that_the_runner_starts(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  ledger = Ledger(read_study(TOY), tmp_path)
  for where in ('teacher/default/0', 'weak/default/9'):
    (tmp_path / 'runs' / where).mkdir(parents=True)
    (tmp_path / 'runs' / where / DONE).write_text('{}')
  [trial, _] = ledger.trials(ledger.study.cell('opd'))
  [order] = [order for order in bill.orders(ledger, TOY) if order.run == trial]
  there = Runner(ledger, TOY, lock=0, origin={}).command(trial)[1:]
  assert order.words[0] == 'opd' and list(order.words[1:]) == [
    word.removeprefix(f'{ROOT}/') for word in there
  ]


def test_what_a_run_needs_is_above_it_and_a_rate_that_runs_will_tell_is_left_open(tmp_path):
  seen: set[str] = set()
  orders = list(bill.orders(Ledger(read_study(TOY), tmp_path), TOY))
  for order in orders:
    needed = [word.split('"')[1] for word in order.words if '/student"' in word]
    assert {path.removesuffix('/student') for path in needed} <= seen
    seen.add(order.words[-1])
  assert len(orders) == len(seen) == 8
  last = orders[-1]
  assert last.name == 'opd rate <best of 0.0001 0.001> seed 2'
  assert 'RATE = <best of 0.0001 0.001>' in last.words
  assert last.words[-1] == f'{tmp_path}/runs/opd/<best of 0.0001 0.001>/2'


def test_seconds_are_believed_and_others_are_counted_with_the_shape_of_the_cell_that_they_take():
  ledger = Ledger(read_study(TOY), Path('nowhere'))
  prices = bill.prices(ledger, TOY, chip=CHIPS['v5p'], mfu=0.5)
  assert prices['weak'].hours == 8 / 3600 and prices['weak'].counted is None
  opd = ledger.study.cell('opd')
  shapes = {'teacher': bill.experiment_of(ledger.study.cell('teacher'), TOY).model}
  counted = cost.cost_of(bill.experiment_of(opd, TOY), shapes)
  assert prices['opd'].counted == counted and shapes['teacher'].width == 32
  assert prices['opd'].hours == counted.hours(CHIPS['v5p'], 0.5).total


def test_a_cost_that_nobody_can_count_is_said_and_not_summed(tmp_path, monkeypatch, capsys):
  study = read_study(TOY)
  cells = [
    dataclasses.replace(
      cell,
      after=('weak',),
      bindings=('TEACHER = "elsewhere/model"', 'WEIGHTS = "{weak}"'),
      rates=(),
    )
    if cell.name == 'opd'
    else cell
    for cell in study.cells
  ]
  study = dataclasses.replace(study, cells=tuple(cells))
  monkeypatch.setattr('opd_jax.studies.study.read_study', lambda file: study)
  lines = printed(capsys, TOY, '--commands', '--workdir', tmp_path)
  assert any(
    'nobody knows (cost: the shape of elsewhere/model is not known' in line for line in lines
  )
  assert ' '.join(lines[-1].split()) == '# the whole study 5 24 s, and 2 runs of unknown cost'


@pytest.mark.parametrize(
  'file, runs', [(PAPER, 118), (TINY, 463)], ids=lambda value: str(value)[-8:]
)
def test_a_script_of_all_commands_is_printed_and_nothing_is_run(file, runs, tmp_path, capsys):
  lines = printed(capsys, file, '--commands', '--workdir', tmp_path / 'x')
  assert not (tmp_path / 'x').exists()
  commands = [line for line in lines if line and not line.startswith('#')]
  assert len(commands) == len(set(commands)) == runs
  for command in commands:
    cli.parser().parse_args(shlex.split(command)[1:])
  assert lines[-1].startswith('# the whole study') and 'device-hours' in lines[-1]


def test_a_command_of_the_paper_builds_as_it_stands(monkeypatch):
  monkeypatch.chdir(ROOT)
  ledger = Ledger(read_study(PAPER), Path('runs/paper'))
  orders = {order.name: order.words for order in bill.orders(ledger, PAPER)}
  words = orders['8b-strong-gkd-tools seed 2']
  named = lambda flag: [words[n + 1] for n, word in enumerate(words) if word == flag]
  experiment, _ = configuration.build(named('--gin_file'), named('--gin_bindings'))
  assert experiment.seed == 2
  root = ROOT / 'runs' / 'paper' / 'runs'
  assert experiment.weights == f'{root}/8b-strong-gkd/default/2/student'
  assert words[-1] == f'{root}/8b-strong-gkd-tools/default/2'


@pytest.mark.parametrize('flags', [('--chip', 'abacus'), ('--mfu', '0'), ('--mfu', '1.5')])
def test_a_chip_or_an_mfu_that_is_none_is_refused(flags, capsys):
  assert cli.main(['study', str(TOY), '--commands', *flags]) == 2
  assert '--chip is one of h100, h200' in capsys.readouterr().err
