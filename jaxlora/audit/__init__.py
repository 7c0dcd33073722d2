"""What is checked before numbers are believed: prepared data against published counts, and what it gives away."""
