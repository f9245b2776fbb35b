"""The configs that ship with packlight; each TOML file opens with when to use it."""
