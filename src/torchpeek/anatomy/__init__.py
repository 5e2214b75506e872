"""The front door for insides: what a network is made of."""

from torchpeek.anatomy.layers import LayerTable, layers

__all__ = ["LayerTable", "layers"]
