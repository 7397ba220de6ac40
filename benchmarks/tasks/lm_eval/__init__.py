"""lm-evaluation-harness: `proxytune` as one of its models, and its tasks in runs of ours."""
