"""What mixes the tokens of a text in a layer, one kind each."""
