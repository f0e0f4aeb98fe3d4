"""From many dimensions to few: principal components, and UMAP where it is installed."""

import numpy as np

from bagssl_jax.analysis.look import Inapplicable
from bagssl_jax.errors import InputError

UMAP_NEIGHBOURS = 15


def principal_components(
    points: np.ndarray, count: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of points [n d]: float [n count], and their variances' shares.

    Where there are fewer, the last are zero.

    Raises:
      Inapplicable: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise Inapplicable(
            "principal components need scikit-learn: pip install 'bagssl-jax[analysis]'"
        ) from None
    there_are = min(count, *points.shape)
    # Several threads would add up in an order that varies.
    with threadpool_limits(1):
        pca = PCA(there_are, random_state=seed)
        components = pca.fit_transform(points)
    missing = count - there_are
    shares = np.nan_to_num(pca.explained_variance_ratio_)  # of points that are all alike
    return np.pad(components, [(0, 0), (0, missing)]), np.pad(shares, (0, missing))


def trustworthiness(points: np.ndarray, plane: np.ndarray, neighbours: int) -> float:
    """How far neighbours in the plane [n 2] are neighbours of the points [n d] too: up to 1.

    Venna and Kaski (2001). Points at random places have about 0.5.
    """
    from sklearn import manifold
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return float(manifold.trustworthiness(points, plane, n_neighbors=neighbours))


def _pca(points: np.ndarray, seed: int) -> np.ndarray:
    return principal_components(points, 2, seed=seed)[0]


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError:
        raise InputError(
            "analysis.map.method=umap needs umap-learn: pip install 'bagssl-jax[umap]'"
        ) from None
    neighbours = min(UMAP_NEIGHBOURS, len(points) - 1)
    # Deterministic given the seed, on one thread.
    return UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(points)


METHODS = {'pca': _pca, 'umap': _umap}  # points [n d] and a seed -> the plane, [n 2]
