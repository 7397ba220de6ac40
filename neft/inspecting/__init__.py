"""The noise of a run before it trains: its strength on this data, in other implementations, and a live check."""
