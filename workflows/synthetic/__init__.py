"""Heads with a known truth, and the demonstration cohort made of them."""
