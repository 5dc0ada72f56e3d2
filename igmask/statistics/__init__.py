"""What may be chance, and what not: of records, without a network."""
