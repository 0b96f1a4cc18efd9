"""Dtypes of tensors: buffers left out, float64 cast, quantized ones refused, casts that lose told.
"""

import json
import logging
import re
import sys

import jax
import numpy as np
import pytest

import moe_jax
from moe_jax.cli import convert, main
from moe_jax.data import tasks
from moe_jax.hf.load import open_folder
from moe_jax.storage import folder as storage
from tests.matrix import rows
from tests.moe_jax.hf import lexicon, peer, tiny

EXPERT = 'model.layers.1.block_sparse_moe.experts.2.w1.weight'
ROUTER = 'model.layers.1.block_sparse_moe.gate.weight'
MASK = np.ones((1, 1, 8, 8), bool)
BUFFERS = {
    'model.layers.0.self_attn.bias': MASK,
    'model.layers.1.self_attn.masked_bias': np.float32(-1e4)[None],
    'model.layers.1.self_attn.mask': MASK.astype(np.uint8),
    'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, 'float32'),
    'model.rotary_emb.inv_freq': np.ones(4, 'float32'),
    'model.embed_positions.position_ids': np.arange(8)[None],
    'position_ids': np.arange(8, dtype=np.int32),
    'model.causal_mask': MASK,
    'model.steps_seen': np.array([3]),
}
SECTIONS = [{'quant_method': 'fp8', 'weight_block_size': [128, 128]}, {'quant_method': 'mxfp4'},
            {'quant_method': 'bitsandbytes', 'load_in_4bit': True}, {}, 'awq']


@pytest.fixture
def folder(tmp_path):
    return tiny.write(tmp_path / 'model', 'mixtral', 'grouped')


def rewritten(folder, **fields):
    """Change fields of config.json and return it."""
    raw = json.loads((folder / 'config.json').read_text()) | fields
    (folder / 'config.json').write_text(json.dumps(raw))
    return raw


def assert_equal(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


@pytest.mark.parametrize(('family', 'variant'), rows(tiny.FIRST, quick=tiny.FIRST[:2]))
def test_buffers_are_left_out_with_a_line(family, variant, folder_of, loaded, tmp_path, caplog):
    raw = tiny.config(family, variant)
    (tmp_path / 'config.json').write_text(json.dumps(raw))
    tiny.write_tensors(tmp_path, tiny.tensors(raw) | BUFFERS)
    with caplog.at_level(logging.INFO, 'moe_jax'):
        _, params = moe_jax.load(tmp_path)
    assert_equal(params, loaded(family, variant)[1])
    assert any(re.search(rf'{len(BUFFERS)} tensors are buffers .* and 6 more$', line)
               for line in caplog.messages)
    moe_jax.export_hf(tmp_path / 'out', *moe_jax.load(tmp_path), like=tmp_path)
    names = open_folder(tmp_path / 'out').shards.tensors.keys()
    assert names == open_folder(folder_of(family, variant)).shards.tensors.keys()


def test_transformers_leaves_the_same_out(folder):
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('torch')
    plain = peer.logits(tiny.write(folder.parent / 'plain', 'mixtral', 'grouped'))[0]
    tiny.write_tensors(folder, tiny.tensors(tiny.config('mixtral', 'grouped')) | BUFFERS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='auto')
    import torch
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(tiny.TOKENS)).logits.numpy(), plain,
                                   rtol=0, atol=1e-5)


@pytest.mark.parametrize('dtype', [bool, np.int64])
def test_a_weight_of_whole_numbers_is_refused(folder, dtype):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    tiny.write_tensors(folder, found | {EXPERT: found[EXPERT].astype(dtype)})
    with pytest.raises(ValueError, match=f'no floating-point numbers: {EXPERT}$'):
        open_folder(folder)


