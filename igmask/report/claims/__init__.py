"""What tables claim: differences, collapse, other masks, other readings."""
