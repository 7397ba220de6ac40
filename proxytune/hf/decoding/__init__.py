"""Our own decode loop: a cache of slots, one forward per model, lossless speculation with the expert as the draft."""
