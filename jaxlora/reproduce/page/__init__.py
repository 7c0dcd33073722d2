"""A reproduced table as one page: its figures as SVG, its style, and the HTML that needs nothing else."""
