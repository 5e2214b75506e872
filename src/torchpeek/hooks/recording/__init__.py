"""record(): record the outputs, inputs and gradients of layers."""
