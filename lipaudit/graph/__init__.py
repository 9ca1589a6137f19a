"""A torch model as a graph of operations: captured, lowered, ready to be evaluated."""
