import numpy as np
import pytest

from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import ByteTokenizer


def test_prompts_end_in_one_column():
  prompts = left_padded([[1, 2, 3], [4]], width=4, pad=9, groups=[5, 5])
  assert prompts.tokens.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
  assert (prompts.length.tolist(), prompts.row.tolist(), prompts.group.tolist()) == ([3, 1], [0, 1], [5, 5])
  assert left_padded([[1], [2]], width=1, pad=0).group.tolist() == [0, 1]
  assert prompts.tokens.dtype == np.int32


@pytest.mark.parametrize('rows, number, length', [([[1], [1] * 5], 1, 5), ([[]], 0, 0)])
def test_a_prompt_that_does_not_fit_is_named(rows, number, length):
  with pytest.raises(ValueError, match=f'row {number} has {length} tokens, a prompt must have 1 to 4'):
    left_padded(rows, width=4, pad=0)


def test_roles_may_see_one_question_in_their_own_words():
  byte = ByteTokenizer()
  special = byte.specials()
  student = Template(thinking=False, suffix=' Be brief.').render(byte, 'Why?')
  teacher = Template(system='Hint: 4.').render(byte, [{'role': 'user', 'content': 'Why?'}])
  assert byte.decode(student) == 'Why? Be brief.' and student[-1] == special['</think>']
  assert byte.decode(teacher) == 'Hint: 4.Why?' and teacher[1] == special['<system>']
  plain = Template(chat=False, suffix=':')
  assert plain.render(byte, 'Why') == [special['<begin>'], *b'Why:']
  assert plain.render(byte, [{'role': 'user', 'content': 'Why'}]) == plain.render(byte, 'Why')


def test_templates_that_cannot_be_meant_are_refused():
  with pytest.raises(ValueError, match='belong to chats'):
    Template(chat=False, thinking=True)
  with pytest.raises(ValueError, match='chat=True'):
    Template(chat=False).render(ByteTokenizer(), 2 * [{'role': 'user', 'content': 'x'}])
  with pytest.raises(ValueError, match='without a message'):
    Template().render(ByteTokenizer(), [])
