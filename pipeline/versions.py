"""Where versions of packages differ between two places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def differing_versions(here: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> list[str]:
    """Return what differs between here and any other place, one phrase for each package that both know.

    Parameters
    ----------
    here : mapping
        Package to version.
    others : iterable of mapping
        The same of other places.

    >>> differing_versions({"torch": "2.13", "numpy": "2.4"}, [{"torch": "2.9", "numpy": "2.4"}])
    ['torch 2.9 there, 2.13 here']
    """
    places = list(others)
    said = []
    for name, mine in sorted(here.items()):
        found = sorted({there[name] for there in places if name in there} - {mine})
        if found:
            said.append(f"{name} {' and '.join(found)} there, {mine} here")
    return said
