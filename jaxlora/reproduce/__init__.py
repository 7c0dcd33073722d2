"""The paper's tables again: which runs they need, and what these say beside the printed figures."""
