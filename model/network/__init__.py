"""The forward pass. Knows activations, not executables."""
