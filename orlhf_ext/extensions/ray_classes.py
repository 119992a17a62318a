"""Ray's actor classes: the plain class inside one, to make a subclass of, and a subclass made an actor class again.

``class MyTrainer(unwrap(PPOTrainer))`` is all that an extension writes; `inject` makes an actor class of it when it
puts it in the place of OpenRLHF's own. The plain class stays importable under its own name, so that Ray sends it to
workers by that name, and each worker builds it on the OpenRLHF that it has, replacements included.
"""

from __future__ import annotations

from typing import Any


def is_actor_class(found: Any) -> bool:
    """Whether ``found`` was decorated with ``@ray.remote``; ray is not imported."""
    return hasattr(found, "__ray_metadata__")


def unwrap(actor_class: Any) -> Any:
    """The class that was decorated with ``@ray.remote``; a plain class is given back as it is."""
    return (
        actor_class.__ray_metadata__.modified_class.__ray_actor_class__ if is_actor_class(actor_class) else actor_class
    )


def rewrap(cls: type, like: Any) -> Any:
    """An actor class of ``cls`` with the resources that the actor class ``like`` asks for."""
    import ray

    options = dict(like._default_options)
    return ray.remote(**options)(cls) if options else ray.remote(cls)
