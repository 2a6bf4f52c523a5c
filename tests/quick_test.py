"""One method through everything, in half a minute: a stage of SFT, two steps of AOPD, an evaluation, a resumed run."""

import tiny_runs as runs


def test_a_method_goes_through_everything(tmp_path):
  known = runs.experiment(tmp_path, checkpoint_every=1)
  short = tuple(runs.dataclasses.replace(stage, steps=2) for stage in known.stages)
  known = runs.dataclasses.replace(known, stages=short)
  outcome = runs.run(known, tmp_path / 'run', skip_preflight=False)
  rows = runs.metrics_of(tmp_path / 'run')
  assert outcome.finished and [row['step'] for row in rows if 'loss' in row] == [1, 2, 3, 4]
  assert {'teacher/overlap', 'log_ratio', 'gap', 'intervened', 'reward'} <= rows[-2].keys()
  assert 'eval/sums/avg@1' in rows[-1] and rows[-2]['gap'] < 1e-4
  again = runs.run(known, tmp_path / 'run')
  assert runs.digest_of(again) == runs.digest_of(outcome)
