"""What the decode-speed benchmarks share: models, loops, the cost model, and the rows they write."""
