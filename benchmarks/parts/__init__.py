"""What `benchmarks/store.py` measures, a module for each part."""
