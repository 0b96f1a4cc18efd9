"""A word tokenizer for tiny checkpoints, and harness tasks made of its words."""

import json

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ['<end>', '<unk>', *(f'w{i}' for i in range(62))]


NO_SYSTEM = (
    '{% for message in messages %}{% if message.role == "system" %}'
    '{{ raise_exception("no system role here") }}{% endif %}w60 {{ message.content }} {% endfor %}'
    '{% if add_generation_prompt %}w61 {% endif %}')


def write_tokenizer(folder, opening=None, ends=(0,), template=None):
    """tokenizer.json, tokenizer_config.json and generation_config.json of 64 words.

    opening: the word that the tokenizer puts before a text. ends: ids at which generation ends.
    template: for chats.
    """
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    words.add_special_tokens(['<end>', *(WORDS[i] for i in ends if i)])
    if opening is not None:
        words.post_processor = processors.TemplateProcessing(
            single=f'{opening} $A', special_tokens=[(opening, WORDS.index(opening))])
    words.save(str(folder / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<end>',
              'unk_token': '<unk>', 'pad_token': '<end>', 'model_max_length': 48,
              'bos_token': opening, 'chat_template': template}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': list(ends)}))


def write_tasks(folder, rng):
    """A multiple-choice, a perplexity and a generation task over random words, offline."""
    def text(low, high):
        return ' '.join(WORDS[i] for i in rng.integers(2, 64, rng.integers(low, high)))

    rows = {
        'choice': [{'q': text(3, 70), 'options': [text(1, 4) for _ in range(3)],
                    'label': int(rng.integers(3))} for _ in range(12)],
        'rolling': [{'text': text(2, 130)} for _ in range(5)],
        'until': [{'q': text(2, 60), 'answer': 'w3'} for _ in range(6)],
    }
    own = {
        'choice': {'output_type': 'multiple_choice', 'doc_to_text': '{{q}}',
                   'doc_to_choice': 'options', 'doc_to_target': 'label',
                   'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}]},
        'rolling': {'output_type': 'loglikelihood_rolling', 'doc_to_text': '',
                    'doc_to_target': '{{text}}', 'metric_list': [{'metric': 'word_perplexity'}]},
        'until': {'output_type': 'generate_until', 'doc_to_text': '{{q}}',
                  'doc_to_target': 'answer', 'metric_list': [{'metric': 'exact_match'}],
                  'generation_kwargs': {'until': ['w9'], 'max_new_tokens': 8}},
    }
    for name, docs in rows.items():
        (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, docs)))
        task = {'task': name, 'dataset_path': 'json', 'test_split': 'test', 'num_fewshot': 0,
                'dataset_kwargs': {'data_files': {'test': str(folder / f'{name}.jsonl')}},
                'metadata': {'version': 1}, **own[name]}
        (folder / f'{name}.yaml').write_text(yaml.safe_dump(task))
