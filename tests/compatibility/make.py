"""Write the files of written_by_0_1: a tiny example of everything that the library saves.

Run once, with the code of version 0.1 at commit 49c8e1f; a later version is to read these files,
not to write them again:

    git worktree add OLD 49c8e1f
    PYTHONPATH=OLD JAX_PLATFORMS=cpu python make.py OUT

OUT is a new folder, to be put in the place of written_by_0_1 beside this file, whose part `asked`
(texts and config files) is copied. Orbax writes the absolute path of each folder it saves into the
commit_success.txt there, which our manifests cover: choose a path that may be public, such as
/srv/written_by_0_1. What the files should hold is written to expected.json and expected.npz.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import opened
from safetensors.numpy import save_file

import moe_jax
import prune
import train
from moe_jax import cli
from moe_jax.config import Config, Latent, Rope, Skip
from moe_jax.data import tokenizer
from moe_jax.families import FAMILIES
from moe_jax.hf import layout
from moe_jax.presets import PRESETS
from prune import plan_file
from train import store

HERE = Path(__file__).parent
ASKED = HERE / 'written_by_0_1/asked'
STOPPED = 5  # the step after which runs are stopped
SMALL = Config(
    vocab=64, positions=12, width=8, heads=2, mlp_hidden=8, expert_hidden=8, experts=(4,), topk=2,
    gate='softmax_topk_renorm', norm='rms', ffn='swiglu', ffn_bias=False, qkv_bias=False,
    out_bias=False, capacity_train=None, capacity_eval=None, rope=Rope(dim=4))
CONFIGS = {
    'plain': Config(vocab=64, positions=12, width=8, heads=2, mlp_hidden=8, expert_hidden=8,
                    experts=(4, 0)),
    'base': SMALL.replace(experts=(4, 4)),
    'skip': SMALL.replace(expert_hidden=4, kv_heads=1, windows=(3,), sinks=True, qk_norm='head',
                          router_bias=True),
    'latent_groups': SMALL.replace(
        gate='sigmoid_topk_renorm', gate_scale=1.5, groups=2, groups_used=1, correction=True,
        shared_hidden=6, shared_gate=True, tied=False,
        rope=Rope(dim=2, interleaved=True, kind='yarn', factor=4.0, trained=6),
        latent=Latent(kv=4, query=6, plain=4, rotary=2, value=3)),
}
# A Hugging Face checkpoint, with a vocabulary that has room for a tokenizer of bytes.
RAW = {
    'model_type': 'mixtral', 'architectures': ['MixtralForCausalLM'], 'vocab_size': 280,
    'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2,
    'num_key_value_heads': 1, 'max_position_embeddings': 24, 'num_local_experts': 4,
    'num_experts_per_tok': 2, 'rms_norm_eps': 1e-5, 'tie_word_embeddings': True,
    'torch_dtype': 'float32', 'rope_theta': 500.0,
}


def models(out: Path) -> dict[str, Any]:
    """Models as they are made, with a rule for skipping, and made smaller by plans."""
    for seed, (name, cfg) in enumerate(CONFIGS.items()):
        params = drawn(cfg, seed)
        if name == 'skip':
            rule = moe_jax.calibrated_skip(cfg, observed('groups', cfg, params), protect=0.1)
            cfg = cfg.replace(skip=rule)
        moe_jax.save(out / 'models' / name, cfg, params, {'seed': seed})
    (out / 'statistics').mkdir()
    for name, model in (('plain', 'base'), ('groups', 'skip')):
        cfg, params = moe_jax.load(out / 'models' / model)
        observed(name, cfg, params).save(out / 'statistics' / f'{name}.npz')
    for name, recipe in (('aliases', 'merge'), ('constants', 'constants')):
        plan, params, cfg = planned(out, recipe)
        small, small_cfg = prune.apply(params, cfg, plan)
        if name == 'constants':  # stored in half the bytes, and still computed with in float32
            small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small)
        moe_jax.save(out / 'models' / name, small_cfg, small, {'method': plan.method})
    return {f'models/{name}': opened.model(out / 'models' / name) for name in opened.MODELS}


def statistics(out: Path) -> dict[str, Any]:
    """The default statistics, and those of two groups with all that can be asked for."""
    return {f'statistics/{name}': opened.statistics(out / 'statistics' / f'{name}.npz')
            for name in opened.STATISTICS}


def plans(out: Path) -> dict[str, Any]:
    """A plan of every form; one as the format before wrote it, which had no masks yet."""
    for name in opened.PLANS:
        planned(out, name)[0].save(out / 'plans' / f'{name}.npz')
    with mock.patch.object(plan_file, 'FORMAT', plan_file.BEFORE):
        planned(out, 'drop')[0].save(out / 'plans/drop_format_2.npz')
    foreign_files(out)
    return {f'plans/{name}': opened.plan(out, name) for name in opened.PLANS} | {
        f'planned/{name}': opened.planned(out, name) for name in opened.PLANS} | {
        'foreign': opened.foreign(out)}


def teacher(out: Path) -> dict[str, Any]:
    """What a teacher says of packed rows."""
    cfg, params = moe_jax.load(out / 'models/base')
    packed = {name: array[:8] for name, array in opened.rows().items()}
    np.savez_compressed(out / 'teacher.npz', **train.teach(cfg, params, packed, **opened.TEACH))
    return {'teacher': opened.taught(out)}


def runs(out: Path) -> dict[str, Any]:
    """Runs that were stopped on the way, and how they end where nobody stops them."""
    expected = {}
    for name in opened.RUNS:
        with tempfile.TemporaryDirectory() as folder:
            expected[f'runs/{name}'] = opened.run(out, name, Path(folder) / 'run')[1]
        with stopping(), contextlib.suppress(train.Interrupted):
            opened.run(out, name, out / 'runs' / name)
        if name != 'tsep':  # its starting weights are not at hand
            expected[f'states/{name}'] = opened.last_state(out, name)
    return expected


def transformers(out: Path) -> dict[str, Any]:
    """A Hugging Face checkpoint, made smaller into a native one, exported, and its curve."""
    hf_source(out / 'hf/source')
    command('prune', 'hf/source', '--method', 'expert_norm', '--experts', 3, '--out', 'hf/native')
    command('convert', 'hf/native', 'hf/export', '--to', 'hf')
    command('curve', 'hf/native', '--tasks', 'lm-harbour', '--methods', 'expert_norm',
            'router_norm', '--experts', 2, '--data', 'asked/texts', '--out', 'curve')
    (out / 'curve/curve.png').unlink(missing_ok=True)
    (out / 'curve/.lock').unlink()
    return {'hf': opened.model(out / 'hf/native')}


def distilled(out: Path) -> dict[str, Any]:
    """A run of `moe-jax train` towards a teacher, stopped, and how it ends where it is not."""
    arguments = 'train', 'asked/distill.py', '--data', 'asked/texts', '--out'
    with tempfile.TemporaryDirectory() as folder:
        command(*arguments, Path(folder) / 'run')
        expected = opened.trained_by_command(Path(folder) / 'run')
    with stopping():
        command(*arguments, 'runs/distill', code=75)
    return {'runs/distill': expected}


def studies(out: Path) -> dict[str, Any]:
    """Both kinds of study, finished; of their folders only what a report is made of, and tables."""
    expected = {}
    for name in ('expert_count', 'recovery'):
        folder = out / 'studies' / name
        command('study', f'asked/{name}.py', '--data', 'asked/texts', '--out', f'studies/{name}')
        for part in ('cells', 'models', 'figures'):
            shutil.rmtree(folder / part)
        for part in ('report.html', 'report.md', '.lock'):
            (folder / part).unlink()
        records = [json.loads(line) for line in (folder / 'records.jsonl').open()]
        expected[f'studies/{name}'] = {
            'cells': [[r['kind'], r['id']] for r in records if r['kind'] != 'study']}
    return expected


def configs(out: Path) -> dict[str, Any]:
    """Texts of the configs of presets, families and everything a config can say."""
    found = {f'preset {name}': make() for name, make in PRESETS.items()}
    sys.path.insert(0, str(Path(moe_jax.__file__).parents[1] / 'tests/hf'))
    import tiny

    found |= {f'{family} {variant}': FAMILIES[family].config(tiny.config(family, variant))
              for family, (variant, *_) in tiny.VARIANTS.items()}
    base = CONFIGS['base']
    found |= {
        'aliases and constants': base.replace(
            experts=(3, 6), aliases=((0, 1, 2, 2, -1, 3), None), constants=(1, 0), clamp=True),
        'top_p': base.replace(skip=Skip(kind='top_p', thresholds=((0.4,), (0.6,)), protect=0.02)),
    }
    texts = {name: cfg.to_json() for name, cfg in found.items()}
    (out / 'configs.json').write_text(json.dumps(texts, indent=0))
    return {'configs': {name: cfg.digest() for name, cfg in found.items()}}


# What the above are made with.


def drawn(cfg: Config, seed: int) -> Any:
    """Random weights, of norms and biases too, so that one that is forgotten shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        moe_jax.init(cfg, jax.random.key(0)))


