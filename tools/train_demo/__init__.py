"""How the demo model in `demo/` was made: text, vocabulary, training, export. Nothing of packlight needs it."""
