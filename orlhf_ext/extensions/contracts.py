"""What a replacement relies on in the code that it replaces, and whether sources keep to it."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .sources import Found, Sources, parameters


@dataclass(frozen=True)
class Seam:
    """One ``module:attribute`` that is replaced, with the contract that its replacement relies on."""

    target: str
    launchers: tuple[str, ...]
    #: names of its parameters, in order, separated by spaces (a class: of ``__init__`` without ``self``)
    parameters: str
    why: str
    #: attributes by name; anything else is text that must be in its source, white space apart; any one of a tuple
    relies_on: tuple[str | tuple[str, ...], ...] = ()
    #: who replaces it: an extension, a backend, the launcher itself, a fix (`orlhf_ext.openrlhf_fixes`), or nobody: an
    #: extension imports it
    by: str = "extension"

    @property
    def module(self) -> str:
        """The module that it is in."""
        return self.target.partition(":")[0]

    @property
    def package(self) -> str:
        """The package that it is in."""
        return self.module.partition(".")[0]


def problems(seam: Seam, sources: Sources) -> list[str]:
    """What of a seam's contract does not hold; nothing when all is well. Further parameters that may be left out, and
    white space, are no problem."""
    found = sources.find(seam.module, seam.target.partition(":")[2])
    if found is None:
        return [f"{seam.target} is missing"]
    takes = _takes(found, sources)
    wanted = seam.parameters.split()
    wrong = []
    same = [name for name in takes if name in wanted] == wanted
    if not same or not all(takes[name] for name in takes.keys() - set(wanted)):
        wrong.append(f"{seam.target} takes ({' '.join(takes)}), not ({seam.parameters})")
    source = _bare(sources.source(found))
    for needed in seam.relies_on:
        forms = (needed,) if isinstance(needed, str) else needed
        if not any(sources.has_attribute(found, f) if f.isidentifier() else _bare(f) in source for f in forms):
            wrong.append(f"{seam.target} has no {' '.join(forms[0].split())!r}")
    return wrong


def _takes(found: Found, sources: Sources) -> dict[str, bool]:
    """Parameters of a function, or of a class without its ``self``."""
    if not isinstance(found.node, ast.ClassDef):
        return parameters(found.node)
    made = sources.member(found, "__init__")
    if made is None or isinstance(made.node, ast.ClassDef):
        return {}
    return dict(list(parameters(made.node).items())[1:])


def _bare(text: str) -> str:
    return "".join(text.split())
