"""What a scanner does is taken out, what a disease does stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.models.harmonisation import (
    LEAST_FEATURES,
    LEAST_SCALE,
    LEAST_SCANS,
    Harmonisation,
    fit_harmonisation,
    harmonisation_from_arrays,
)

MANY, FEW = 400, 9
"""Features: enough for priors, and too few."""


def cohort(seed, sizes, features, *, shift=0.0, scale=1.0, centre=5.0):
    """Scans of sites A, B, ...; those of B are moved by ``shift`` and spread by ``scale``."""
    generator = np.random.default_rng(seed)
    sites = [name for name, size in zip("ABCDEFGH", sizes, strict=False) for _ in range(size)]
    values = generator.normal(size=(len(sites), features))
    of_b = np.array(sites) == "B"
    values[of_b] = values[of_b] * scale + shift
    return (values + centre).astype(np.float32), sites


def everybody(sites):
    return np.ones(len(sites), dtype=np.bool_)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shift=st.floats(-3, 3),
    scale=st.floats(0.6, 1.6),
    features=st.sampled_from([MANY, FEW]),
)
def test_shift_and_scale_of_a_site_are_removed_from_scans_it_was_not_fitted_on(seed, shift, scale, features):
    learnt, sites = cohort(seed, (60, 60), features, shift=shift, scale=scale)
    unseen, of_unseen = cohort(seed + 5000, (400, 400), features, shift=shift, scale=scale)
    harmonised = fit_harmonisation(learnt, sites, everybody(sites)).apply(unseen, of_unseen)
    a, b = (harmonised[np.array(of_unseen) == name] for name in "AB")
    # Means of 60 differ by 0.18 spreads by chance, standard deviations by 13 %; few scales keep a sixth of theirs.
    spread = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 2)
    assert np.abs((a.mean(axis=0) - b.mean(axis=0)) / spread).max() < 1.1
    assert np.sqrt(np.mean(((a.mean(axis=0) - b.mean(axis=0)) / spread) ** 2)) < 0.45
    assert np.median(np.log(a.std(axis=0) / b.std(axis=0))) == pytest.approx(0, abs=0.32)


def test_reference_scans_of_all_sites_keep_their_common_mean():
    values, sites = cohort(1, (80, 20, 10), FEW, shift=2)
    harmonised = fit_harmonisation(values, sites, everybody(sites)).apply(values, sites)
    np.testing.assert_allclose(harmonised.mean(axis=0), values.mean(axis=0), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), unknown=st.sampled_from(["C", "a", "", None]))
def test_scans_of_an_unknown_site_stay_as_they_are(seed, unknown):
    values, sites = cohort(seed, (20, 20), FEW, shift=2, scale=1.5)
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    assert not harmonisation.knows(unknown)
    assert harmonisation.knows("A")
    assert np.array_equal(harmonisation.apply(values, [unknown] * 40), values)


def test_what_is_given_is_not_altered():
    values, sites = cohort(0, (20, 20), FEW, shift=2)
    before = values.copy()
    fit_harmonisation(values, sites, everybody(sites)).apply(values, sites)
    assert np.array_equal(values, before)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), features=st.sampled_from([MANY, FEW]))
def test_the_order_of_scans_does_not_matter(seed, features):
    values, sites = cohort(seed, (15, 25, 9), features, shift=1, scale=1.3)
    reference = np.random.default_rng(seed).random(len(sites)) < 0.8
    order = np.random.default_rng(seed + 1).permutation(len(sites))
    one = fit_harmonisation(values, sites, reference)
    other = fit_harmonisation(values[order], [sites[place] for place in order], reference[order])
    assert one.sites == other.sites
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, other.arrays()[name], rtol=1e-5)


def test_sites_without_a_difference_are_nearly_left_alone_and_nearer_with_a_prior():
    values, sites = cohort(3, (20, 20), MANY)
    shrunk = fit_harmonisation(values, sites, everybody(sites)).apply(values, sites)
    alone = np.concatenate(
        [
            fit_harmonisation(part, sites, everybody(sites)).apply(part, sites)
            for part in np.split(values, MANY // 8, axis=1)  # eight at a time: no prior over features
        ],
        axis=1,
    )
    moved, moved_alone = (np.sqrt(np.mean((found - values) ** 2)) for found in (shrunk, alone))
    assert moved < 0.7 * moved_alone
    assert moved < 0.15


def test_a_class_that_only_one_site_has_keeps_its_effect():
    generator = np.random.default_rng(0)
    sites = ["A"] * 60 + ["B"] * 40
    patients = np.zeros(100, dtype=np.bool_)
    patients[60:80] = True  # all of them at B
    values = generator.normal(size=(100, MANY))
    values[np.array(sites) == "B"] += 1.5
    values[patients] -= 1.0
    values = values.astype(np.float32)
    by_controls = fit_harmonisation(values, sites, ~patients).apply(values, sites)
    by_everybody = fit_harmonisation(values, sites, everybody(sites)).apply(values, sites)

    def effect(found):
        return float(np.mean(found[patients].mean(axis=0) - found[~patients].mean(axis=0)))

    assert effect(by_controls) == pytest.approx(-1.0, abs=0.1)
    assert effect(by_everybody) > -0.75  # a part of the disease went with the site


def test_patients_have_no_part_in_the_fit():
    values, sites = cohort(2, (30, 30), FEW, shift=1)
    reference = np.arange(60) % 2 == 0
    changed = values.copy()
    changed[~reference] = np.nan
    for name, array in fit_harmonisation(values, sites, reference).arrays().items():
        assert np.array_equal(array, fit_harmonisation(changed, sites, reference).arrays()[name])


@pytest.mark.parametrize("features", [MANY, FEW])
def test_constant_features_stay_constant(features):
    values, sites = cohort(4, (20, 20), features, shift=1)
    values[:, 0], values[:, 1] = 0, 0.1
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    harmonised = harmonisation.apply(values, sites)
    assert np.isfinite(harmonised).all()
    np.testing.assert_allclose(harmonised[:, :2], values[:, :2], rtol=1e-6)
    patient = values[:1] + 1
    np.testing.assert_allclose(harmonisation.apply(patient, ["A"])[:, :2], patient[:, :2], rtol=1e-6)


@pytest.mark.parametrize("features", [MANY, FEW])
def test_a_feature_that_is_constant_within_each_site_loses_their_difference(features):
    values, sites = cohort(5, (20, 20), features)
    values[:, 0] = np.array(sites) == "B"
    harmonised = fit_harmonisation(values, sites, everybody(sites)).apply(values, sites)
    np.testing.assert_allclose(harmonised[:, 0], 0.5, atol=1e-6)


@pytest.mark.parametrize("features", [MANY, FEW])
def test_a_feature_that_hardly_varies_at_one_site_is_stretched_fourfold_at_most(features):
    values, sites = cohort(6, (20, 20), features)
    values[:20] = values[:1]
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    assert harmonisation.scale.min() >= LEAST_SCALE
    assert np.isfinite(harmonisation.apply(values, sites)).all()


def test_a_site_of_few_reference_scans_is_not_known_however_many_patients_it_has():
    values, sites = cohort(7, (30, 30, LEAST_SCANS, 30), FEW)
    reference = everybody(sites)
    reference[np.flatnonzero(np.array(sites) == "D")[LEAST_SCANS - 1 :]] = False
    assert fit_harmonisation(values, sites, reference).sites == ("A", "B", "C")


def test_one_known_site_is_its_own_centre():
    values, sites = cohort(8, (30, 3), FEW)
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    np.testing.assert_allclose(harmonisation.apply(values, sites), values, atol=1e-4)


def test_without_any_known_site_nothing_changes():
    values, sites = cohort(9, (3, 3), MANY)
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    assert harmonisation.sites == ()
    assert np.array_equal(harmonisation.apply(values, sites), values)


@pytest.mark.parametrize("features", [MANY, FEW])
def test_unknown_values_are_left_out_and_stay_unknown(features):
    values, sites = cohort(10, (40, 40), features, shift=2)
    values[::4, 0] = np.nan
    values[: 40 - LEAST_SCANS + 1, 1] = np.nan  # of A too few are left
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    harmonised = harmonisation.apply(values, sites)
    assert np.array_equal(np.isnan(harmonised), np.isnan(values))
    a, b = (np.nanmean(harmonised[np.array(sites) == name], axis=0) for name in "AB")
    assert a[0] == pytest.approx(b[0], abs=0.6)
    assert np.array_equal(harmonised[:40, 1], values[:40, 1], equal_nan=True)


def test_some_of_the_features_are_harmonised_as_among_all():
    values, sites = cohort(11, (30, 30), MANY, shift=1)
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    places = np.array([7, 3, 200], dtype=np.int64)
    some = harmonisation.at(places).apply(values[:, places], sites)
    assert np.array_equal(some, harmonisation.apply(values, sites)[:, places])


@pytest.mark.parametrize("site", ["A", "B", "elsewhere", None])
def test_what_is_done_to_a_site_is_one_stretch_and_one_shift(site):
    generator = np.random.default_rng(4)
    known = Harmonisation(
        sites=("A", "B"),
        centre=generator.standard_normal(6).astype(np.float32),
        location=generator.standard_normal((2, 6)).astype(np.float32),
        scale=generator.uniform(0.5, 2.0, (2, 6)).astype(np.float32),
    )
    values = generator.standard_normal((3, 6)).astype(np.float32)
    stretch, shift = known.stretch_and_shift(site)
    np.testing.assert_allclose(values * stretch + shift, known.apply(values, [site] * 3), atol=1e-5)


def test_arrays_make_the_same_harmonisation_again():
    values, sites = cohort(12, (30, 30), FEW, shift=1)
    harmonisation = fit_harmonisation(values, sites, everybody(sites))
    again = harmonisation_from_arrays(list(harmonisation.sites), harmonisation.arrays())
    assert again.sites == harmonisation.sites
    assert np.array_equal(again.apply(values, sites), harmonisation.apply(values, sites))
    assert all(array.dtype == np.float32 for array in harmonisation.arrays().values())


def test_arrays_that_do_not_fit_are_refused():
    values, sites = cohort(13, (30, 30), FEW)
    arrays = fit_harmonisation(values, sites, everybody(sites)).arrays()
    with pytest.raises(ValueError, match=r"location of a harmonisation is \(2, 9\), expected \(3, 9\)"):
        harmonisation_from_arrays(["A", "B", "C"], arrays)
    with pytest.raises(ValueError, match="has centre, location and scale, got centre, location"):
        harmonisation_from_arrays(["A", "B"], {name: arrays[name] for name in ("centre", "location")})


def test_values_and_sites_of_different_scans_are_refused():
    values, sites = cohort(14, (10, 10), FEW)
    with pytest.raises(ValueError, match=r"different scans: \[20, 19, 20\]"):
        fit_harmonisation(values, sites[1:], everybody(sites))
    with pytest.raises(ValueError, match=r"different scans: \[20, 19\]"):
        fit_harmonisation(values, sites, everybody(sites)).apply(values, sites[1:])


def test_priors_pull_a_site_towards_its_own_mean_over_features():
    """The formulas of Johnson 2007, feature by feature over the scans themselves, give the same."""
    values, sites = cohort(15, (30, 12), LEAST_FEATURES, shift=1, scale=1.4)
    found = fit_harmonisation(values, sites, everybody(sites))
    expected = _by_the_book(values.astype(np.float64), np.array(sites))
    np.testing.assert_allclose(found.location, expected.location, rtol=1e-3)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-3)


def _by_the_book(values, sites):
    names = ("A", "B")
    centre = values.mean(axis=0)
    residuals = np.concatenate([values[sites == name] - values[sites == name].mean(axis=0) for name in names])
    spread = np.sqrt((residuals**2).sum(axis=0) / (len(values) - len(names)))
    location, scale = [], []
    for name in names:
        z = (values[sites == name] - centre) / spread
        gamma_hat, delta_hat = z.mean(axis=0), z.var(axis=0, ddof=1)
        gamma_bar, tau2 = gamma_hat.mean(), gamma_hat.var()
        m, s2 = delta_hat.mean(), delta_hat.var()
        shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        gamma, delta = gamma_hat.copy(), delta_hat.copy()
        for _ in range(200):
            gamma = (len(z) * tau2 * gamma_hat + delta * gamma_bar) / (len(z) * tau2 + delta)
            delta = (rate + ((z - gamma) ** 2).sum(axis=0) / 2) / (len(z) / 2 + shape - 1)
        location.append(centre + spread * gamma)
        scale.append(np.sqrt(delta))
    return Harmonisation(sites=names, centre=centre, location=np.array(location), scale=np.array(scale))
