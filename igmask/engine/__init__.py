"""The gradient: a network's stem, the queue of steps, Integrated Gradients. Knows no files."""
