"""From logits to ids: what a user may ask, and what the device and the host make of it."""
