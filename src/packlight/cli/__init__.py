"""packlight at the terminal, one file a command."""
