"""Hardware that is not here: names, chips, compiled programs read, what a step will cost there."""
