"""Names as wrappers, base models and tied heads leave them: read as transformers reads them, or as
the same tensors without the prefix; what is ambiguous is refused by its prefix."""

import json
import logging

import jax
import numpy as np
import pytest

import moe_jax
from moe_jax.hf.load import open_folder
from tests.moe_jax.hf import peer, tiny

EMBED, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
PREFIXES = ('module.', '_orig_mod.', 'base_model.model.', 'language_model.', 'model.',
            'module._orig_mod.', 'base_model.model.module.', 'student.')


def renamed(folder, raw, rename, shards=1, **fields):
    """A folder of tiny.tensors(raw) whose names `rename` changes (None: the tensor is left out)."""
    raw = raw | fields
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(raw))
    found = {rename(name): value for name, value in tiny.tensors(raw).items()}
    found.pop(None, None)
    tiny.write_tensors(folder, found, shards)
    return folder


def assert_equal(folder, other):
    (cfg, params), (same_cfg, same) = moe_jax.load(folder), moe_jax.load(other)
    assert cfg == same_cfg
    jax.tree.map(np.testing.assert_array_equal, params, same)


def assert_equal_in_transformers(folder, other):
    """The parity test compares our logits with those of the plain folder `other`."""
    pytest.importorskip('torch')
    (logits, _), (same, _) = peer.logits(folder), peer.logits(other)
    np.testing.assert_array_equal(logits, same)


@pytest.mark.parametrize(('family', 'variant', 'prefix'), [
    (*case, PREFIXES[i % len(PREFIXES)]) for i, case in enumerate(tiny.FIRST)])
def test_one_prefix_before_all_names_changes_nothing(
        family, variant, prefix, folder_of, tmp_path, caplog):
    raw = tiny.config(family, variant)
    wrapped = renamed(tmp_path / 'wrapped', raw, lambda name: prefix + name, shards=2)
    with caplog.at_level(logging.INFO, 'moe_jax'):
        assert_equal(wrapped, folder_of(family, variant))
    said = [line for line in caplog.messages if 'without the prefix' in line]
    assert len(said) == 1 and f'such as {prefix}' in said[0]


@pytest.mark.parametrize('prefix', PREFIXES)
def test_every_prefix_is_found_in_the_headers(prefix, tmp_path, folder_of):
    raw = tiny.config('qwen3_moe', 'wide heads')
    wrapped = open_folder(renamed(tmp_path / 'wrapped', raw, lambda name: prefix + name))
    assert wrapped.leaves == open_folder(folder_of('qwen3_moe', 'wide heads')).leaves


@pytest.mark.parametrize('rename', [
    lambda name: name.replace('layers.0.', 'layers.0._orig_mod.'),
    lambda name: name.replace('.self_attn.', '._fsdp_wrapped_module.self_attn.'),
    lambda name: name.replace('model.', 'module.model.module.', 1),
    lambda name: name.replace('model.', 'model.language_model.', 1),  # a head beside it
    lambda name: 'model.' + name if name == HEAD else name,
    lambda name: '_forward_module._orig_mod.' + name.replace(
        'layers.1.', 'layers.1._checkpoint_wrapped_module.'),
])
def test_wrappers_within_names_change_nothing(rename, tmp_path, folder_of):
    raw = tiny.config('deepseek_v3', 'groups')
    assert_equal(renamed(tmp_path / 'wrapped', raw, rename), folder_of('deepseek_v3', 'groups'))


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize(('family', 'variant'), tiny.FIRST)
def test_a_base_model_is_what_it_is_in_transformers(family, variant, tied, tmp_path):
    raw = tiny.config(family, variant) | {'tie_word_embeddings': tied}
    base = renamed(tmp_path / 'base', raw, lambda name: name.removeprefix('model.'))
    plain = renamed(tmp_path / 'plain', raw, str)
    assert_equal(base, plain)
    if family in ('mixtral', 'qwen3_moe', 'granitemoe'):
        assert_equal_in_transformers(base, plain)


@pytest.mark.parametrize(('family', 'variant'), tiny.FIRST)
def test_a_tied_head_alone_is_the_embedding(family, variant, tmp_path):
    raw = tiny.config(family, variant) | {'tie_word_embeddings': True}
    plain = renamed(tmp_path / 'plain', raw, str)
    alone = renamed(tmp_path / 'alone', raw, lambda name: HEAD if name == EMBED else name)
    assert_equal(alone, plain)
    if family in ('olmoe', 'qwen3_moe', 'granitemoe'):
        assert_equal_in_transformers(alone, plain)


def test_an_untied_base_model_without_its_head_says_what_to_do(tmp_path):
    raw = tiny.config('mixtral', 'grouped')
    folder = renamed(tmp_path / 'base', raw, lambda name: None if name == HEAD else
                     name.removeprefix('model.'))
    with pytest.raises(ValueError, match=r'missing: lm_head\.weight \(all but the head.*save it'):
        open_folder(folder)


@pytest.mark.parametrize(('rename', 'message'), [
    (lambda name: ('a.' if 'layers.0' in name else 'b.') + name,
     r"the layers stand under several prefixes, 'a\.model\.'; 'b\.model\.', and none is 'model\.'"),
    (lambda name: f'vision.{name}' if 'layers.0' in name else f'language_model.{name}',
     r"'language_model\.model\.'; 'vision\.model\.'"),
    (lambda name: 'teacher.' + name if 'norm' in name else name, r'teacher\.model\.norm\.weight'),
])
def test_several_prefixes_are_named(rename, message, tmp_path):
    folder = renamed(tmp_path / 'odd', tiny.config('mixtral', 'grouped'), rename)
    with pytest.raises(ValueError, match=message):
        open_folder(folder)


def test_a_tensor_with_and_without_its_wrapper_is_refused(tmp_path):
    folder = tiny.write(tmp_path, 'mixtral', 'grouped')
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    tiny.write_tensors(folder, found | {'module.' + EMBED: found[EMBED]})
    with pytest.raises(ValueError, match=rf'{EMBED} and module\.{EMBED} are one tensor|'
                                         rf'module\.{EMBED} and {EMBED} are one tensor'):
        open_folder(folder)


@pytest.mark.parametrize('name', ['self_attn.q_proj.lora_A.weight', 'self_attn.o_proj.lora_B.x',
                                  'self_attn.q_proj.base_layer.weight'])
def test_tensors_of_an_adapter_are_to_be_merged(name, tmp_path):
    folder = tiny.write(tmp_path, 'mixtral', 'grouped')
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    found[f'model.layers.0.{name}'] = np.ones((2, 2), 'float32')
    tiny.write_tensors(folder, {f'base_model.model.{key}': value for key, value in found.items()})
    with pytest.raises(ValueError, match=r'1 tensors of an adapter .*merge it.*merge_and_unload'):
        open_folder(folder)


def test_an_export_of_a_wrapped_model_has_plain_names(tmp_path, folder_of):
    raw = tiny.config('granitemoe', 'multipliers')
    wrapped = renamed(tmp_path / 'wrapped', raw, lambda name: 'module.' + name)
    moe_jax.export_hf(tmp_path / 'out', *moe_jax.load(wrapped), like=wrapped)
    plain = folder_of('granitemoe', 'multipliers')
    assert open_folder(tmp_path / 'out').shards.tensors.keys() == (
        open_folder(plain).shards.tensors.keys())
    assert_equal(tmp_path / 'out', plain)