def observed(name: str, cfg: Config, params: Any) -> moe_jax.Stats:
    """Statistics of fixed tokens."""
    tokens = np.random.default_rng(9).integers(0, 64, (8, 12)).astype(np.int32)
    if name == 'plain':
        return moe_jax.observe(cfg, params, [{'tokens': tokens, 'mask': tokens >= 0}])
    batches = [{'tokens': tokens[:4], 'mask': tokens[:4] > 2, 'group': 'a'},
               {'tokens': tokens[4:], 'mask': tokens[4:] > 2, 'group': 'b'}]
    return moe_jax.observe(cfg, params, batches, reservoir=6, outputs='all', dense=True, grams=True,
                           gradients=True, tokenizer='0123456789abcdef')


def planned(out: Path, name: str) -> tuple[prune.Plan, Any, Config]:
    """A plan of `opened.PLANS`, and the model it is for."""
    recipe = opened.PLANS[name]
    cfg, params = moe_jax.load(out / 'models' / recipe.model)
    stats = moe_jax.Stats.load(out / 'statistics' / f'{recipe.statistics}.npz')
    return recipe.make(stats, params, cfg), params, cfg


def foreign_files(out: Path) -> None:
    """A tree in another's layout, and a plan for it."""
    rng = np.random.default_rng(3)
    arrays = {'router': (8, 4), 'up': (8, 6, 4)} | {f'down/{e}': (8, 6) for e in range(4)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    np.savez(out / 'foreign.npz', **arrays)
    params = opened.foreign_params(out)
    stats = opened.FOREIGN.observe(
        params, [{'block/moe': rng.normal(size=(3, 9, 8)).astype(np.float32), 'group': 'theirs'}])
    cfg, view = opened.FOREIGN.view(params)
    prune.plan('reap', stats, view, cfg, experts=2).save(out / 'plans/foreign.npz')


def hf_source(folder: Path) -> None:
    """A Hugging Face checkpoint with random weights and a tokenizer."""
    rng, family = np.random.default_rng(4), FAMILIES[RAW['model_type']]
    folder.mkdir(parents=True)
    tensors = {name: ('norm' in name) + rng.normal(0, 0.4, leaf.slot.disk_shape(leaf.shape))
               for leaf in layout.leaves(family.config(RAW), family) for name in leaf.names}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(RAW))
    texts = sorted((ASKED / 'texts').glob('*/*.txt'))
    tokenizer.train([path.read_text() for path in texts], 280, folder / 'tokenizer.json')


