"""Float64 NumPy reference of the method, Eq. 1-9, written from the paper's text alone.

It is plain where the product is fast: loops over centroids, direct formulas, nothing shared with
the implementation. What the paper leaves open is marked "convention".
"""

from itertools import combinations

import numpy as np
from scipy.special import logsumexp

FLOAT32_EPS = 2.0**-23


def pool(features):
    """Sec. 3.4: spatial mean of (N, C, H, W), leaving (N, C)."""
    return np.asarray(features, np.float64).mean(axis=(2, 3))


def downsample_channels(x, dim):
    """Sec. 3.4: (N, C) to (N, D) by averaging over D adjacent, evenly spread channel ranges."""
    channels = x.shape[1]
    columns = []
    for d in range(dim):
        first = (d * channels) // dim
        last = -((-(d + 1) * channels) // dim)
        columns.append(x[:, first:last].mean(axis=1))
    return np.stack(columns, axis=1)


def eq1_retained(importance, num_keep):
    """Eq. 1 by trying every pruned set: the one with the least total importance is pruned."""
    everyone = range(len(importance))
    pruned = min(
        combinations(everyone, len(importance) - num_keep),
        key=lambda chosen: sum(importance[i] for i in chosen),
    )
    return sorted(set(everyone) - set(pruned))


def most_important(importance, num_keep):
    """Algorithm 1, lines 8-10: what lies above the percentile stays; ties: the lowest index."""
    return sorted(sorted(range(len(importance)), key=lambda i: (-importance[i], i))[:num_keep])


def eq2_importance(f, r):
    """Eq. 2."""
    return 1 / (f + r)


def eq3_random_term(f, alpha):
    """Eq. 3; convention: one alpha ~ U(0, b) per sample."""
    return alpha * np.max(f)


def eq4_log_density(x, centroids, counts, bandwidth, weighted=True):
    """Log of Eq. 4. An empty cluster has weight zero; unweighted (Table 5), every w is one."""
    x, centroids = np.asarray(x, np.float64), np.asarray(centroids, np.float64)
    num_centroids = len(centroids)
    sqrt_h = eq6_sqrt_bandwidth(centroids, bandwidth)
    weights = eq9_weights(counts) if weighted else np.ones(num_centroids)
    terms = [
        np.log(weights[j] / num_centroids) + eq5_log_kernel(x - centroids[j], sqrt_h)
        for j in range(num_centroids)
        if weights[j] > 0
    ]
    return logsumexp(np.stack(terms), axis=0)


def eq5_log_kernel(difference, sqrt_h):
    """Log of Eq. 5 with the diagonal H of Eq. 6, for rows of differences."""
    d = difference.shape[1]
    log_det = 2 * np.log(sqrt_h).sum()
    return -d / 2 * np.log(2 * np.pi) - log_det / 2 - ((difference / sqrt_h) ** 2).sum(axis=1) / 2


def eq6_sqrt_bandwidth(centroids, bandwidth='silverman'):
    """Eq. 6, and Table 6's other two rules.

    Convention: population standard deviation; a channel without spread, down to rounding error,
    takes the mean of those that have one, or 1 if there is none.
    """
    centroids = np.asarray(centroids, np.float64)
    num_centroids, dim = centroids.shape
    if bandwidth == 'identity':
        return np.ones(dim)
    sigma = np.sqrt(((centroids - centroids.mean(axis=0)) ** 2).mean(axis=0))
    spread = sigma > 2 * FLOAT32_EPS * np.abs(centroids).max(axis=0)
    sigma[~spread] = sigma[spread].mean() if spread.any() else 1.0
    if bandwidth == 'silverman':
        return (4 / ((dim + 2) * num_centroids)) ** (1 / (dim + 4)) * sigma
    if bandwidth == 'scott':
        return num_centroids ** (-1 / (dim + 4)) * sigma
    raise ValueError(bandwidth)


def eq7_assign(x, centroids):
    """Eq. 7: index of the nearest centroid of every row; ties: the lowest index."""
    return np.array([((row - centroids) ** 2).sum(axis=1).argmin() for row in x], dtype=int)


def eq8_update(x, assignment, centroids, counts, momentum):
    """Eq. 8; convention: divided by the sum of its weights, and what receives nothing stays."""
    new_centroids, new_counts = centroids.copy(), counts.copy()
    for j in range(len(centroids)):
        members = x[assignment == j]
        new_counts[j] = counts[j] + len(members)
        if len(members) > 0:
            weight_old = momentum * counts[j]
            weight_new = 1 - momentum
            new_centroids[j] = (weight_old * centroids[j] + weight_new * members.sum(axis=0)) / (
                weight_old + weight_new * len(members)
            )
    return new_centroids, new_counts


def eq9_weights(counts):
    """Eq. 9: the share of all samples retained so far."""
    counts = np.asarray(counts, np.float64)
    return counts / counts.sum()


class Estimator:
    """The paper's estimator; convention: the first N_C retained samples are the first centroids."""

    def __init__(self, num_centroids, dim, momentum=0.1, **density):
        self.num_centroids = num_centroids
        self.momentum = momentum
        self.density = {'bandwidth': 'silverman', **density}
        self.centroids = np.zeros((0, dim))
        self.counts = np.zeros(0, dtype=int)

    @property
    def ready(self):
        return len(self.centroids) == self.num_centroids

    def log_density(self, x):
        return eq4_log_density(x, self.centroids, self.counts, **self.density)

    def update(self, x):
        x = np.asarray(x, np.float64)
        x = x[np.isfinite(x).all(axis=1)]
        num_seeds = min(self.num_centroids - len(self.centroids), len(x))
        self.centroids = np.concatenate([self.centroids, x[:num_seeds]])
        self.counts = np.concatenate([self.counts, np.ones(num_seeds, dtype=int)])
        x = x[num_seeds:]
        if len(x):
            assignment = eq7_assign(x, self.centroids)
            self.centroids, self.counts = eq8_update(
                x, assignment, self.centroids, self.counts, self.momentum
            )


def density_space_choice(log_density, num_keep, alpha):
    """Eq. 1-3 with the densities themselves, not their logarithms."""
    f = np.exp(np.asarray(log_density, np.float64))
    return most_important(eq2_importance(f, eq3_random_term(f, alpha)), num_keep)
