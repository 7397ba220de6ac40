"""AlpacaEval 1 and 2: answers to its 805 instructions, and their judging by the alpaca-eval package."""
