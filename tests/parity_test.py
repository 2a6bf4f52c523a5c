"""Our models against `transformers`: live where torch is installed, from golden files everywhere."""

import importlib.util

import numpy as np
import parity_cases
import pytest

HAS_TORCH = importlib.util.find_spec('torch') is not None
live = pytest.mark.skipif(
  not HAS_TORCH, reason="torch is not installed: pip install -e '.[parity]' runs this live"
)
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')


@pytest.mark.parametrize('case', parity_cases.CASES, ids=str)
def test_logits_equal_the_golden_ones(case, single):
  raw, golden = parity_cases.read_golden(case)
  ours = parity_cases.our_logits(raw, single, case.length)[:, -4:]
  assert np.abs(ours - golden).max() <= parity_cases.TOLERANCE * np.abs(golden).max()


@live
@pytest.mark.parametrize('case', parity_cases.CASES, ids=str)
def test_logits_equal_those_of_transformers(case, single):
  theirs = parity_cases.torch_logits(case)
  assert np.abs(theirs).max() > 1.0
  assert (
    parity_cases.gap(
      parity_cases.our_logits(parity_cases.read_golden(case)[0], single, case.length), theirs
    )
    <= parity_cases.TOLERANCE
  )


@live
@pytest.mark.parametrize('case', parity_cases.CASES[:24:3], ids=str)
def test_a_model_of_transformers_and_ours_cross_over_both_ways(case, single, tmp_path):
  """Saved by transformers and imported: equal logits. Exported and loaded there: equal bytes, tensor by tensor."""
  import torch
  import transformers

  from opd_jax.storage import huggingface, parameter_names

  theirs = parity_cases.torch_model(case)
  theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='30KB')
  config, params = huggingface.load(tmp_path / 'theirs', single)
  expected = parity_cases.our_params(config, single)
  for path, leaf in parameter_names.flat(params).items():
    np.testing.assert_array_equal(leaf, parameter_names.flat(expected)[path])
  huggingface.save(tmp_path / 'ours', config, single, params, max_file_bytes=30_000)
  back = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'ours', attn_implementation='eager'
  )
  assert type(back) is type(theirs)
  mine, other = theirs.state_dict(), back.state_dict()
  assert mine.keys() == other.keys()
  assert all(torch.equal(mine[name], other[name]) for name in mine)
  tokens = torch.from_numpy(parity_cases.tokens(case.length).astype(np.int64))
  with torch.no_grad():
    assert torch.equal(theirs(tokens).logits, back(tokens).logits)
