"""Parts shared by the decode-speed benchmarks: models, loops, the cost model, and the rows they write."""
