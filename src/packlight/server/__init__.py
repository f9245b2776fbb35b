"""A model behind OpenAI's API: sockets, who may ask, what bodies mean, answers. Knows no flags and no terminal."""