def command(*arguments: Any, code: int = 0) -> None:
    """`moe-jax` in this process, in the working directory."""
    with mock.patch.object(sys, 'argv', ['moe-jax', *map(str, arguments)]):
        try:
            cli.main()
            found = 0
        except SystemExit as end:
            found = end.code or 0
    if found != code:
        raise RuntimeError(f'moe-jax {" ".join(map(str, arguments))}: exit code {found}')


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM when the last step but one before STOPPED is logged: a run then saves and stops."""
    append = store.append

    def stop(folder: store.Store, line: dict[str, Any]) -> None:
        append(folder, line)
        if line['step'] == STOPPED - 1:
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(store, 'append', stop):
        yield


def write_expected(out: Path, expected: dict[str, Any]) -> None:
    """Arrays to expected.npz, all else to expected.json."""
    arrays = {f'{key}/{name}': value for key, values in expected.items()
              for name, value in values.items() if isinstance(value, np.ndarray)}
    told = {key: rounded({name: value for name, value in values.items()
                          if not isinstance(value, np.ndarray)})
            for key, values in expected.items()}
    np.savez_compressed(out / 'expected.npz', **arrays)
    lines = [f'{json.dumps(key)}: {json.dumps(told[key], sort_keys=True)}' for key in sorted(told)]
    (out / 'expected.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


def rounded(value: Any) -> Any:
    """The same with floats of eight digits."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f'{value:.8g}') if isinstance(value, float) else value


MAKERS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    models, statistics, plans, teacher, runs, transformers, distilled, studies, configs)


def main(out: Path) -> None:
    """Make everything, in a working directory from which all paths are relative."""
    shutil.copytree(ASKED, out / 'asked')
    os.chdir(out)
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ['MOE_JAX_CACHE'] = cache
        for make in MAKERS:
            print(make.__name__, flush=True)
            expected |= make(out)
    write_expected(out, expected)


if __name__ == '__main__':
    main(Path(sys.argv[1]).absolute())
