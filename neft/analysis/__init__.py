"""The paper's analyses of tuned models: losses, overlap with the targets, lengths, repetition, diversity, flips."""
