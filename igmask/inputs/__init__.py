"""What comes in: images, labels, classes, networks and their weights, baselines."""
