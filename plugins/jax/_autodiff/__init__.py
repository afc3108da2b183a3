"""What is differentiated: the vector field, the leaves that carry a derivative, and what is refused."""
