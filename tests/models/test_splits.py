"""No participant is on two sides, whatever the cohort looks like."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainstage.models.splits import (
    MAX_SITE_FOLDS,
    Person,
    fold_balance,
    fold_of_scans,
    fold_of_sites,
    inner_validation,
    participant_classes,
    people,
    shuffled_labels,
)
from brainstage.pipeline.errors import UsageError


@st.composite
def cohorts(draw):
    """Two to four classes of 3 to 12 participants with one to three scans each, in any order."""
    scans = []
    for name in "ABCD"[: draw(st.integers(2, 4))]:
        for number in range(draw(st.integers(3, 12))):
            scans += [(name, f"sub-{name}{number}")] * draw(st.integers(1, 3))
    order = draw(st.permutations(scans))
    return [label for label, _ in order], [participant for _, participant in order]


PERSONS = st.builds(
    Person, age=st.none() | st.floats(20, 90), sex=st.none() | st.sampled_from(["F", "M", "other"])
)


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000), data=st.data())
def test_participants_stay_whole_and_classes_balanced(cohort, seed, data):
    labels, participants = cohort
    about = {name: data.draw(PERSONS) for name in sorted(set(participants))}
    folds = fold_of_scans(labels, participants, folds=3, seed=seed, about=about)
    where = defaultdict(set)
    for participant, fold in zip(participants, folds, strict=True):
        where[participant].add(int(fold))
    assert all(len(found) == 1 for found in where.values())
    per_fold = Counter(
        (label, min(where[p])) for p, label in participant_classes(labels, participants).items()
    )
    for name in set(labels):
        counts = [per_fold[(name, fold)] for fold in range(3)]
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1
    of_all = Counter(min(found) for found in where.values())
    assert max(of_all.values()) - min(of_all.values()) <= 1


def old_and_young(seed, size=60):
    """Two classes of different age, women in one class twice as often as in the other."""
    generator = np.random.default_rng(seed)
    names = [f"sub-{n:02d}" for n in range(size)]
    labels = ["CN", "AD"] * (size // 2)
    about = {
        name: Person(
            age=float(generator.normal(72 if label == "AD" else 65, 8)),
            sex="F" if generator.random() < (2 / 3 if label == "AD" else 1 / 3) else "M",
        )
        for name, label in zip(names, labels, strict=True)
    }
    return labels, names, about


def test_folds_are_alike_in_age_and_sex_far_more_than_by_chance():
    balanced, blind = [], []
    for seed in range(6):
        labels, names, about = old_and_young(seed)
        for found, known in ((balanced, about), (blind, None)):
            folds = fold_of_scans(labels, names, folds=5, seed=seed, about=known)
            found.append(fold_balance(folds, names, about))
    assert max(found.age_difference for found in balanced) < 0.2
    assert np.mean([found.age_difference for found in blind]) > 0.3
    assert max(found.sex_spread for found in balanced) <= 1 / 12 + 1e-9  # one of the twelve in a fold
    assert np.mean([found.sex_spread for found in blind]) > 0.2


def test_unknown_ages_and_sexes_are_shared_out_too():
    labels, names, about = old_and_young(0)
    about |= dict.fromkeys(names[:20], Person())
    folds = fold_of_scans(labels, names, folds=5, seed=0, about=about)
    unknown = Counter(folds[:20].tolist())
    assert max(unknown.values()) - min(unknown.values()) <= 2
    assert fold_balance(folds, names, about).age_difference < 0.3


def test_balance_of_nothing_known_is_not_defined():
    labels, names, _ = old_and_young(0)
    about = dict.fromkeys(names, Person())
    balance = fold_balance(fold_of_scans(labels, names, folds=5, seed=0, about=about), names, about)
    assert (balance.age_difference, balance.sex_spread) == (None, None)


def test_balance_is_what_it_says():
    about = {"a": Person(age=60, sex="F"), "b": Person(age=70, sex="M"), "c": Person(age=80, sex="M")}
    balance = fold_balance(np.array([0, 1, 1, 0]), ["a", "b", "c", "a"], about)
    assert balance.age_difference == pytest.approx(15 / np.std([60, 70, 80]))
    assert balance.sex_spread == 1


def test_a_person_is_as_old_as_on_average_over_the_visits():
    found = people(["a", "a", "b"], [70.0, 72.0, None], [None, "F", None])
    assert found == {"a": Person(age=71.0, sex="F"), "b": Person()}


@settings(max_examples=40, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 1000))
def test_inner_validation_keeps_participants_whole_and_every_class_on_both_sides(cohort, seed):
    labels, participants = cohort
    held = inner_validation(labels, participants, seed=seed)
    names, classes = np.array(participants), np.array(labels)
    assert not set(names[held]) & set(names[~held])
    assert set(classes[held]) == set(classes[~held]) == set(labels)


def test_same_seed_same_folds_and_order_does_not_matter():
    labels, participants = ["A", "B"] * 10, [f"sub-{n}" for n in range(20)]
    folds = fold_of_scans(labels, participants, folds=5, seed=1)
    assert np.array_equal(folds, fold_of_scans(labels, participants, folds=5, seed=1))
    backwards = fold_of_scans(labels[::-1], participants[::-1], folds=5, seed=1)
    assert np.array_equal(folds, backwards[::-1])
    assert not np.array_equal(folds, fold_of_scans(labels, participants, folds=5, seed=2))


def test_too_few_participants_say_what_to_do():
    labels, participants = ["A"] * 6 + ["B"] * 4, [f"sub-{n}" for n in range(10)]
    with pytest.raises(UsageError, match=r"'B' has 4: use --folds 4, or leave the class out"):
        fold_of_scans(labels, participants, folds=5, seed=0)


def test_one_class_or_two_folds_are_refused():
    with pytest.raises(UsageError, match="at least two classes"):
        fold_of_scans(["A"] * 5, [f"sub-{n}" for n in range(5)], folds=3, seed=0)
    with pytest.raises(UsageError, match="at least 3 folds"):
        fold_of_scans(["A", "B"] * 5, [f"sub-{n}" for n in range(10)], folds=2, seed=0)


@pytest.mark.parametrize("sizes", [{"a": 24, "b": 24}, {"a": 35, "b": 13}, {"a": 20, "b": 11, "c": 6}])
def test_shuffled_labels_say_nothing_about_the_true_ones(sizes):
    labels = [name for name, count in sizes.items() for _ in range(count)]
    names = [f"sub-{n:02d}" for n in range(len(labels))]
    seen = set()
    for seed in range(20):
        drawn = shuffled_labels(labels, names, seed=seed)
        seen.add(tuple(drawn))
        for true, count in sizes.items():
            got = [new for new, old in zip(drawn, labels, strict=True) if old == true]
            for name, others in sizes.items():
                assert abs(got.count(name) - count * others / len(labels)) <= 1.5
    assert len(seen) == 20


def test_shuffled_labels_keep_the_class_sizes_and_one_label_for_each_participant():
    labels, participants = ["A", "A", "B", "B", "C", "C"], ["1", "1", "2", "2", "3", "3"]
    drawn = shuffled_labels(labels, participants, seed=5)
    assert Counter(drawn) == Counter(labels)
    assert all(drawn[i] == drawn[i + 1] for i in (0, 2, 4))


@st.composite
def cohorts_of_sites(draw):
    """Three to 25 sites of 4 to 12 participants of both classes, some of whom were scanned at a second site."""
    count = draw(st.integers(3, 25))
    scans = []
    for site in range(count):
        for number in range(draw(st.integers(4, 12))):
            scans += [(f"s{site:02d}", "AB"[number % 2], f"sub-{site:02d}{number:02d}")] * draw(
                st.integers(1, 2)
            )
    for mover in range(draw(st.integers(0, count - 3))):
        scans.append((f"s{mover + 1:02d}", "A", f"sub-{mover:02d}00"))
    return [list(column) for column in zip(*draw(st.permutations(scans)), strict=True)]


@settings(max_examples=50, deadline=None)
@given(cohort=cohorts_of_sites())
def test_no_site_and_no_participant_is_on_two_sides(cohort):
    sites, labels, participants = cohort
    folds, names = fold_of_sites(sites, labels, participants)
    assert sorted(set(folds.tolist())) == list(range(len(names)))
    assert 3 <= len(names) <= MAX_SITE_FOLDS
    for whole in (sites, participants):
        assert len(set(zip(whole, folds.tolist(), strict=True))) == len(set(whole))
    for fold, name in enumerate(names):
        of_fold = sorted({site for site, found in zip(sites, folds, strict=True) if found == fold})
        assert name == f"{'site' if len(of_fold) == 1 else 'sites'} {', '.join(of_fold)}"


def test_folds_of_sites_do_not_depend_on_the_order_of_scans():
    sites, labels, participants = sixty_sites(0)
    folds, names = fold_of_sites(sites, labels, participants)
    backwards, same_names = fold_of_sites(sites[::-1], labels[::-1], participants[::-1])
    assert names == same_names
    assert np.array_equal(folds, backwards[::-1])


def test_few_sites_are_folds_in_the_order_of_their_names():
    sites = ["B", "A", "C"] * 4
    folds, names = fold_of_sites(
        sites, ["x", "x", "x", "y", "y", "y"] * 2, [f"sub-{n:02d}" for n in range(12)]
    )
    assert names == ("site A", "site B", "site C")
    assert folds[:3].tolist() == [1, 0, 2]


def test_sites_that_share_a_participant_are_one_fold():
    sites = ["A", "B", "C", "D"] * 4 + ["C"]
    labels = ["x"] * 8 + ["y"] * 8 + ["x"]
    names_of_scans = [f"sub-{n:02d}" for n in range(16)] + ["sub-00"]
    folds, names = fold_of_sites(sites, labels, names_of_scans)
    assert names == ("sites A, C", "site B", "site D")
    assert folds[-1] == folds[0] == 0


def sixty_sites(seed):
    """Sixty sites of 4 to 40 participants; at some AD is common, at others rare."""
    generator = np.random.default_rng(seed)
    sites, labels = [], []
    for site in range(60):
        size = int(generator.integers(4, 41))
        sites += [f"{site:03d}"] * size
        labels += generator.choice(
            ["AD", "CN"], size=size, p=[(p := generator.uniform(0.1, 0.6)), 1 - p]
        ).tolist()
    return sites, labels, [f"sub-{n:04d}" for n in range(len(sites))]


@pytest.mark.parametrize("seed", range(5))
def test_many_sites_share_ten_folds_that_are_alike_in_size_and_class(seed):
    sites, labels, participants = sixty_sites(seed)
    folds, names = fold_of_sites(sites, labels, participants)
    assert len(names) == 10
    for kept in (np.ones(len(labels), dtype=bool), np.array(labels) == "AD", np.array(labels) == "CN"):
        counts = np.bincount(folds[kept], minlength=10)
        assert counts.max() / counts.mean() < 1.15
        assert counts.min() / counts.mean() > 0.85


def test_scans_without_a_site_are_named():
    sites = ["A", None, "B", "", "C"] * 3
    with pytest.raises(
        UsageError, match=r"6 of 15 scans have no site \(sub-01, sub-03, sub-06, sub-08, sub-11 and 1 more"
    ):
        fold_of_sites(sites, ["x", "y", "y"] * 5, [f"sub-{n:02d}" for n in range(15)])


def test_too_few_sites_say_what_to_do():
    with pytest.raises(UsageError, match=r"at least 3 sites, got 2 \(A, B\): use --folds-by participant"):
        fold_of_sites(["A", "B"] * 6, ["x", "y", "y"] * 4, [f"sub-{n:02d}" for n in range(12)])


def test_people_who_were_at_every_site_leave_nothing_to_test():
    sites, participants = ["A", "B", "C"] * 4, [f"sub-{n // 3}" for n in range(12)]
    with pytest.raises(
        UsageError, match=r"4 participants .* several sites \(sub-0, sub-1, .* 1 of at least 3 folds"
    ):
        fold_of_sites(sites, ["x"] * 6 + ["y"] * 6, participants)


def test_a_class_of_one_site_cannot_be_learnt_elsewhere():
    sites = ["A"] * 8 + ["B"] * 8 + ["C"] * 8
    labels = ["CN"] * 8 + ["AD"] * 6 + ["CN"] * 2 + ["AD"] + ["CN"] * 7
    with pytest.raises(
        UsageError, match=r"6 of 7 participants of the class 'AD' are at site B, .* --classes"
    ):
        fold_of_sites(sites, labels, [f"sub-{n:02d}" for n in range(24)])


def test_sites_of_one_class_are_refused():
    with pytest.raises(UsageError, match="at least two classes"):
        fold_of_sites(["A", "B", "C"], ["x"] * 3, ["sub-1", "sub-2", "sub-3"])
