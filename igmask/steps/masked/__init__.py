"""What `evaluate` is made of: rankings, fills, what a network is shown and what is recorded."""
