import numpy as np
import pytest

from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import ByteTokenizer


def test_prompts_end_in_one_column():
  prompts = left_padded([[1, 2, 3], [4]], width=4, pad=9, groups=[5, 5])
  assert prompts.tokens.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
  assert (prompts.length.tolist(), prompts.row.tolist(), prompts.group.tolist()) == (
    [3, 1],
    [0, 1],
    [5, 5],
  )
  assert left_padded([[1], [2]], width=1, pad=0).group.tolist() == [0, 1]
  assert prompts.tokens.dtype == np.int32


@pytest.mark.parametrize('rows, number, length', [([[1], [1] * 5], 1, 5), ([[]], 0, 0)])
def test_a_prompt_that_does_not_fit_is_named(rows, number, length):
  with pytest.raises(
    ValueError, match=f'row {number} has {length} tokens, a prompt must have 1 to 4'
  ):
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


TALK = [
  {'role': 'assistant', 'content': '4'},
  {'role': 'user', 'content': 'and 3+3?'},
  {'role': 'assistant', 'content': '6'},
]


def test_of_a_conversation_every_answer_is_taught_and_nothing_else():
  byte, first = ByteTokenizer(), [{'role': 'user', 'content': '2+2?'}]
  lesson = Template(system='Be brief.').response(byte, TALK, first)
  taught = [token for token, counts in zip(*lesson, strict=True) if counts]
  assert taught == [*byte.encode('4'), byte.turn_end, *byte.encode('6'), byte.turn_end]
  shown = Template(system='Be brief.').render(byte, first)
  whole = byte.chat([{'role': 'system', 'content': 'Be brief.'}, *first, *TALK])
  assert [*shown, *lesson.tokens] == whole[:-1]  # up to where a third answer would begin
  assert Template().response(byte, '4') == ([*byte.encode('4'), byte.turn_end], [True, True])


def test_conversations_that_cannot_be_taught_are_refused():
  first = [{'role': 'user', 'content': '2+2?'}]
  with pytest.raises(ValueError, match='never has two assistant turns in a row'):
    Template().response(ByteTokenizer(), TALK[:2], first)
  with pytest.raises(ValueError, match='rewrites earlier turns'):  # what is left out of older turns
    Template(thinking=False).response(ByteTokenizer(), TALK, first)
