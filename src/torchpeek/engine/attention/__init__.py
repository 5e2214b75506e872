"""Attention weights and their gradients, also where the model computes them in a fused call."""
