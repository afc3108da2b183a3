"""The hosts: what each gives to be replayed, as an abstract solve."""
