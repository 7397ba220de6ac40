"""What noise a run would have: how strong on this data, what other implementations make of it, is it on."""
