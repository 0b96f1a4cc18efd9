"""Damaged weight files: refused by name before anything is read; odd values are told."""

import json
import random
import struct
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import moe_jax
from moe_jax.hf.load import open_folder
from moe_jax.hf.shards import Shards
from tests.moe_jax.hf import tiny

FILE = 'model.safetensors'
TWO = [{'dtype': 'F32', 'shape': [2], 'data_offsets': [start, start + 8]} for start in (0, 8)]
TEXT = json.dumps({'a': TWO[0], 'b': TWO[1]})
REPEATED = TEXT.replace('"b"', '"a"').replace('[8, 16]', '[0, 8]')  # each of the two would do


@pytest.fixture
def folder(tmp_path):
    return tiny.write(tmp_path / 'model', 'mixtral', 'grouped')


def file(header, data=16):
    """A safetensors file: its header, text or to be made JSON, and so many bytes of zeros."""
    if not isinstance(header, bytes | str):
        header = json.dumps(header)
    header = header.encode() if isinstance(header, str) else header
    return struct.pack('<Q', len(header)) + header + bytes(data)


def tensor(offsets, shape=(2,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': offsets}


def changed(folder, **tensors):
    """Rewrite a folder's tensors, some of them changed; dots stand as two underscores."""
    found = tiny.tensors(json.loads((folder / 'config.json').read_text()))
    save_file(found | {name.replace('__', '.'): value for name, value in tensors.items()},
              folder / FILE)
    return found


@pytest.mark.parametrize('keep', [lambda n: n - 1, lambda n: n - 100, lambda n: n // 2])
def test_a_cut_file_is_told_with_the_size_its_header_says(folder, keep):
    data = (folder / FILE).read_bytes()
    kept = keep(len(data))
    (folder / FILE).write_bytes(data[:kept])
    with pytest.raises(ValueError, match=rf'model\.safetensors is damaged \({kept:,} bytes, its '
                                         rf'header says {len(data):,}\).*copy it again'):
        moe_jax.load(folder)


@pytest.mark.parametrize('data', [
    b'', b'\0' * 8, b'\xff' * 64, struct.pack('<Q', 2**62) + b'{}', struct.pack('<Q', 50) + b'{}',
    b'<!DOCTYPE html><html><body>404: Not Found</body></html>',
    file('{'), file('[]'), file('null'), file('[' * 100_000), file('{"a":' * 100_000),
    file(b'{"\xff": 1}'), file(TEXT + 'x'), file(TEXT, data=17), file(TEXT, data=0),
], ids=repr)
def test_what_is_no_safetensors_file_is_refused_by_name(folder, data):
    (folder / FILE).write_bytes(data)
    with pytest.raises(ValueError, match=rf'model\.safetensors is damaged \({len(data):,} bytes'):
        moe_jax.load(folder)


@pytest.mark.parametrize('header', [
    {'a': tensor([0, 8]), 'b': tensor([4, 12])}, {'a': tensor([0, 8]), 'b': tensor([12, 20])},
    {'a': tensor([-8, 0])}, {'a': tensor([8, 0])}, {'a': tensor([0, 8], [-2])},
    {'a': tensor([0, 8], [3])}, {'a': tensor([0, 8], [2**62, 2**62])}, {'a': tensor([0, 2**62])},
    {'a': tensor([2**64 - 4, 2**64 + 4])}, {'a': tensor([0, 1e300])}, {'a': tensor([0, '8'])},
    {'a': tensor([0])}, {'a': tensor(None)}, {'a': tensor([0, 8], dtype='F33')}, {'a': {}},
    {'a': 8}, {'__metadata__': {'format': 8}},
    TEXT.replace('8, 16', '8, 1' + '0' * 5000), TEXT.replace('"b"', '"a"'),
], ids=lambda header: str(header)[:60])
def test_headers_that_lie_are_refused_by_name(folder, header):
    (folder / FILE).write_bytes(file(header))
    with pytest.raises(ValueError, match=r'model\.safetensors is damaged'):
        open_folder(folder)


def test_a_repeated_tensor_is_named(folder):
    (folder / FILE).write_bytes(file(REPEATED, data=8))
    with pytest.raises(ValueError, match='its header has a more than once'):
        open_folder(folder)


def test_a_terabyte_that_is_only_announced_is_not_allocated(folder):
    header = {'a': tensor([0, 2**40], [2**20, 2**18])}
    (folder / FILE).write_bytes(file(header))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r'its header says 1,099,511,62\d,\d+'):
        moe_jax.load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'F8_E5M2', 'U8', 'I8', 'I32'])
def test_quantised_tensors_are_refused_by_name_with_the_remedy(folder, dtype):
    size = 4 if dtype == 'I32' else 1
    (folder / FILE).write_bytes(file({'blocks': tensor([0, 2 * size], dtype=dtype)}, 2 * size))
    with pytest.raises(ValueError, match=rf'blocks in {FILE} is {dtype}; dequantize them first'):
        open_folder(folder)


def test_values_that_are_not_finite_are_told_with_exactly_their_tensors(folder):
    odd = {f'model.layers.{name}.weight': value for name, value in [
        ('1.block_sparse_moe.experts.2.w3', np.nan), ('0.block_sparse_moe.gate', -np.inf),
        ('1.input_layernorm', np.inf)]}
    raw = tiny.tensors(tiny.config('mixtral', 'grouped'))
    for name, value in odd.items():
        raw[name].flat[-1] = value
    changed(folder, **raw)
    with pytest.warns(UserWarning) as told:
        _, params = moe_jax.load(folder)
    message, = (str(warning.message) for warning in told)
    assert message.startswith(f'{folder}: 3 tensors have NaN or infinite values: ')
    names = message.split('values: ')[1].split('; what')[0]
    assert set(names.split('; ')) == set(odd)
    ups = params['layer_1']['moe']['experts']['up']
    assert np.isfinite(ups).all(axis=(1, 2)).tolist() == [True, True, False, True]


def test_half_of_a_fused_tensor_is_told_by_the_tensors_name(tmp_path, recwarn):
    folder = tiny.write(tmp_path, 'granitemoe', 'multipliers')
    moe_jax.load(folder)
    assert not recwarn.list
    name = 'model.layers.0.block_sparse_moe.input_linear.weight'
    raw = tiny.tensors(tiny.config('granitemoe', 'multipliers'))
    raw[name][3, -1, 0] = np.nan
    changed(folder, **raw)
    with pytest.warns(UserWarning, match=rf': 1 tensors have NaN or infinite values: {name}; what'):
        moe_jax.load(folder)


def test_one_wider_expert_widens_its_stack_and_nothing_else(tmp_path):
    folder = tiny.write(tmp_path, 'mixtral', 'grouped', dtype='bfloat16')
    raw = tiny.tensors(tiny.config('mixtral', 'grouped'), dtype='bfloat16')
    name = 'model.layers.0.block_sparse_moe.experts.1.w2.weight'
    exact = tiny.tensors(tiny.config('mixtral', 'grouped'))[name]
    changed(folder, **raw | {name: exact})
    cfg, params = moe_jax.load(folder)
    stack = params['layer_0']['moe']['experts']['down']
    assert cfg.dtype == 'bfloat16' and stack.dtype == 'float32'
    np.testing.assert_array_equal(stack[1], exact.T)
    np.testing.assert_array_equal(stack[2], raw[name.replace('1.w2', '2.w2')].T.astype('float32'))
    widths = [leaf.dtype.name for leaf in jax.tree.leaves(params)]
    assert widths.count('float32') == 1 and set(widths) == {'float32', 'bfloat16'}


def test_half_precision_loads_bit_for_bit(tmp_path):
    cfg, params = moe_jax.load(tiny.write(tmp_path, 'mixtral', 'grouped', dtype='float16'))
    raw = tiny.tensors(tiny.config('mixtral', 'grouped'), dtype='float16')
    assert cfg.dtype == 'float16' and params['embed']['tokens'].dtype == 'float16'
    np.testing.assert_array_equal(params['embed']['tokens'], raw['model.embed_tokens.weight'])


def test_a_tied_head_on_disk_must_be_the_embedding(tmp_path):
    folder = tiny.write(tmp_path, 'mixtral', 'tied')
    cfg, params = moe_jax.load(folder)
    table = np.asarray(params['embed']['tokens'])
    changed(folder, lm_head__weight=table)
    same_cfg, same = moe_jax.load(folder)
    assert cfg == same_cfg and jax.tree.structure(params) == jax.tree.structure(same)
    other = table.copy()
    other[-1, -1] += 1
    changed(folder, lm_head__weight=other)
    with pytest.raises(ValueError, match=r'lm_head\.weight differs from model\.embed_tokens\.weight'
                                         '.*tie_word_embeddings'):
        moe_jax.load(folder)


@pytest.mark.parametrize('shape', [(), (10, 24), (70, 24), (64,)])
def test_a_tied_head_of_another_shape_is_refused(tmp_path, shape):
    folder = tiny.write(tmp_path, 'mixtral', 'tied')
    changed(folder, lm_head__weight=np.zeros(shape, 'float32'))
    with pytest.raises(ValueError, match=r'lm_head\.weight is \[.*\], config\.json says \[64, 24'):
        moe_jax.load(folder)


def mutated(rng):
    """A file of a few tensors, mostly consistent, then up to two small changes anywhere."""
    header, end = {}, 0
    for i in range(rng.randrange(4)):
        dtype, shape = rng.choice(['F32', 'F16', 'BF16', 'U8']), rng.choices(range(4), k=i)
        size = int(np.prod(shape)) * {'F32': 4, 'U8': 1}.get(dtype, 2)
        header[rng.choice('abcé')] = tensor([end, end + size], shape, dtype)
        end += size
    body = bytearray(file(header, end + (rng.random() < 0.1)))
    for _ in range(rng.choice((0, 0, 1, 2))):
        at, width = rng.randrange(len(body) + 1), rng.choice((0, 1, 1, 8))
        body[at:at + width] = rng.choice([
            b'', rng.randbytes(1), rng.randbytes(8), b'0', b'-1', b'9' * 20, b'null', b'{', b'"',
            b'F8_E4M3', b'[]', b'1e9', b'\\ud800', b'\\u0000', b',', b'"a"', body[at:at + 30]])
        if rng.random() < 0.7:
            body[:8] = struct.pack('<Q', max(len(body) - 8 - end, 0))
    return bytes(body[:rng.randrange(len(body) + 1)] if rng.random() < 0.1 else body)


def test_a_thousand_random_files_load_or_are_refused(tmp_path):
    rng, loaded, messages = random.Random(0), 0, set()
    for _ in range(1000):
        (tmp_path / FILE).write_bytes(mutated(rng))
        try:
            shards = Shards(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error) and FILE in str(error)
            messages.add(str(error).split('header: ')[-1].split(' at line')[0])
            continue
        loaded += 1
        for name, known in shards.tensors.items():
            found = shards.read(name)
            assert (found.shape, found.dtype.name) == (known.shape, known.dtype)
    assert 200 < loaded < 800 and len(messages) > 30