@pytest.mark.parametrize('which', ['all', 'some', 'router'])
def test_float64_is_cast_to_float32_and_told(which, folder, caplog):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    names = {'all': list(found), 'some': [EXPERT], 'router': [ROUTER]}[which]
    wide = {name: found[name] + found[name] * 2.0**-40 for name in names}  # more digits
    tiny.write_tensors(folder, found | {k: v.astype('float64') for k, v in wide.items()})
    rewritten(folder, torch_dtype='float64' if which == 'all' else 'float32')
    with caplog.at_level(logging.INFO, 'moe_jax'):
        cfg, params = moe_jax.load(folder)
    assert any(f'{len(names)} tensors are float64' in line for line in caplog.messages)
    assert cfg.dtype == 'float32' and {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
    np.testing.assert_array_equal(
        params['layer_1']['moe']['experts']['gate'][2],
        (wide.get(EXPERT, found[EXPERT])).astype('float32').T)
    assert moe_jax.load(folder, dtype='bfloat16')[1]['embed']['tokens'].dtype == 'bfloat16'
    moe_jax.export_hf(folder.parent / 'out', cfg, params, like=folder)
    assert json.loads((folder.parent / 'out/config.json').read_text())['torch_dtype'] == 'float32'
    assert_equal(moe_jax.load(folder.parent / 'out')[1], params)


@pytest.mark.parametrize('section', SECTIONS)
def test_a_section_left_over_beside_plain_weights_is_told_and_ignored(section, folder, tmp_path):
    _, plain = moe_jax.load(folder)
    rewritten(folder, quantization_config=section)
    with pytest.warns(UserWarning, match=r'no tensor is quantized.*Delete it'):
        cfg, params = moe_jax.load(folder)
    assert_equal(params, plain)
    moe_jax.save(tmp_path / 'native', cfg, params, like=folder)
    for like in (folder, tmp_path / 'native'):
        moe_jax.export_hf(tmp_path / 'out', cfg, params, like=like, overwrite=True)
        assert 'quantization_config' not in json.loads((tmp_path / 'out/config.json').read_text())


@pytest.mark.parametrize('section', [None, *SECTIONS[:1]])
@pytest.mark.parametrize('extra', [
    {EXPERT: np.ones((20, 24), np.uint8)}, {EXPERT: np.ones((20, 24), np.int8)},
    {EXPERT.replace('weight', 'qweight'): np.ones((3, 24), np.int32)}])
def test_what_is_quantized_is_refused_once_with_the_remedy(extra, section, folder):
    found = tiny.tensors(tiny.config('mixtral', 'grouped')) | extra
    tiny.write_tensors(folder, found)
    rewritten(folder, quantization_config=section)
    openers = [open_folder, moe_jax.load] + [storage.config_of] * (section is not None)
    for opener in openers:
        with pytest.raises(ValueError, match=r'1 of \d+ tensors are quantized.*dequantize') as told:
            opener(folder)
        assert str(told.value).count('dequantize') == 2  # the remedy, and its option


def test_many_quantized_tensors_are_one_sentence(folder):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    tiny.write_tensors(folder, {name: value.astype(np.int8) if 'experts' in name else value
                                for name, value in found.items()})
    with pytest.raises(ValueError, match=r'24 of \d+ tensors are quantized') as told:
        open_folder(folder)
    assert str(told.value).count(' is I8') == 3 and 'and 21 more' in str(told.value)


def test_scales_beside_plain_weights_are_taken_for_quantization(folder):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    tiny.write_tensors(folder, found | {EXPERT + '_scale_inv': np.ones((1, 1), 'float32')})
    with pytest.raises(ValueError, match=r'not known for mixtral: .*_scale_inv; scales of quantiz'):
        open_folder(folder)


@pytest.fixture(params=['mixtral/grouped', 'granitemoe/multipliers', 'gpt_oss/alternating',
                        'qwen3_moe/wide heads'])
def extreme(request, tmp_path):
    """extreme(value): a checkpoint with that value in one tensor of the experts, and its name."""
    def write(value):
        family, variant = request.param.split('/')
        raw = tiny.config(family, variant)
        found = tiny.tensors(raw)
        name = sorted(name for name in found if re.search(
            r'experts|input_linear', name) and 'bias' not in name)[-1]
        found[name].flat[-1] = value
        target = tmp_path / f'{value:g}'
        target.mkdir()
        (target / 'config.json').write_text(json.dumps(raw))
        tiny.write_tensors(target, found)
        return target, name
    return write


@pytest.mark.parametrize(('value', 'dtype'), [
    (1e5, 'float16'), (-65520.0, 'float16'), (3.4e38, 'bfloat16')])
def test_no_cast_makes_an_infinity(value, dtype, extreme, tmp_path):
    folder, name = extreme(value)
    with pytest.raises(ValueError, match=rf'{re.escape(name)} has 1 finite values beyond {dtype}.*'
                                         r'Cast to (bfloat16 or )?float32 instead'):
        moe_jax.load(folder, dtype=dtype)
    for to in ('hf', 'native'):
        with pytest.raises(ValueError, match=f'beyond {dtype}'):
            convert.convert(folder, tmp_path / to, to=to, dtype=dtype)
        assert not (tmp_path / to).exists()
    cfg, params = moe_jax.load(folder)
    moe_jax.save(tmp_path / 'model', cfg, params)
    with pytest.raises(ValueError, match=rf'layer_1/moe/experts/\w+ has 1 finite .* {dtype}'):
        moe_jax.load(tmp_path / 'model', dtype=dtype)


def test_the_largest_number_that_fits_is_cast(extreme):
    folder, _ = extreme(65519.0)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(
        moe_jax.load(folder, dtype='float16')[1])) == 65504


