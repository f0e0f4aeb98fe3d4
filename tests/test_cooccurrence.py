import contextlib
import json
import sys

import numpy as np
import pytest
import scipy.stats

from bagssl_jax.analysis import analyze, cooccurrence, discrete_world
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.errors import InputError
from bagssl_jax.models import init_variables, make_networks
from bagssl_jax.runs import Run

WEIGHT = 2.0


@pytest.fixture(scope='module')
def joint():
    return discrete_world.make_world()


@pytest.fixture(scope='module')
def learned(joint):
    return discrete_world.learn(joint, (2, 5, 8, 12), weight=WEIGHT)


def test_the_world_is_a_joint_distribution_of_rank_8(joint):
    assert joint.shape == (64, 64)
    np.testing.assert_allclose(joint, joint.T, rtol=1e-12)
    assert joint.min() > 0
    assert joint.sum() == pytest.approx(1)
    marginal = joint.sum(axis=1)
    eigenvalues = np.linalg.eigvalsh(joint / np.sqrt(np.outer(marginal, marginal)))[::-1]
    assert eigenvalues[0] == pytest.approx(1)  # of sqrt(p): what independence alone would give
    assert np.abs(eigenvalues[8:]).max() < 1e-12
    assert -np.diff(eigenvalues[:9]).max() > 0.02  # distinct, so that every rank has one optimum
    assert marginal.max() > 5 * marginal.min()


@pytest.mark.parametrize('width', [8, 12])
def test_wide_embeddings_learn_the_ratio(joint, learned, width):
    z = learned[width].astype(np.float64)
    assert z.shape == (64, width)
    marginal = joint.sum(axis=1)
    independent = np.outer(marginal, marginal)
    ratio = joint / independent
    squared = np.sum(independent * (WEIGHT * z @ z.T - ratio) ** 2)
    error = np.sqrt(squared / np.sum(independent * ratio**2))
    assert error < 1e-3
    assert discrete_world.relative_error(z, joint, weight=WEIGHT) == pytest.approx(error)


@pytest.mark.parametrize('width', [2, 5])
def test_narrow_embeddings_learn_the_best_approximation_of_their_rank(joint, learned, width):
    marginal = joint.sum(axis=1)
    roots = np.sqrt(np.outer(marginal, marginal))
    left, singular, right = np.linalg.svd(joint / roots)
    nearest = (left[:, :width] * singular[:width]) @ right[:width]
    best = np.linalg.norm(nearest - joint / roots) / np.linalg.norm(singular)
    assert discrete_world.best_errors(joint)[width] == pytest.approx(best)
    error = discrete_world.relative_error(learned[width], joint, weight=WEIGHT)
    assert best - 1e-6 < error < 1.01 * best
    z = learned[width]
    assert np.linalg.norm(WEIGHT * (z @ z.T) * roots - nearest) < 0.01 * np.linalg.norm(nearest)


def test_without_their_mean_embeddings_learn_the_ratio_less_one(joint, learned):
    """What `compare_patches` says of the centered inner product."""
    marginal = joint.sum(axis=1)
    centered = learned[8] - marginal @ learned[8]
    ratio = joint / np.outer(marginal, marginal)
    np.testing.assert_allclose(WEIGHT * centered @ centered.T, ratio - 1, atol=1e-4)


@pytest.mark.parametrize(('width', 'weight'), [(1, 2.0), (8, 0.5), (32, 2.0)])
def test_the_two_losses_differ_by_a_constant(joint, width, weight):
    assert discrete_world.identity_error(joint, width, weight=weight) < 1e-6


def test_pairs_are_of_different_patches_of_one_image():
    counts = cooccurrence.count_pairs(np.array([[0, 0, 1], [2, 1, 2]]), 4)
    np.testing.assert_array_equal(counts, [[2, 2, 0, 0], [2, 0, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]])
    ratio, expected = cooccurrence.cooccurrence_ratio(counts)
    assert expected[0, 1] == pytest.approx(4 * 4 / 12)
    assert ratio[0, 1] == pytest.approx(2 / (4 * 4 / 12))
    assert ratio[0, 2] == 0
    assert not ratio[3].any()  # a code that never occurs


def codes_of_topics(shuffled):
    """Codes of 4,000 images of 16 patches, drawn from a world of 12 words and 3 topics."""
    rng = np.random.default_rng(0)
    words = rng.dirichlet(np.full(12, 0.5), 3)
    topics = rng.integers(0, 3, 4000)
    codes = np.stack([rng.choice(12, 16, p=words[topic]) for topic in topics])
    joint = np.einsum('ti,tj->ij', words, words) / 3
    return rng.permutation(codes.ravel()).reshape(codes.shape) if shuffled else codes, joint


def test_counts_estimate_the_ratio_of_the_distribution():
    codes, joint = codes_of_topics(shuffled=False)
    ratio, expected = cooccurrence.cooccurrence_ratio(cooccurrence.count_pairs(codes, 12))
    truth = joint / np.outer(joint.sum(axis=1), joint.sum(axis=1))
    frequent = expected > 1000
    assert frequent.sum() > 72
    assert np.ptp(truth[frequent]) > 1
    np.testing.assert_allclose(ratio[frequent], truth[frequent], atol=0.1)


