"""Tables → notes → examples → prepared datasets, private and deterministic."""
