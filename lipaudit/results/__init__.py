"""What an audit found, as plain data; the result file; numbers as a reader sees them. Never imports torch."""
