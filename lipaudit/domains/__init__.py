"""What an operation does to an abstract value: one table of rules per domain, walked over the graph by one loop."""
