"""OPD against its formula."""

import numpy as np
import pytest
from evidence_worlds import ours, paper, reinforce, same

from opd_jax.methods.opd import opd
from opd_jax.ramps import Ramp


@pytest.mark.parametrize('coefficient', [1.0, 2.0])
def test_it_is_the_published_formula(coefficient):
  want = paper(lambda of: reinforce(of, coefficient * (of.q - of.p)))
  same(ours(opd(coefficient=coefficient)), want)


def test_a_coefficient_that_moves_is_where_its_ramp_stands():
  """Evidence of these tests is that of step 0."""
  moving = ours(opd(coefficient=Ramp(begin=0.5, end=1.0, steps=4)))
  np.testing.assert_allclose(moving[1], 0.5 * ours(opd())[1], atol=1e-15)
