"""The replay: the accepted steps of a tape taken again, and differentiated."""
