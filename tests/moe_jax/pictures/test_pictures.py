"""Pictures show the numbers they say, from statistics made by hand."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

from moe_jax import Stats, pictures
from moe_jax.pictures.clusters import members, places
from moe_jax.pictures.similarity import alike, ordered

TOKENS = 40


def layer(rng, experts=5):
    """Sums over 40 tokens with two choices each."""
    z, y = rng.normal(size=(TOKENS, experts)), rng.normal(size=(experts, 3))
    ids = np.argsort(-z, axis=1)
    chose = np.zeros((TOKENS, experts), int)
    np.put_along_axis(chose, ids[:, :2], 1, axis=1)
    return {'tokens': np.asarray(TOKENS), 'count': chose.sum(axis=0), 'together': chose.T @ chose,
            'count_top1': np.bincount(ids[:, 0], minlength=experts), 'logit_gram': z.T @ z,
            'output_sum': y}


@pytest.fixture(scope='module')
def stats():
    rng = np.random.default_rng(0)
    return Stats('made up', {g: {i: layer(rng) for i in (0, 2, 5)} for g in ('code', 'drama')})


def plan(**changes):
    """5 experts become 2 in layers 0, 2 and 5: 0, 2 and 3 are merged, and 1 with 4."""
    mix = np.array([[0.5, 0, 0.25, 0.25, 0], [0, 0.5, 0, 0, 0.5]])
    one = SimpleNamespace(**{'mix': mix, 'before': 5, 'after': 2, 'notes': {}} | changes)
    return SimpleNamespace(method='m_smoe', options={'group': None}, model='',
                           layers=dict.fromkeys((0, 2, 5), one))


def images(figure):
    """{title: (axes, array)} of the panels that show an image."""
    return {ax.get_title(loc='left'): (ax, ax.images[0].get_array()) for ax in figure.axes
            if ax.images and ax.get_label() != '<colorbar>'}


def names(ax):
    return [int(t.get_text()) for t in ax.get_xticklabels()]


def test_usage_shows_each_groups_share(stats):
    shown = images(pictures.usage(stats))
    assert list(shown) == ['layer 0', 'layer 2', 'layer 5']
    for i in (0, 2, 5):
        ax, array = shown[f'layer {i}']
        share = np.array([[100 * n / TOKENS for n in stats.groups[g][i]['count']]
                          for g in ('code', 'drama')])
        np.testing.assert_allclose(array, share[:, names(ax)])
        assert sorted(names(ax)) == [0, 1, 2, 3, 4]
        assert [t.get_text() for t in ax.get_yticklabels()] == ['code', 'drama']
        owner = share.argmax(axis=0)[names(ax)]
        assert (np.diff(owner) >= 0).all()


def test_usage_of_one_group_is_layers_by_experts(stats):
    rng = np.random.default_rng(1)
    uneven = Stats('made up', {'all': {0: layer(rng), 1: layer(rng, experts=3)}})
    (_, array), = images(pictures.usage(uneven)).values()
    assert array.shape == (2, 5) and np.ma.masked_invalid(array)[1, 3:].mask.all()
    (_, array), = images(pictures.usage(stats, 'drama')).values()
    want = [100 * stats.groups['drama'][i]['count'] / TOKENS for i in (0, 2, 5)]
    np.testing.assert_allclose(array, want)


@pytest.mark.parametrize('kind', ['logits', 'outputs', 'together'])
def test_similarity_is_the_cosine_of_each_pair(stats, kind):
    shown = images(pictures.similarity(stats, kind, group='code'))
    assert len(shown) == 3
    for i in (0, 2, 5):
        ax, array = shown[f'layer {i}']
        seen, order = stats.groups['code'][i], names(ax)
        for a, e in enumerate(order):
            for b, f in enumerate(order):
                if kind == 'outputs':
                    u, v = seen['output_sum'][e], seen['output_sum'][f]
                    want = sum(u * v) / (sum(u * u) * sum(v * v)) ** 0.5
                else:
                    gram = seen['logit_gram' if kind == 'logits' else 'together']
                    want = gram[e, f] / (gram[e, e] * gram[f, f]) ** 0.5
                assert array[a, b] == pytest.approx(want)


def test_an_expert_without_tokens_is_like_no_other():
    seen = {'output_sum': np.array([[1.0, 0], [0, 0], [1, 1]])}
    np.testing.assert_allclose(alike(seen, 'outputs'),
                               [[1, 0, 0.5**0.5], [0, 1, 0], [0.5**0.5, 0, 1]])


def test_alike_experts_stand_side_by_side():
    kind = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    order = ordered(0.2 + 0.7 * (kind[:, None] == kind) + 0.1 * np.eye(8))
    assert sorted(order) == list(range(8)) and np.count_nonzero(np.diff(kind[order])) == 2


def test_places_keep_the_distances_of_three_experts():
    """Three points fit a plane exactly: squared distance 2 - 2 cos."""
    cosine = np.array([[1, 0.8, -0.2], [0.8, 1, 0.1], [-0.2, 0.1, 1]])
    norm = np.array([1.0, 3.0, 0.5])
    found = places(SimpleNamespace(notes={}, before=3),
                            {'logit_gram': cosine * np.outer(norm, norm)})
    apart = ((found[:, None] - found[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(apart, 2 - 2 * cosine, atol=1e-12)


def test_places_take_a_methods_embedding():
    spread = np.array([[0.0, 7, 0], [3, 7, 0], [0, 7, 1], [3, 7, 1]])
    found = places(SimpleNamespace(notes={'embedding': spread}, before=4), {})
    np.testing.assert_allclose(np.abs(found), [[1.5, 0.5]] * 4, atol=1e-7)


def test_clusters_color_what_is_merged(stats):
    figure = pictures.clusters(plan(), stats)
    shown = [ax for ax in figure.axes if ax.get_title(loc='left')]
    assert [ax.get_title(loc='left') for ax in shown] == [
        f'layer {i}: clusters of 3, 2' for i in (0, 2, 5)]
    assert [len(c.get_offsets()) for c in shown[0].collections if hasattr(c, 'get_sizes')
            and len(c.get_sizes())] == [3, 2]
    used = sum(stats.groups[g][0]['count_top1'] for g in ('code', 'drama'))
    area = shown[0].collections[-1].get_sizes()
    assert np.argmax(area) == np.argmax(used[[1, 4]])


def test_clusters_grey_what_is_dropped(stats):
    kept = np.eye(5)[[1, 4]]
    assert members(plan(mix=kept).layers[0]).tolist() == [-1, 0, -1, -1, 1]
    figure = pictures.clusters(plan(mix=kept), stats, layers=[5])
    ax = figure.axes[0]
    assert ax.get_title(loc='left') == 'layer 5: 2 of 5'
    assert [len(c.get_offsets()) for c in ax.collections] == [2, 3]


def test_clusters_take_a_methods_labels_where_they_are_its_clusters():
    one = plan(notes={'labels': np.array([1, 1, 1, 0, 0])}).layers[0]
    assert members(one).tolist() == [1, 1, 1, 0, 0]
    several = plan(notes={'labels': np.arange(5)}).layers[0]  # some methods group, then drop
    assert members(several).tolist() == [0, 1, 0, 0, 1]


def test_sensitivity_draws_every_curve_and_ranks_layers():
    curves = {0: {1: 0.9, 2: 0.5, 3: 0.3, 4: 0.0}, 3: {4: 0.0, 2: 0.1, 1: 0.4}}
    figure = pictures.sensitivity(curves)
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[1, 90], [2, 50], [3, 30], [4, 0]])
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[1, 40], [2, 10], [4, 0]])
    assert [t.get_text() for t in right.get_yticklabels()] == ['layer 0', 'layer 3']
    assert figure.texts[0].get_text().replace('\n', ' ') == (
        'Layer 3 suffers least when half of its experts go, layer 0 most')


@pytest.mark.parametrize('layers, want', [
    (None, [0, 2, 5]), (2, [0, 5]), (9, [0, 2, 5]), ([2], [2]), (1, [0])])
def test_layers_choose_panels(stats, layers, want):
    shown = images(pictures.usage(stats, layers=layers))
    assert list(shown) == [f'layer {i}' for i in want]


def test_many_layers_of_many_experts_fit(stats):
    rng = np.random.default_rng(0)
    big = Stats('made up', {g: {i: layer(rng, 64) for i in range(30)} for g in ('code', 'drama')})
    for figure in (pictures.usage(big), pictures.similarity(big)):
        assert len(images(figure)) == 30
        assert figure.get_size_inches()[0] == 9 and figure.get_size_inches()[1] < 16


def test_missing_statistics_say_how_to_observe(stats):
    few = Stats('made up', {'all': {0: {'tokens': np.asarray(3), 'count': np.ones(4, int)}}})
    with pytest.raises(ValueError, match=r"'logit_gram'; observe again: stats = moe_jax.observe"):
        pictures.similarity(few)
    with pytest.raises(ValueError, match=r"no group 'music' .*\['code', 'drama'\]"):
        pictures.usage(stats, ['code', 'music'])
    with pytest.raises(ValueError, match=r'layers=\[1\]; there are \[0, 2, 5\]'):
        pictures.usage(stats, layers=[1])
    with pytest.raises(ValueError, match='kind='):
        pictures.similarity(stats, 'gates')
    none = Stats('made up', {'all': {0: {'tokens': np.asarray(0), 'count': np.zeros(4, int)}}})
    with pytest.raises(ValueError, match='no token'):
        pictures.usage(none)


def test_one_choice_per_token_has_no_pairs():
    alone = {'tokens': np.asarray(3), 'together': np.diag([2, 1])}
    with pytest.raises(ValueError, match="use kind='logits'"):
        pictures.similarity(Stats('made up', {'all': {0: alone}}), 'together')


def test_a_plan_of_another_model_is_refused(stats):
    ours = Stats('model:aaaa', stats.groups)
    other = plan()
    other.model = 'model:bbbb'
    with pytest.raises(ValueError, match='different models'):
        pictures.clusters(other, ours)


def test_a_users_settings_stay_and_do_not_matter(stats):
    plain = pictures.usage(stats)._repr_png_()
    with matplotlib.rc_context({'font.size': 30, 'xtick.color': 'red', 'axes.grid': True}):
        before = dict(matplotlib.rcParams)
        assert pictures.usage(stats)._repr_png_() == plain
        assert dict(matplotlib.rcParams) == before
    assert plain[0].startswith(b'\x89PNG') and plain[1]['width'] == 900


def test_the_library_does_not_need_matplotlib():
    code = ("import sys; sys.modules['matplotlib'] = None; import moe_jax\n"
            'try: import moe_jax.pictures\nexcept ImportError as error: print(error)')
    made = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'pip install "moe-jax[plot]"' in made.stdout