def test_independent_codes_have_a_ratio_of_one():
    codes, _ = codes_of_topics(shuffled=True)
    ratio, expected = cooccurrence.cooccurrence_ratio(cooccurrence.count_pairs(codes, 12))
    assert np.abs(ratio[expected > 1000] - 1).max() < 0.1


def test_products_are_means_over_pairs_of_patches():
    rng = np.random.default_rng(0)
    z, codes = rng.normal(1, 1, (30, 5)), np.arange(30) % 3
    means = cooccurrence.CodeMeans(4)
    for part in (slice(0, 20), slice(20, 30)):
        means.add(z[part], codes[part])
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    for vectors, centered in ((unit, False), (unit - unit.mean(axis=0), True)):
        products = means.products(centered=centered)
        every = vectors @ vectors.T
        for i, j in ((0, 1), (0, 2), (1, 2)):
            expected = every[np.ix_(codes == i, codes == j)].mean()
            assert products[i, j] == pytest.approx(expected)


def test_projections_built_to_match_are_found_to():
    """Patches that carry their image's topic, as a perfect encoder's would, and noise beside it."""
    codes, _ = codes_of_topics(shuffled=False)
    ratio, expected = cooccurrence.cooccurrence_ratio(cooccurrence.count_pairs(codes, 12))
    pairs = cooccurrence.frequent_pairs(expected, 1000)
    assert (pairs[0] < pairs[1]).all()
    marginal = expected.sum(axis=1) / expected.sum()
    scaled = np.sqrt(np.outer(marginal, marginal)) * ratio
    eigenvalues, vectors = np.linalg.eigh(scaled)
    code_z = (vectors * np.sqrt(eigenvalues.clip(0)))[:, -3:] / np.sqrt(marginal)[:, None]
    rng = np.random.default_rng(1)

    def spearman(z):
        means = cooccurrence.CodeMeans(12)
        means.add(z, codes.ravel())
        products = means.products(centered=True)[pairs]
        return scipy.stats.spearmanr(ratio[pairs], products).statistic

    assert spearman(code_z[codes.ravel()]) > 0.8
    assert abs(spearman(rng.normal(size=(codes.size, 3)))) < 0.5


def test_codes_are_clusters_of_pixels_and_deterministic():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 600)
    pixels = (80 * groups[:, None] + rng.integers(0, 9, (600, 12))).astype(np.uint8)
    codes = cooccurrence.quantize(pixels, 3, seed=0)
    assert len(set(zip(groups.tolist(), codes.tolist(), strict=True))) == 3
    np.testing.assert_array_equal(codes, cooccurrence.quantize(pixels, 3, seed=0))
    with pytest.raises(InputError, match='2 training patches are too few for 3 codes'):
        cooccurrence.quantize(pixels[:2], 3, seed=0)


def test_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.cluster', None)
    with pytest.raises(InputError, match=r"pip install 'bagssl-jax\[analysis\]'"):
        cooccurrence.quantize(np.zeros((9, 3)), 3, seed=0)


def test_too_few_frequent_codes_are_refused():
    with pytest.raises(InputError, match='only 3 pairs of codes are frequent enough'):
        cooccurrence.frequent_pairs(np.full((3, 3), 30.0), 20.0)


@pytest.fixture
def run(shrunk, tmp_path):
    """A run's configuration and workdir; its checkpoint is an encoder of another seed."""
    config = shrunk('--config.patches.size=16')
    run = Run.at(tmp_path)
    run.claim(config.to_dict(), None)
    with contextlib.closing(Checkpoints(run, keep=1)) as checkpoints:
        checkpoints.save(7, init_variables(make_networks(config), config.seed + 1, side=16), {})
    return config, tmp_path


@pytest.mark.slow
def test_a_run_leaves_numbers_and_figures(run, capsys):
    config, workdir = run
    analyze(config, Run.at(workdir), 'cooccurrence')
    findings = json.loads((workdir / 'analysis.json').read_text())
    assert (findings['dataset'], findings['step']) == ('photos', 7)
    [results] = findings['looks'].values()
    assert results['images'] == 'photos train[:96]'
    known = [row for row in results['rows'] if row['part'] == 'known']
    assert [row['width'] for row in known] == list(discrete_world.WIDTHS)
    for row in known:
        assert row['best'] - 1e-6 < row['error'] < max(1.01 * row['best'], 1e-3)
    compared = [row for row in results['rows'] if row['part'] == 'patches']
    [identity] = [row for row in results['rows'] if row['part'] == 'identity']
    assert identity['error'] < 1e-6
    assert len(known) + len(compared) + 1 == len(results['rows'])
    assert {(row['encoder'], row['centered']) for row in compared} == {
        (name, centered) for name in ('trained', 'untrained') for centered in (False, True)
    }
    assert len({row['spearman'] for row in compared}) == 4
    for row in compared:
        assert -1 < row['spearman'] < 1
        assert (row['images'], row['patches'], row['codes']) == (96, 16, 64)
        assert 10 <= row['pairs'] < 64 * 63 / 2
    for name in ('known', 'patches'):
        assert (workdir / 'figures' / f'cooccurrence_{name}.png').stat().st_size > 10_000
    for row in compared:
        assert f' {row["spearman"]:.2f}' in results['figures'][1]['alt']
    out = capsys.readouterr().out
    for row in compared:
        assert f'{row["spearman"]:.3f}' in out
