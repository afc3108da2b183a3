"""What each framework can do, and the adapters that run a case in it."""
