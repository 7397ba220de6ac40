"""`bench report`: the figures of runs in one table, and in one page that loads nothing."""
