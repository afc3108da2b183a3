"""What a person sees of parity runs: tables, plots and pages."""
