"""A run is a `Recipe`; a recipe is a function that returns one. `get(name)` finds it."""

from collections.abc import Callable

from spiketrain.errors import unknown
from spiketrain.recipes import library, seed
from spiketrain.recipes.recipe import FIELDS, Recipe, field_type

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": library.digits,
    "digits-dvs": library.digits_dvs,
    "dvs128-objects": library.dvs128_objects,
    "mnist": library.mnist,
    "cifar10-small": library.cifar10_small,
    "cifar10-strict": library.cifar10_strict,
    "cifar10-open": library.cifar10_open,
    "imnet-resnet18": library.imnet_resnet18,
    "imnet-resnet34": library.imnet_resnet34,
    "imnet-resnet50": library.imnet_resnet50,
    **seed.recipes(),
}
"""Every recipe by its name."""


def get(name: str) -> Recipe:
    """The recipe of that name; `UserError` with the nearest match if there is none.

    >>> get("digits").but(epochs=3, seed=1).epochs
    3
    """
    if name not in RECIPES:
        ours = [n for n in RECIPES if not n.startswith("seed/")]
        raise unknown("recipe", name, RECIPES if name.startswith("seed") else [*ours, "seed/…"])
    return RECIPES[name]()


__all__ = ["FIELDS", "RECIPES", "Recipe", "field_type", "get"]
