"""ADWIN is OPD on what was written; what is its own is in tests/training/probing_test.py."""

from evidence_worlds import ours, same

from opd_jax.methods.adwin import adwin
from opd_jax.methods.opd import opd


def test_it_is_opd_on_the_tokens_that_were_written():
  same(ours(adwin()), ours(opd()))


def test_whole_responses_are_written_where_they_are_probed():
  stop = adwin(every=3, full=99).rollout.stop_after
  from opd_jax import ramps

  decided = {'window': 8.0}
  assert [ramps.at(stop, step, decided) for step in range(5)] == [99, 8.0, 8.0, 99, 8.0]
  assert ramps.at(stop, 1) == 99
