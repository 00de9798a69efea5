"""spiketrain: high-performance spiking neural networks by back-propagation, on images and event-camera recordings."""

from spiketrain import functional, kernels, layers, models, neurons, objective, recipes
from spiketrain.errors import UserError
from spiketrain.recipes import Recipe
from spiketrain.record import Record
from spiketrain.train import train

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "Record",
    "UserError",
    "functional",
    "kernels",
    "layers",
    "models",
    "neurons",
    "objective",
    "recipes",
    "train",
]
