"""One benchmark run is one folder: what was asked, every prediction, and the figures made from them."""
