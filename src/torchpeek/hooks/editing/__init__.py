"""edit(): replace the inputs, outputs and gradients of layers."""
