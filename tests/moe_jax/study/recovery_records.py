"""Raw records of a recovery study made up from known effects, so that a report can be checked.

Every model's log-likelihoods are the unshrunk ones plus a constant and a little noise.
"""

import numpy as np

RECIPES = ('plain', 'routers', 'some')
# Nats lost, then won back by each recipe.
EFFECTS = {'half': (0.2, {'plain': 0.3, 'routers': 0.1, 'some': 0.2999}),
           'sparse': (0.1, {'plain': 0.05, 'routers': 0.0, 'some': -0.05})}
GAIN = 0.14  # of the unshrunk model trained as the others
TASKS = ('lm-code', 'lm-drama')


def study(seeds=(0, 1, 2), documents=24, noise=0.002, effects=EFFECTS) -> list[dict]:
    """Raw records; the same for the same arguments."""
    records = [_plan(seeds)]
    for seed in seeds:
        records.append({'id': f'pretrain-{seed}', 'kind': 'pretrain', 'seed': seed, 'experts': 16,
                        'seconds': 10.0, 'outputs': {
                            'domains': {'code': 4.0, 'drama': 4.1}, 'parameters': 1000,
                            'active': 600, 'tokens': 5000}})
        for task in TASKS:
            rng = np.random.default_rng([seed, len(task)])
            base = -4 + rng.normal(0, 0.5, documents)
            cells = [('none', 'none', 0.0), ('none', 'plain', GAIN)]
            for shrink, (lost, won) in effects.items():
                cells.append((shrink, 'none', -lost))
                cells += [(shrink, recipe, won[recipe] - lost) for recipe in won]
            records += [recover(seed, task, shrink, recipe, base + effect
                                + rng.normal(0, noise, documents))
                        for shrink, recipe, effect in cells]
    return records


def recover(seed, task, shrink, recipe, values) -> dict:
    trained = {'none': 0, 'plain': 1000, 'routers': 20, 'some': 250}[recipe]
    other = 'drama' if task == 'lm-code' else 'code'
    search = {'rates': [1e-3, 1e-2], 'losses': [4.2, None]} if trained and not seed else None
    return {
        'id': f'{seed}-{task}-{shrink}-{recipe}', 'kind': 'recover', 'seed': seed, 'task': task,
        'experts': 16, 'shrink': shrink, 'recipe': recipe, 'seconds': 3.0, 'outputs': {
            'rate': 1e-3 if trained else None, 'search': search,
            'loss': -float(np.mean(values)), 'accuracy': None,
            'examples': {'id': [f'{task}/{n}' for n in range(len(values))],
                         'group': [f'{task} {n}' for n in range(len(values))],
                         'log_likelihood': list(map(float, values)),
                         'weight': [100.0] * len(values), 'correct': None},
            'domains': {task.removeprefix('lm-'): 4.0,
                        other: 4.5 if recipe == 'plain' else 4.25 if trained else 4.0},
            'trained': trained, 'zeros': 0.5 if shrink == 'sparse' else 0.0,
            'train_seconds': 2.0 + seed},
    }


def _plan(seeds) -> dict:
    return {'id': 'study', 'kind': 'study', 'outputs': {
        'about': 'recovery', 'name': 'recovered', 'description': 'What does training win back?',
        'experts': 16, 'tasks': list(TASKS), 'seeds': list(seeds), 'ceiling': 'plain',
        'shrinks': [{'label': 'half', 'name': 'frequency', 'experts': 8, 'kind': 'Drop'},
                    {'label': 'sparse', 'name': 'wanda', 'sparsity': 0.5, 'kind': 'Sparsify'}],
        'recipes': [{'label': label} for label in RECIPES], 'rates': [1e-3, 1e-2],
        'tuning_rows': 8, 'steps': {'pretrain': 100, 'recover': 5},
        'tokens': {'pretrain': 5000, 'recover': 640},
        'task_notes': {task: {'split_note': 'Split by document.', 'metric': 'text'}
                       for task in TASKS}}}
