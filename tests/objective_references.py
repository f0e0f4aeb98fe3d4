"""The objectives as their authors write them, naively, in NumPy and float64: for the tests."""

import itertools

import jax
import numpy as np


def vicreg(z):
    """facebookresearch/vicreg, main_vicreg.py, for every pair of branches."""
    b, p, k = z.shape
    branches = [z[:, i] for i in range(p)]
    repr_losses, std_losses, cov_losses = [], [], []
    for x, y in itertools.permutations(branches, 2):
        repr_losses.append(((x - y) ** 2).mean())
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        std_x, std_y = (np.sqrt(v.var(axis=0, ddof=1) + 1e-4) for v in (x, y))
        std_losses.append(np.maximum(1 - std_x, 0).mean() / 2 + np.maximum(1 - std_y, 0).mean() / 2)
        cov_x, cov_y = x.T @ x / (b - 1), y.T @ y / (b - 1)
        off = ~np.eye(k, dtype=bool)
        cov_losses.append((cov_x[off] ** 2).sum() / k + (cov_y[off] ** 2).sum() / k)
    terms = {
        'invariance': np.mean(repr_losses),
        'variance': np.mean(std_losses),
        'covariance': np.mean(cov_losses),
    }
    return 25 * terms['invariance'] + 25 * terms['variance'] + terms['covariance'], terms


def tcr(z, eps=0.2):
    """tsb0601/EMP-SSL, main.py and func.py (cal_TCR, Similarity_Loss)."""
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    b, p, k = z.shape
    mean = z.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    similarity = np.mean([np.mean(np.sum(z[:, i] * mean, axis=-1)) for i in range(p)])
    rates = []
    for i in range(p):
        w = z[:, i].T  # [k b], as the authors pass it
        scalar = k / (b * eps)
        rates.append(np.linalg.slogdet(np.eye(k) + scalar * w @ w.T)[1] / 2)
    coding_rate = np.mean(rates)
    return -200 * similarity - coding_rate, {'similarity': similarity, 'coding_rate': coding_rate}


def sigreg(z, weight=0.05, count=1024):
    """rbalestr-lab/lejepa, MINIMAL.md, with the knots and weights of univariate/epps_pulley.py."""
    b, p, k = z.shape
    directions = np.asarray(jax.random.normal(jax.random.key(0), (count, k)), np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    t = np.linspace(0, 3, 17)
    dt = 3 / 16
    w = np.full(17, 2 * dt)
    w[[0, -1]] = dt
    phi = np.exp(-(t**2) / 2)
    statistics = []
    for i in range(p):
        x_t = (z[:, i] @ directions.T)[..., None] * t  # [b K 17]
        error = (np.cos(x_t).mean(0) - phi) ** 2 + np.sin(x_t).mean(0) ** 2
        statistics.append(error @ (w * phi) * b)
    terms = {
        'invariance': np.mean((z - z.mean(axis=1, keepdims=True)) ** 2),
        'normality': np.mean(statistics),
    }
    return (1 - weight) * terms['invariance'] + weight * terms['normality'], terms


def simclr(z, temperature=0.5):
    """The paper's eq. 1 for every anchor and positive, without the anchor's other positives."""
    b, p, _ = z.shape
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    losses, similarities = [], []
    for image in range(b):
        strangers = np.concatenate([z[other] for other in range(b) if other != image])
        for i, j in itertools.permutations(range(p), 2):
            positive = z[image, i] @ z[image, j]
            negatives = np.exp(strangers @ z[image, i] / temperature).sum()
            similarities.append(positive)
            positive = np.exp(positive / temperature)
            losses.append(-np.log(positive / (positive + negatives)))
    return np.mean(losses), {'similarity': np.mean(similarities)}


def byol(prediction, target):
    """google-deepmind/deepmind-research, byol_experiment.py: a regression loss each direction."""
    b, p, _ = prediction.shape
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (prediction, target)]
    losses, cosines = [], []
    for i, j in itertools.combinations(range(p), 2):
        there = np.sum((unit[0][:, i] - unit[1][:, j]) ** 2, axis=-1)
        back = np.sum((unit[0][:, j] - unit[1][:, i]) ** 2, axis=-1)
        losses.append(np.mean(there + back))
        for n in range(b):
            cosines += [unit[0][n, i] @ unit[1][n, j], unit[0][n, j] @ unit[1][n, i]]
    return np.mean(losses), {'similarity': np.mean(cosines)}


def barlow(z, lambd=0.0051):
    """facebookresearch/barlowtwins, main.py, for every pair of branches."""
    b, p, k = z.shape
    on_diag, off_diag = [], []
    for i, j in itertools.combinations(range(p), 2):
        z1, z2 = ((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) for x in (z[:, i], z[:, j]))
        c = z1.T @ z2 / b
        on_diag.append(((np.diagonal(c) - 1) ** 2).sum())
        off_diag.append((c[~np.eye(k, dtype=bool)] ** 2).sum())
    terms = {'on_diagonal': np.mean(on_diag), 'off_diagonal': np.mean(off_diag)}
    return terms['on_diagonal'] + lambd * terms['off_diagonal'], terms


def spectral(z):
    """jhaochenz96/spectral_contrastive_learning, models/spectral.py, halved; no ball (large mu).

    Theirs takes E_indep from branch 1 of an image and branch 2 of another; here from any two
    branches, also from twice the same.
    """
    b, p, _ = z.shape
    branches = [z[:, i] for i in range(p)]
    joint = [np.mean(np.sum(x * y, axis=-1)) for x, y in itertools.permutations(branches, 2)]
    independent = []
    for x, y in itertools.product(branches, repeat=2):
        square_term = (x @ y.T) ** 2
        both = np.triu(square_term, 1) + np.tril(square_term, -1)
        independent.append(np.mean(both) * b / (b - 1))
    terms = {'joint': np.mean(joint), 'independent': np.mean(independent)}
    return (-2 * terms['joint'] + terms['independent']) / 2, terms


REFERENCES = {
    'barlow': barlow,
    'byol': byol,
    'sigreg': sigreg,
    'simclr': simclr,
    'spectral': spectral,
    'tcr': tcr,
    'vicreg': vicreg,
}
