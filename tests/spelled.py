"""A published tokenizer that can write every text, character by character."""

import tokenizers
import transformers

CONTROLS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
CHAT = (
  '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def spelled(folder, template=CHAT):
  """Its folder."""
  words = [*CONTROLS, *map(chr, range(32, 127)), '\n']
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [], unk_token=words[0])
  )
  ends = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **ends)
  fast.add_special_tokens({'additional_special_tokens': CONTROLS})
  fast.chat_template = template
  fast.save_pretrained(folder)
  return folder
