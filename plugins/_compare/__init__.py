"""``compare``, as far as it is the same for both halves: the race, its clock, the table, the plot and the advice."""
