"""What people look at: tables, curves, examples, one image explained."""
