"""What the rows of a table generator are worth, measured against real rows that nothing was trained on."""
