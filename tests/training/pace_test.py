"""How a run stands, in a line: what matters first, within 80 columns."""

from opd_jax.training.pace import Pace, clock

ROW = {'loss': 0.41234, 'reward': 0.531, 'length': 23.4, 'time/tokens_per_s': 1738.0}
ROW |= {'time/sample': 0.2, 'time/score': 0.2, 'time/weigh': 0.0, 'time/update': 0.4}


def test_a_line_begins_with_what_matters_and_ends_with_where_the_time_went():
  pace = Pace(3000)
  assert 'ETA ? |' in pace.line({**ROW, 'step': 1}, now=0.0)
  pace.evaluated({'eval/sums/avg@1': 0.455, 'eval/sums/length': 3.0})
  pace.evaluated({'eval/sums/length': 3.0})
  line = pace.line({**ROW, 'step': 2}, now=1.5)
  assert line == (
    'loss 0.412 reward 0.53 acc 45.5% length 23 ETA 1:14:57 | 0.80 s a step: '
    'sample 25%, score 25%, weigh 0%, update 50%, 1738 tokens/s'
  )
  assert len(f'training 2000/3000 {line.partition(" |")[0]}') <= 80


def test_one_long_step_does_not_spoil_the_time_left():
  pace, now = Pace(100), 0.0
  for step in range(1, 11):
    now += 60.0 if step == 5 else 2.0
    line = pace.line({**ROW, 'step': step}, now=now)
  assert 'ETA 3:00' in line
  assert clock(59.6) == '1:00' and clock(5.0) == '0:05'


def test_a_step_that_compiled_says_so():
  line = Pace(9).line({**ROW, 'step': 1, 'time/compiling': 0.5}, now=0.0)
  assert '0.80 s a step: compiling 0.5 s, sample' in line
