"""What gradients are judged by: distances, and adjoints written out apart from all that they judge."""
