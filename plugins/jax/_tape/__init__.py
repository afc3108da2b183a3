"""The tape of a solve: which states are kept at each step, and how to get the others back."""