def test_numbers_that_become_zero_are_told(extreme, tmp_path, caplog):
    folder, name = extreme(2.0**-26)
    with caplog.at_level(logging.INFO, 'moe_jax'):
        cast = moe_jax.load(folder, dtype='float16')
        moe_jax.save(tmp_path / 'model', *moe_jax.load(folder))
        _, native = moe_jax.load(tmp_path / 'model', dtype='float16')
    said = [line for line in caplog.messages if 'became zero' in line]
    assert f'1 values of 1 tensors are too small for float16 and became zero: {name}' in said[0]
    assert re.search(r'1 values of 1 tensors .* zero: layer_1/moe/experts/\w+$', said[1])
    assert_equal(native, cast[1])


def test_a_source_with_infinities_is_told_as_before_and_not_blamed_on_the_cast(folder):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    found[EXPERT][0, 0] = np.inf
    tiny.write_tensors(folder, found)
    with pytest.warns(UserWarning, match=f'1 tensors have NaN or infinite values: {EXPERT}'):
        moe_jax.load(folder, dtype='float16')


def test_weights_beyond_the_dtype_of_computation_are_told(folder, tmp_path):
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    for name in (EXPERT, ROUTER):  # a router is computed in float32
        found[name][0, 0] = 1e5
    tiny.write_tensors(folder, found)
    cfg, params = moe_jax.load(folder)
    moe_jax.save(tmp_path / 'native', cfg.replace(dtype='float16'), params)
    rewritten(folder, torch_dtype='float16')
    for model in (folder, tmp_path / 'native'):
        with pytest.warns(UserWarning, match=r': layer_1/moe/experts/gate have finite values '
                                             'beyond float16, which the config computes in'):
            moe_jax.load(model)


@pytest.mark.parametrize('command', ['eval', 'observe'])
def test_a_model_that_does_not_load_is_told_before_text_is_read(
        command, folder, tmp_path, monkeypatch, capsys):
    lexicon.write_tokenizer(folder)
    found = tiny.tensors(tiny.config('mixtral', 'grouped'))
    tiny.write_tensors(folder, found | {EXPERT: np.ones((20, 24), np.int8)})
    monkeypatch.setattr(tasks, 'load', lambda *_, **__: pytest.fail('too late: text is read'))
    out = ['--out', str(tmp_path / 'out')] * (command == 'observe')
    monkeypatch.setattr(sys, 'argv', ['moe-jax', command, str(folder), '--tasks', 'lm-code', *out])
    with pytest.raises(SystemExit):
        main()
    assert '1 of 41 tensors are quantized' in capsys.readouterr().err
