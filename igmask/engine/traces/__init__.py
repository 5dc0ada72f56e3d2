"""Two libraries that take the graph of a network."""
