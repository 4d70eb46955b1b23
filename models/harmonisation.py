"""Location and scale of every feature at each site, learnt from one class of a training fold and taken out.

Scanners and sequences move what is measured. ComBat (Johnson 2007, doi:10.1093/biostatistics/kxj037; for images Fortin
2018, doi:10.1016/j.neuroimage.2017.11.024) describes a site by two numbers for each feature, how far its scans lie from
all others and how widely they spread, and takes what it knows of the other features for an estimate of each (empirical
Bayes). Here both are estimated from the scans of a class of reference alone. Where one site has more patients than
another, a site's mean over everybody holds the disease, and its removal would remove the disease with the scanner; the
controls of two sites differ by the scanner only, as far as they are the same kind of people.

neuroHarmonize 2.5.2 (Pomponio 2020, doi:10.1016/j.neuroimage.2019.116450) estimates the same numbers (the harmonised
values agree to 0.001 standard deviations, but for the degrees of freedom of the common spread), and its model can be
applied to further scans. It is not used because it demands numpy below 2; because one constant feature makes every
value of every scan NaN, and so is every scan of another site; because its model is a pickle that holds two arrays of
the size of the training scans; and because it takes thirteen times as long (0.92 s against 0.07 s for 300 scans of
20,000 values, and every nested fold needs a fit).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEAST_SCANS: Final = 5
"""A site with fewer reference scans is not known. Simulated with nine features, sites that differ by half a standard
deviation in location and 15 % in scale, and a site of 3, 5, 8 and 15 scans: the mean squared error of further scans of
that site is 0.37, 0.23, 0.13 and 0.08 after harmonisation and 0.33 before it, so that 3 scans add as much as they
remove. Where sites differ by a quarter of a standard deviation, it takes 15 of them to gain anything."""
LEAST_FEATURES: Final = 50
"""Fewer make no prior: its variance over nine features would be known to within a half, over 50 to within a fifth."""
PRIOR_SCANS: Final = 10
"""Between 5 and 20 the error of the simulation is the same; with none a site of 5 scans has an error of 0.6, because
scans are divided by a standard deviation that happened to be small."""
LEAST_SCALE: Final = 0.25
"""No deviation is stretched more than fourfold. A site's few reference scans can be all but equal in a feature, for
example a voxel that is empty in all of them, where patients are not."""
_LEAST_SPREAD: Final = 1e-6
"""Of the absolute mean; what varies less is constant in float32."""
_FEATURES_AT_A_TIME: Final = 4096
"""In float64 they take 33 MB for 1,000 scans."""
_CONVERGED: Final = 1e-4
"""The relative change below which estimates have settled, as in ComBat."""
_MOST_STEPS: Final = 100
"""It takes about ten."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Harmonisation:
    """What is known of each site, and of all of them together.

    Attributes
    ----------
    sites : tuple of str
        The S sites that are known, sorted.
    centre : ndarray, (F,) float32
        The mean of each feature over the reference scans of all known sites.
    location : ndarray, (S, F) float32
        The mean of each feature at each site, after shrinkage.
    scale : ndarray, (S, F) float32
        The standard deviation of each feature at each site, after shrinkage, over that within all sites; at least
        ``LEAST_SCALE``.
    """

    sites: tuple[str, ...]
    centre: NDArray[np.float32]
    location: NDArray[np.float32]
    scale: NDArray[np.float32]

    def knows(self, site: str | None) -> bool:
        """Return whether scans of a site are harmonised; those of any other are left as they are."""
        return site in self.sites

    def apply(self, values: NDArray[np.float32], sites: Sequence[str | None]) -> NDArray[np.float32]:
        """Give scans of each known site the location and scale of all sites together.

        Parameters
        ----------
        values : ndarray, (M, F) float32
        sites : sequence of str or None
            Of the M scans.

        Returns
        -------
        ndarray, (M, F) float32
            A new array. Scans without a site, or of a site that is not known, are in it unchanged.
        """
        _require_one_of_each(values, sites)
        harmonised = np.array(values, dtype=np.float32)
        names = np.array([site or "" for site in sites])
        for number, site in enumerate(self.sites):
            rows = np.flatnonzero(names == site)
            block = harmonised[rows]
            block -= self.location[number]
            block /= self.scale[number]
            block += self.centre
            harmonised[rows] = block
        return harmonised

    def stretch_and_shift(self, site: str | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what :meth:`apply` multiplies the values of a site with, and what it adds then; (F,) each."""
        if site not in self.sites:
            return np.ones_like(self.centre), np.zeros_like(self.centre)
        number = self.sites.index(site)
        return 1 / self.scale[number], self.centre - self.location[number] / self.scale[number]

    def at(self, places: NDArray[np.int64]) -> Harmonisation:
        """Return the harmonisation of some of the features, by their places."""
        return Harmonisation(
            sites=self.sites,
            centre=self.centre[places],
            location=self.location[:, places],
            scale=self.scale[:, places],
        )

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by name, to be stored; the names of the sites are stored apart."""
        return {"centre": self.centre, "location": self.location, "scale": self.scale}


def harmonisation_from_arrays(
    sites: Sequence[str], arrays: Mapping[str, NDArray[np.float32]]
) -> Harmonisation:
    """Return the harmonisation that the arrays of :meth:`Harmonisation.arrays` belong to.

    Raises
    ------
    ValueError
        When arrays are missing, superfluous or do not fit each other and the sites.
    """
    if set(arrays) != {"centre", "location", "scale"}:
        raise ValueError(f"a harmonisation has centre, location and scale, got {', '.join(sorted(arrays))}")
    expected = (len(sites), arrays["centre"].size)
    for name in ("location", "scale"):
        if arrays[name].shape != expected:
            raise ValueError(f"{name} of a harmonisation is {arrays[name].shape}, expected {expected}")
    return Harmonisation(sites=tuple(sites), **arrays)


def fit_harmonisation(
    values: NDArray[np.float32], sites: Sequence[str | None], reference: NDArray[np.bool_]
) -> Harmonisation:
    """Estimate location and scale of each feature at each site, and of all sites together.

    The common centre is the mean over the reference scans of all known sites, as in ComBat: harmonisation does not move
    that mean, a site of few scans moves the centre little, and scans that cannot be harmonised are nearest to where
    most scans were measured. The common spread is that within sites, over scans less sites.

    With at least ``LEAST_FEATURES`` features, location and scale of a site are shrunk towards what is usual of its
    features, with the parametric priors of ComBat. With fewer there is nothing to learn a prior from, and few features
    such as volumes are of different kinds: the location is the mean as it is, and the variance is estimated as if
    ``PRIOR_SCANS`` further scans had had the common one.

    Parameters
    ----------
    values : ndarray, (N, F) float32
        NaN where a feature of a scan is unknown.
    sites : sequence of str or None
        Of the N scans.
    reference : ndarray, (N,) bool
        Scans to estimate from: those of the class of reference in the training fold, or all where there is none. One
        scan of each participant: visits of one person say little more of a site than one of them.

    Returns
    -------
    Harmonisation
        Of the sites with at least ``LEAST_SCANS`` reference scans.

    Raises
    ------
    ValueError
        When the three are not of the same scans.

    References
    ----------
    Johnson et al. 2007, doi:10.1093/biostatistics/kxj037, section 3.2.
    """
    _require_one_of_each(values, sites, reference)
    rows = _rows_of_sites(sites, reference)
    names = tuple(sorted(rows))
    counts, means, squares = _statistics(values, [rows[name] for name in names])
    enough = counts >= LEAST_SCANS
    weight = np.where(enough, counts, 0)
    centre = (weight * means).sum(axis=0) / np.maximum(weight.sum(axis=0), 1)
    freedom = np.maximum((weight - enough).sum(axis=0), 1)
    spread = np.sqrt((enough * squares).sum(axis=0) / freedom)
    varies = enough & (spread > _LEAST_SPREAD * np.abs(centre))
    unit = np.where(spread > 0, spread, 1.0)
    offset, deviation = _shrunk((means - centre) / unit, squares / unit**2, counts, varies)
    # What does not vary within sites, such as a voxel that is empty at one of them, has a location and no scale.
    location = np.where(varies, centre + unit * offset, np.where(enough, means, centre))
    scale = np.where(varies, np.maximum(deviation, LEAST_SCALE), 1.0)
    return Harmonisation(
        sites=names,
        centre=centre.astype(np.float32),
        location=location.astype(np.float32),
        scale=scale.astype(np.float32),
    )


def _require_one_of_each(
    values: NDArray[np.float32], *of_scans: Sequence[object] | NDArray[np.bool_]
) -> None:
    lengths = [len(values), *(len(given) for given in of_scans)]
    if len(set(lengths)) != 1:
        raise ValueError(f"values, sites and reference are of different scans: {lengths}")


def _rows_of_sites(sites: Sequence[str | None], reference: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Return the places of the reference scans of each site that has enough of them."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, (site, used) in enumerate(zip(sites, reference.tolist(), strict=True)):
        if site and used:
            places[site].append(place)
    return {site: np.array(found) for site, found in places.items() if len(found) >= LEAST_SCANS}


def _statistics(
    values: NDArray[np.float32], rows: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return, as (S, F), how many values are known, their mean, and the sum of squares about it."""
    shape = (len(rows), values.shape[1])
    counts, means, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for start in range(0, values.shape[1], _FEATURES_AT_A_TIME):
        part = slice(start, start + _FEATURES_AT_A_TIME)
        for site, chosen in enumerate(rows):
            block = values[chosen, part].astype(np.float64)
            known = np.isfinite(block)
            counts[site, part] = known.sum(axis=0)
            block[~known] = 0.0
            means[site, part] = block.sum(axis=0) / np.maximum(counts[site, part], 1)
            block -= means[site, part]
            block[~known] = 0.0
            squares[site, part] = np.einsum("nf,nf->f", block, block)
    return counts, means, squares


@dataclass(frozen=True, kw_only=True)
class _Priors:
    """Of a site's locations a Gaussian, of its variances an inverse gamma distribution; each (S, 1)."""

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]
    shape: NDArray[np.float64]
    rate: NDArray[np.float64]


def _shrunk(
    offset: NDArray[np.float64],
    squares: NDArray[np.float64],
    counts: NDArray[np.float64],
    varies: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the posterior mean of a site's locations and the standard deviations, (S, F), in units of the spread.

    Each of the two depends on the other, so they are computed in turn until neither moves.
    """
    variance = np.where(varies, squares / np.maximum(counts - 1, 1), 1.0)
    priors = _priors(offset, variance, varies)
    location = offset
    for _ in range(_MOST_STEPS):
        before = location, variance
        trust = 1.0 / (1.0 + variance * priors.precision / np.maximum(counts, 1))
        location = priors.mean + trust * (offset - priors.mean)
        # Sums of squares about the new location follow from those about the mean: no scan is needed again.
        about = squares + counts * (offset - location) ** 2
        variance = (priors.rate + about / 2) / (counts / 2 + priors.shape - 1)
        if all(
            np.all(np.abs(new - old)[varies] <= _CONVERGED * np.abs(old)[varies])
            for new, old in zip((location, variance), before, strict=True)
        ):
            break
    return location, np.sqrt(variance)


def _priors(offset: NDArray[np.float64], variance: NDArray[np.float64], varies: NDArray[np.bool_]) -> _Priors:
    if varies.shape[1] < LEAST_FEATURES:
        flat = np.zeros((len(offset), 1))
        # Half a scan less than the rule of the inverse gamma, because the location costs one.
        return _Priors(
            mean=flat, precision=flat, shape=flat + (PRIOR_SCANS + 1) / 2, rate=flat + PRIOR_SCANS / 2
        )
    mean, spread = _moments(offset, varies)
    usual, width = _moments(variance, varies)
    return _Priors(mean=mean, precision=1 / spread, shape=2 + usual**2 / width, rate=usual + usual**3 / width)


def _moments(
    values: NDArray[np.float64], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance over features, (S, 1) each; the variance is above 0."""
    count = np.maximum(counted.sum(axis=1, keepdims=True), 1)
    mean = np.where(counted, values, 0.0).sum(axis=1, keepdims=True) / count
    variance = np.where(counted, (values - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / count
    return mean, np.maximum(variance, 1e-12)
