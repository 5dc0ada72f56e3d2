"""What is asked for: every setting, and what each step's result depends on. No torch."""
