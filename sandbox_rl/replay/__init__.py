"""A run from its own records: its episodes again, its scores by other rules, its updates to the bit."""
